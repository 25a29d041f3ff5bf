"""Rows of sentences."""

import numpy as np

from lm.objectives.builder import make_examples
from tests.objectives.examples import (
    NAMES,
    Numbers,
    data,
    examples_of,
    model,
    objective,
    window,
)

BEGIN, END, PAD = (NAMES[role] for role in ("begin", "end", "pad"))


def make(length):
    return make_examples(
        objective("contrastive"), data(sequence_length=length), model("encoder"), Numbers()
    )


def row_of(example):
    size = int(example["segments"].sum())
    assert example["segments"].tolist() == [1] * size + [0] * (len(example["segments"]) - size)
    assert (example["tokens"][size:] == PAD).all()
    assert example["weights"].tolist() == [1.0]
    begin, *sentence, end = example["tokens"][:size].tolist()
    assert (begin, end) == (BEGIN, END)
    return sentence


def test_a_row_is_a_whole_sentence_of_its_window():
    seen = set()
    for tokens, example in examples_of(make(130), 100, tokens=window(128, start=27)):
        sentence = row_of(example)
        assert len(sentence) == 20  # sentences of Numbers have 20 tokens
        assert sentence == list(range(sentence[0], sentence[0] + 20))
        assert sentence[-1] % 20 == 19
        assert {*sentence} <= {*tokens}
        seen.add(sentence[0])
    assert seen == {40, 60, 80, 100, 120}


def test_windows_without_a_whole_sentence():
    for length in (2, 3, 10, 18):
        for tokens, example in examples_of(make(20), 20, length):
            sentence = row_of(example)
            assert sentence
            assert {*sentence} <= {*tokens}
    # Special tokens are left out.
    for _, example in examples_of(make(20), 5, tokens=np.array([END, 21, 22, 23, 24, END])):
        assert row_of(example) == [21, 22, 23, 24]
    for _, example in examples_of(make(20), 5, tokens=np.array([END, END])):
        assert row_of(example) == []
