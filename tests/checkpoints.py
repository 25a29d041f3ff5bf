"""Checkpoints as numpy arrays, whatever they hold."""

import json

import jax
import numpy as np

from lm.checkpoint import MANIFEST, Checkpoints
from lm.paths import as_path


def read(folder, step=None, only=("params",)):
    """(step, nested dict of numpy arrays) of the newest checkpoint or of that of `step`. only: the
    parts of the state to read; None is all of it.
    """
    folder, template = as_path(folder), {}
    step = Checkpoints(folder).steps()[-1] if step is None else step
    manifest = json.loads((folder / str(step) / MANIFEST).read_text())["manifest"]
    for name, entry in manifest["arrays"].items():
        *parents, last = name.split("/")
        if only is None or name.split("/")[0] in only:
            node = template
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = jax.ShapeDtypeStruct(entry["shape"], np.dtype(entry["dtype"]))
    step, arrays = Checkpoints(folder).restore(template, step, partial=True)
    return step, jax.tree.map(np.asarray, arrays)
