"""Runs as dicts of what each changes, {"optim.peak_lr": 3e-4}; a sweep is a file with `sweep()`.

    def sweep():
        sizes = zipped({"model.d_model": [64, 128], "model.num_heads": [2, 4]})
        return seeds(3, product(sizes, {"optim.peak_lr": [1e-3, 3e-3]}))

Each function takes lists of runs, or a dict of keys and their values, which is every combination.
"""

import itertools

from lm.errors import require


def product(*parts):
    """Each run of one part with each of every other."""
    return [_merged(runs) for runs in itertools.product(*map(_runs, parts))]


def zipped(*parts):
    """The first run of each part together, then the second, ...; of a dict, the first values."""
    parts = [
        [[{key: value} for value in values] for key, values in part.items()]
        if isinstance(part, dict)
        else [list(part)]
        for part in parts
    ]
    parts = [runs for part in parts for runs in part]
    lengths = {len(runs) for runs in parts}
    require(len(lengths) == 1, f"zipped() takes lists of one length, not {sorted(lengths)}.")
    return [_merged(runs) for runs in zip(*parts, strict=True)]


def chain(*parts):
    """The runs of one part after those of the other."""
    return [run for part in parts for run in _runs(part)]


def seeds(count, runs=({},)):
    """Each run with so many seeds, from 0."""
    return product(runs, {"train.seed": range(count)})


def _runs(part):
    if not isinstance(part, dict):
        return list(part)
    rows = itertools.product(*part.values())
    return [dict(zip(part, row, strict=True)) for row in rows]


def _merged(runs):
    merged = {}
    for run in runs:
        twice = sorted(merged.keys() & run.keys())
        require(not twice, f"two parts of a run set {', '.join(twice)}; set it in one.")
        merged.update(run)
    return merged
