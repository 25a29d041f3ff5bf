"""Mixtures: exact proportions, every example of every part once, whoever asks first."""

import numpy as np
import pytest

from lm.data.mixture import BLOCK, assign, counts, integers
from lm.errors import UserError


def test_weights_become_the_least_integers():
    assert integers("key", ["3", "1"]) == (3, 1)
    assert integers("key", ["0.75", " .25"]) == (3, 1)
    assert integers("key", ["1/3", "2", "0.5"]) == (2, 12, 3)
    assert integers("key", ["7"]) == (1,)


@pytest.mark.parametrize("weights", [["a"], ["1", ""], ["1", "0"], ["-1"], ["nan"], ["1e99"]])
def test_wrong_weights_are_one_line(weights):
    with pytest.raises(UserError, match=f"data.weights={','.join(weights)} must be") as caught:
        integers("data.weights", weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", [(1,), (3, 1), (1, 10_000), (2500, 1, 125), (5, 5, 5, 1)])
def test_counts_grow_by_one_and_stay_near_their_shares(weights):
    before = [0] * len(weights)
    for number in range(1, 9000):
        after = counts(number, weights)
        assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0] * (
            len(weights) - 1
        ) + [1]
        for count, weight in zip(after, weights, strict=True):
            assert abs(count - number * weight / sum(weights)) < len(weights)
        before = after
    assert counts(sum(weights) * 10**15, weights) == [weight * 10**15 for weight in weights]


@pytest.mark.parametrize("weights", [(3, 1), (2500, 1, 125), (1, 1, 1)])
def test_each_part_in_turn_in_any_order_of_asking(weights):
    number = np.arange(5 * BLOCK)
    part, index = assign(number, weights, 7)
    for each in range(len(weights)):
        assert sorted(index[part == each]) == list(range((part == each).sum()))
    for block in range(6):  # exact in every block
        assert np.bincount(part[: block * BLOCK], minlength=len(weights)).tolist() == counts(
            block * BLOCK, weights
        )
    some = np.random.default_rng(0).permutation(number)[:100]
    for wanted in (some, some[:1], some[::-1]):
        found = assign(wanted, weights, 7)
        assert np.array_equal(found[0], part[wanted])
        assert np.array_equal(found[1], index[wanted])
    assert not np.array_equal(assign(number, weights, 8)[0], part)
    far = assign(np.array([10**15 + 3]), weights, 7)
    assert 0 <= far[0][0] < len(weights)
    # Shuffled: neighbours are as often of one part as chance has it.
    share = np.square(np.array(weights) / sum(weights)).sum()
    assert abs((part[1:] == part[:-1]).mean() - share) < 0.02
