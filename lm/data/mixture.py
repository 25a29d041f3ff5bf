"""Mixtures in exact proportions, of sources or of objectives: which part is example n, at once.

The first n examples hold of each part, for every n that is a multiple of BLOCK, as many as its
weight says, rounded: the same examples on any number of hosts, whichever are asked for first.
"""

import fractions
import math

import numpy as np

from lm.data import pack
from lm.errors import UserError, require

BLOCK = 4096  # examples among which the parts are shuffled


def integers(key, weights):
    """The proportions of numbers, or texts such as "0.5", as a tuple of the least integers."""
    given = [str(weight) for weight in weights]
    wrong = f"{key}={','.join(given)} must be numbers above 0, separated by commas."
    try:
        parsed = [fractions.Fraction(weight.strip()) for weight in given]
    except (ValueError, ZeroDivisionError):
        raise UserError(wrong) from None
    require(all(0 < weight < 2**31 for weight in parsed), wrong)
    scale = math.lcm(*(weight.denominator for weight in parsed))
    scaled = [int(weight * scale) for weight in parsed]
    return tuple(weight // math.gcd(*scaled) for weight in scaled)


def counts(number, weights):
    """How many of the first `number` examples are of each part: a list of integers. The last part
    takes its share, rounded up, of all; the one before it of what is left, and so on: each count
    grows with the number and is less than len(weights) from its share.
    """
    found, left = [], number
    for i in reversed(range(len(weights))):
        others = left * sum(weights[:i]) // sum(weights[: i + 1])
        found.append(left - others)
        left = others
    return found[::-1]


def assign(number_B, weights, seed):
    """(part, its number among the examples of that part) of each example; both int64 (B,)."""
    part_B, index_B = np.zeros((2, *number_B.shape), np.int64)
    for block in np.unique(number_B // BLOCK).tolist():
        here = number_B // BLOCK == block
        first, end = (np.array(counts(n * BLOCK, weights)) for n in (block, block + 1))
        ends = np.cumsum(end - first)
        place = pack.permutation(number_B[here] - block * BLOCK, BLOCK, seed, block)
        part = np.searchsorted(ends, place, "right")
        part_B[here], index_B[here] = part, (end - ends)[part] + place
    return part_B, index_B
