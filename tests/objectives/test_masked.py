"""Masked tokens: BERT's numbers, whole words, pairs, and the text that they hide."""

import numpy as np
import pytest

from lm.errors import UserError
from lm.objectives.builder import make_examples
from tests.objectives.examples import (
    FIRST,
    NAMES,
    Numbers,
    data,
    examples_of,
    model,
    objective,
    window,
)

MASK, BEGIN, END, PAD = (NAMES[role] for role in ("mask", "begin", "end", "pad"))


def make(length=512, kind="masked", **changes):
    return make_examples(
        objective(kind, **changes), data(sequence_length=length), model("encoder"), Numbers()
    )


def test_15_percent_of_which_80_become_the_mask_10_another_10_stay():
    masked, kept, other, total = 0, 0, [], 0
    for tokens, example in examples_of(make(), 400):
        chosen = example["weights"] == 1
        assert chosen.sum() == round(0.15 * len(tokens)) == 76  # "76-80 at 512"
        assert set(example) == {"tokens", "targets", "weights", "segments"}
        assert (example["tokens"] == example["targets"])[~chosen].all()
        found = example["tokens"][chosen]
        masked += (found == MASK).sum()
        same = found == example["targets"][chosen]
        kept += same.sum()
        other += found[(found != MASK) & ~same].tolist()
        total += len(found)
    # Four standard deviations.
    assert abs(masked / total - 0.8) < 4 * (0.8 * 0.2 / total) ** 0.5
    assert abs(kept / total - 0.1) < 4 * (0.1 * 0.9 / total) ** 0.5
    assert abs(len(other) / total - 0.1) < 4 * (0.1 * 0.9 / total) ** 0.5
    assert min(other) >= FIRST  # never a special token
    assert abs(np.mean(other) / np.mean(Numbers.ordinary) - 1) < 0.1


def test_every_place_is_as_likely_as_another():
    count = sum(example["weights"] for _, example in examples_of(make(66), 4000))
    assert count[0] == count[65] == 0
    expected = 4000 * round(0.15 * 64) / 64
    assert np.abs(count[1:65] - expected).max() < 5 * expected**0.5


@pytest.mark.parametrize("length", [2, 3, 7, 61, 62])
@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("rate", [0.01, 0.15, 0.3, 0.99])
def test_the_text_can_be_read_off(length, whole_words, rate):
    for tokens, example in examples_of(
        make(64, whole_words=whole_words, mask_rate=rate), 20, length
    ):
        real = example["segments"] == 1
        assert real.tolist() == [True] * (length + 2) + [False] * (62 - length)
        assert example["targets"][real].tolist() == [BEGIN, *tokens, END]
        assert (example["targets"][~real] == PAD).all()
        assert (example["tokens"][~real] == PAD).all()
        chosen = example["weights"] == 1
        assert chosen.sum() >= 1
        assert whole_words or chosen.sum() == max(1, round(rate * length))
        assert not chosen[~real].any()
        assert (example["targets"][chosen] >= FIRST).all()
        assert all(array.dtype == np.int32 for k, array in example.items() if k != "weights")


def test_words_are_masked_as_a_whole():
    rates = []
    for tokens, example in examples_of(make(whole_words=True), 100):
        chosen = example["weights"][1 : len(tokens) + 1] == 1
        words = np.cumsum(Numbers().word_starts()[tokens])
        for word in np.unique(words):
            assert len({*chosen[words == word].tolist()}) == 1
        rates.append(chosen.sum())
        assert chosen.sum() <= 76
    assert np.mean(rates) > 72  # no more than a word less than may be
    # A word ends where a special token stands, which itself is never masked.
    tokens, found = np.array([13, END, 16, 17, BEGIN, 18], np.int32), set()
    for _, example in examples_of(make(9, mask_rate=0.4, whole_words=True), 50, 6, tokens):
        found.add(tuple(np.flatnonzero(example["weights"]) - 1))
    assert found == {(0, 5), (2, 3)}
    # Nothing but special tokens: nothing to predict.
    for _, example in examples_of(make(9), 3, 4, np.full(4, END, np.int32)):
        assert example["weights"].sum() == 0


def test_half_of_the_pairs_go_on_and_the_label_says_which():
    labels, cuts = [], []
    for tokens, example in examples_of(make(64, next_sentence=True), 2000):
        row, types = example["targets"], example["token_types"]
        (first,) = np.flatnonzero(row[:-1] == END)
        assert row[0] == BEGIN
        assert row[-1] == END
        assert types.tolist() == [0] * (first + 1) + [1] * (63 - first)
        one, two = row[1:first], row[first + 1 : -1]
        assert len(one) >= 1
        assert len(two) >= 1
        assert np.array_equal(one, tokens[: len(one)])
        label = int(example["next_sentence"][0])
        assert np.array_equal(two, window(len(two)) if label else tokens[len(one) :])
        assert not example["weights"][[0, first, 63]].any()
        labels.append(label)
        cuts.append(len(one))
    assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / 2000**0.5
    assert {*cuts} == {*range(1, 61)}


def test_a_pair_that_is_shorter_than_its_row():
    for tokens, example in examples_of(make(64, next_sentence=True), 50, 2):
        assert example["targets"][:5].tolist()[0::2] == [BEGIN, END, END]
        assert example["targets"][1] == tokens[0]
        assert example["segments"].sum() == 5
        assert example["token_types"].sum() == 2


def test_electra_replaces_what_it_chooses_by_masks_only():
    made = make(kind="replaced", mask_token_share=1.0, random_token_share=0.0)
    for _, example in examples_of(made, 5):
        assert (example["tokens"][example["weights"] == 1] == MASK).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 3}, "data.sequence_length=3 is too short"),
        ({"length": 4, "next_sentence": True}, "data.sequence_length=4 is too short"),
    ],
)
def test_mistakes_are_one_line(change, message):
    with pytest.raises(UserError, match=message) as caught:
        make(**change)
    assert "\n" not in str(caught.value)
