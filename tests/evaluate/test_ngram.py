"""The baselines against counting by hand."""

import collections

import numpy as np
import pytest

from lm.evaluate.ngram import Bigram, Unigram, bits_per_byte

SIZE = 7
TOKENS = np.random.default_rng(0).integers(0, 5, 200)  # 5 and 6 are never seen


def test_both_are_distributions():
    for model in (Unigram(TOKENS, SIZE), Bigram(TOKENS, SIZE)):
        for previous in range(SIZE):
            row = model(np.full(SIZE, previous), np.arange(SIZE))
            assert row.sum() == pytest.approx(1) and row.min() > 0


def test_bigram_is_witten_and_bell_s():
    model, unigram = Bigram(TOKENS, SIZE), Unigram(TOKENS, SIZE)
    pairs = collections.Counter(zip(TOKENS[:-1].tolist(), TOKENS[1:].tolist(), strict=True))
    for previous in range(5):
        total = sum(n for (first, _), n in pairs.items() if first == previous)
        kinds = sum(first == previous for first, _ in pairs)
        for token in range(SIZE):
            rest = kinds * unigram.probability_V[token]
            expected = (pairs[previous, token] + rest) / (total + kinds)
            assert model(np.array([previous]), np.array([token]))[0] == pytest.approx(expected)


def test_bits_per_byte_of_a_uniform_model():
    uniform = Unigram(np.arange(8), 8)
    assert bits_per_byte(uniform, np.arange(8), num_bytes=14) == pytest.approx(7 * 3 / 14)
