"""Damaged texts: BART's numbers, and the text that each still holds."""

import numpy as np
import pytest

from lm.errors import UserError
from lm.objectives.builder import make_examples
from lm.objectives.denoise import infill, poisson
from tests.objectives.examples import (
    NAMES,
    Numbers,
    data,
    examples_of,
    generator,
    model,
    objective,
    window,
)

MASK, BEGIN, END = (NAMES[role] for role in ("mask", "begin", "end"))


def make(noise, length=512, stack="encoder_decoder", without=(), **changes):
    keys = {"noise_rate": 0.3, "noise": noise, **changes}
    return make_examples(
        objective("denoising", **keys),
        data(sequence_length=length),
        model(stack),
        Numbers(without),
    )


def source_of(example, tokens):
    """The damaged text; the target is the text itself."""
    assert example["targets"][: len(tokens) + 2].tolist() == [BEGIN, *tokens, END]
    assert example["weights"].sum() == len(tokens) + 2
    source = example["source"][: example["source_segments"].sum()]
    assert source[0] == BEGIN
    assert source[-1] == END
    return source[1:-1]


def test_poissons_distribution():
    drawn = poisson(3.0, 40_000, generator(0, 0))
    assert abs(drawn.mean() - 3) < 4 * (3 / 40_000) ** 0.5
    assert abs(drawn.var() - 3) < 0.1
    assert abs((drawn == 0).mean() - np.exp(-3)) < 4 * (np.exp(-3) / 40_000) ** 0.5
    assert abs(poisson(40.0, 10_000, generator(0, 1)).mean() - 40) < 0.3


def test_30_percent_in_spans_of_3_each_of_which_is_one_mask():
    spans = []
    for tokens, example in examples_of(make("infilling"), 300):
        source = source_of(example, tokens)
        clean = source[source != MASK]
        assert len(tokens) - len(clean) == round(0.3 * len(tokens))
        assert (np.diff(clean) > 0).all()  # in order, as the text is
        # Where text is missing there is a mask; where none is, a mask is an empty span.
        masks = np.diff(np.flatnonzero([1, *(source != MASK), 1])) - 1
        missing = np.diff([tokens[0] - 1, *clean, tokens[-1] + 1]) - 1
        assert (masks[missing > 0] >= 1).all()
        assert len(source) <= len(tokens)
        spans.append((source == MASK).sum())
    # The last span is cut where the rate is reached, so spans are a little shorter than 3:
    # renewal theory gives rate * n / 3 + E[l^2] / (2 * 3^2), E[l^2] = 3 + 3^2, and at most 1 more.
    expected = round(0.3 * 510) / 3
    assert expected < np.mean(spans) < expected + 12 / 18 + 1


@pytest.mark.parametrize("n", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.95])
@pytest.mark.parametrize("mean", [0.3, 3.0, 60.0])
def test_infilled_texts_are_never_longer(n, rate, mean):
    tokens, noise = window(n), max(1, round(rate * n))
    for key in range(100):
        found = infill(tokens, rate, mean, MASK, generator(3, key))
        clean = found[found != MASK]
        assert len(clean) == n - noise
        assert len(found) <= n
        assert (np.diff(clean) > 0).all()
        assert (found == MASK).any()


def test_sentences_in_another_order():
    orders = set()
    for tokens, example in examples_of(make("permutation", 102), 300):
        source = source_of(example, tokens)
        assert sorted(source) == tokens.tolist()
        breaks = np.flatnonzero(np.diff(source) != 1)
        # A sentence is whole: it ends with its full stop, or where the window does.
        assert all(source[at] % 20 == 19 or source[at] == tokens[-1] for at in breaks)
        orders.add(tuple(source - tokens[0]))
    assert len(orders) > 200


def test_deletion_rotation_and_masking():
    starts = set()
    for tokens, example in examples_of(make("deletion", 42), 50):
        source = source_of(example, tokens)
        assert len(source) == 28
        assert (np.diff(source) > 0).all()
        assert {*source} < {*tokens}
    for tokens, example in examples_of(make("rotation", 42), 400):
        source = source_of(example, tokens)
        start = source[0] - tokens[0]
        assert source.tolist() == [*tokens[start:], *tokens[:start]]
        starts.add(start)
    assert starts == {*range(40)}
    for tokens, example in examples_of(make("masking", 42), 50):
        source = source_of(example, tokens)
        assert (source == MASK).sum() == 12
        assert (source == tokens)[source != MASK].all()


@pytest.mark.parametrize("noise", ["infilling,permutation", "permutation, infilling"])
@pytest.mark.parametrize("stack", ["encoder_decoder", "decoder"])
def test_several_in_their_order_and_tiny_windows(noise, stack):
    everything = f"{noise},deletion,rotation,masking"
    made = make(everything, 18, stack, noise_rate=0.4)
    for length in range(2, made.raw_length + 1):
        for tokens, example in examples_of(made, 20, length):
            if stack == "encoder_decoder":
                assert {*source_of(example, tokens)} <= {MASK, *tokens}
                continue
            size, count = example["segments"].sum(), example["prefix"].sum()
            row = [*example["tokens"][:size], example["targets"][size - 1]]
            assert row[count:] == [BEGIN, *tokens, END]
            assert example["weights"].sum() == length + 2


def test_without_a_token_that_begins_texts():
    for tokens, example in examples_of(make("rotation", 20, without=("begin",)), 3):
        assert example["targets"][: len(tokens) + 1].tolist() == [*tokens, END]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": "masking", "without": ("mask",)}, r"needs the special token \[MASK\] or <mask>"),
        ({"noise": "rotation", "without": ("end",)}, r"needs the special token \[SEP\] or </s>"),
        ({"noise": "rotation", "length": 3}, "data.sequence_length=3 is too short"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        make(**arguments)
    assert "\n" not in str(caught.value)
