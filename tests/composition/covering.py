"""Covering arrays: few rows in which every wanted combination of values occurs."""

import itertools
import random

CANDIDATES = 12  # rows tried for each that is kept


def pairs(factors):
    """Every pair of values of two factors, as {factor: value}. factors: {name: values}."""
    return [
        {first: a, second: b}
        for first, second in itertools.combinations(factors, 2)
        for a, b in itertools.product(factors[first], factors[second])
    ]


def covering_rows(factors, targets, allowed, seed):
    """Rows {factor: value} such that every target, a partial row, occurs in one of them.

    Greedy, as AETG (doi:10.1109/32.605761): each row is the best of a few, and each of these starts
    at a target not yet covered and takes for one factor after the other the value that covers most.

    allowed(partial_row): False where it cannot be part of any row. Targets that are not allowed are
    left out.
    """
    rng = random.Random(seed)
    left = [frozenset(target.items()) for target in targets if allowed(target)]
    uncovered = set(left)
    rows = []
    while uncovered:
        left = [target for target in left if target in uncovered]
        by_item = {}
        for target in left:
            for item in target:
                by_item.setdefault(item, []).append(target)
        candidates = [_candidate(factors, left, by_item, allowed, rng) for _ in range(CANDIDATES)]
        covered = [_covered(row, left) for row in candidates]
        best = max(range(CANDIDATES), key=lambda number: len(covered[number]))
        rows.append(candidates[best])
        uncovered -= covered[best]
    return rows


def _candidate(factors, left, by_item, allowed, rng):
    """A whole row that covers at least one of the targets left."""
    row = dict(rng.choice(left))
    for name in rng.sample(sorted(factors.keys() - row.keys()), len(factors) - len(row)):
        have = set(row.items())
        values = [value for value in factors[name] if allowed({**row, name: value})]
        assert values, f"no value of {name} is allowed with {row}"
        gains = [
            sum(target <= have | {(name, value)} for target in by_item.get((name, value), ()))
            for value in values
        ]
        row[name] = rng.choice(
            [v for v, gain in zip(values, gains, strict=True) if gain == max(gains)]
        )
    return {name: row[name] for name in factors}


def _covered(row, left):
    items = set(row.items())
    return {target for target in left if target <= items}
