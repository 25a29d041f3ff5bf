"""Runs as dicts of what each changes, {"optim.peak_lr": 3e-4}; a sweep is a file with `sweep()`.

    def sweep():
        sizes = zipped({"model.d_model": [64, 128], "model.num_heads": [2, 4]})
        return seeds(3, product(sizes, {"optim.peak_lr": [1e-3, 3e-3]}))

product and chain take lists of runs, or a dict of keys and their values: every combination.
"""

import itertools

from lm.errors import require


def product(*parts):
    """Each run of one part with each of every other."""
    return [_merged(runs) for runs in itertools.product(*map(_runs, parts))]


def zipped(part):
    """The first value of each key together, then the second, ..."""
    _check(part)
    lengths = {len(values) for values in part.values()}
    require(len(lengths) == 1, f"zipped() takes lists of one length, not {sorted(lengths)}.")
    return [dict(zip(part, row, strict=True)) for row in zip(*part.values(), strict=True)]


def chain(*parts):
    """The runs of one part after those of the other."""
    return [run for part in parts for run in _runs(part)]


def seeds(count, runs=({},)):
    """Each run with so many seeds, from 0."""
    return product(runs, {"train.seed": range(count)})


def _runs(part):
    if not isinstance(part, dict):
        return list(part)
    _check(part)
    rows = itertools.product(*part.values())
    return [dict(zip(part, row, strict=True)) for row in rows]


def _check(part):
    for key, values in part.items():
        told = f"{key}: {values!r} is no list of values; write [{values!r}]."
        require(hasattr(values, "__iter__") and not isinstance(values, str), told)


def _merged(runs):
    merged = {}
    for run in runs:
        twice = sorted(merged.keys() & run.keys())
        require(not twice, f"two parts of a run set {', '.join(twice)}; set it in one.")
        merged.update(run)
    return merged
