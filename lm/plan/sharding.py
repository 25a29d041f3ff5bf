"""Where every tensor of a training step lies, why, and what a device holds of it."""

import dataclasses
import math
import types

from lm.flops import ITEM_BYTES
from lm.mesh import ACTIVATIONS, divided_over_data, parameter_spec
from lm.nn.params import descriptions
from lm.nn.transformer import Transformer

# Why an axis divides a dim of a parameter, by the dim's name in lm.mesh.PARAMETER_DIMS.
REASONS = {
    "model": "fsdp divides it at rest; gathered where it is used, a layer at a time",
    "heads": "each device computes its own heads",
    "kv_heads": "each device computes its own key heads",
    "hidden": "each device computes its own hidden units, and outputs are summed",
    "vocab": "each device has the logits of its own tokens of the vocabulary",
}
# Okabe and Ito's palette, told apart by every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000")
COPIED = "whole on each device: too small to divide"
KEPT = {"params": 1, "moments": 2}  # of AdamW; gradients lie and weigh as params
ACTIVATION_REASONS = {
    "residual": "norms between sublayers have a part of the positions each",
    "whole": "sublayers read all positions of their sequences",
    "heads": "heads are computed where their weights are",
    "hidden": "hidden units are computed where their weights are",
    "logits": "a chunk of the vocabulary, computed where its weights are",
}


@dataclasses.dataclass(frozen=True)
class Placed:
    """kind: params, moments or activations. spec: for each dim the axes that divide it.
    bytes: of one device.
    """

    kind: str
    name: str
    shape: tuple
    spec: tuple
    bytes: int
    why: str


def placements(config, sizes):
    """[Placed] of a Config on a mesh of these sizes, {axis: size}; largest first in each kind."""
    mesh, rows = types.SimpleNamespace(shape=sizes), []
    model = Transformer(config.model)
    for path, variable in descriptions(model).items():
        shape, dims = variable.get_value().shape, variable.dims
        spec = parameter_spec(dims, shape, mesh)
        why = "; ".join(
            dict.fromkeys(
                REASONS[dim]
                for dim, axis in zip(dims, spec, strict=True)
                if axis and sizes[axis] > 1
            )
        )
        for kind, copies in KEPT.items():
            own, reason = spec, why
            if kind == "moments" and config.optim.shard_moments:
                own = divided_over_data(spec, shape, mesh)
                reason = f"{why}; data divides it between steps (optim.shard_moments)".lstrip("; ")
            size = copies * ITEM_BYTES[config.model.param_dtype]
            rows.append(_placed(kind, "/".join(path), shape, own, size, sizes, reason or COPIED))
    rows += _activations(config, sizes)
    order = [*KEPT, "activations"]
    return sorted(rows, key=lambda row: (order.index(row.kind), -row.bytes))


def _activations(config, sizes):
    model, data = config.model, config.data
    batch, length = data.batch_size // config.train.accumulation_steps, data.sequence_length
    columns = min(config.objective.logits_chunk or model.vocab_size, model.vocab_size)
    shapes = {
        "residual": (batch, length, model.d_model),
        "whole": (batch, length, model.d_model),
        "heads": (batch, length, model.num_heads, model.head_width),
        "hidden": (batch, length, model.d_ff),
        "logits": (batch, length, columns),
    }
    for name, shape in shapes.items():
        size = 4 if name == "logits" else ITEM_BYTES[model.compute_dtype]
        spec, why = ACTIVATIONS[name], ACTIVATION_REASONS[name]
        if name == "residual" and length % sizes["tensor"]:
            spec, why = ACTIVATIONS["whole"], "mesh.tensor does not divide data.sequence_length"
        yield _placed("activations", name, shape, spec, size, sizes, why)


def _placed(kind, name, shape, spec, size, sizes, why):
    axes = [() if axis is None else (axis,) if isinstance(axis, str) else axis for axis in spec]
    axes = [tuple(axis for axis in dim if sizes[axis] > 1) for dim in axes]
    parts = math.prod(sizes[axis] for dim in axes for axis in dim)
    return Placed(kind, name, shape, tuple(axes), -(-math.prod(shape) * size // parts), why)


def text(rows, readable):
    """Placements as a table; readable: bytes to text."""
    lines = [f"{'tensor':44}{'shape, and what divides it':46}{'a device':>12}  why"]
    for row in rows:
        dims = " ".join(
            f"{size}/{'*'.join(axes)}" if axes else str(size)
            for size, axes in zip(row.shape, row.spec, strict=True)
        )
        lines.append(f"{f'{row.kind} {row.name}':44}{dims:46}{readable(row.bytes):>12}  {row.why}")
    return "\n".join([*lines, "gradients lie as params, and weigh as much"])


def draw(rows, sizes, path, largest=16):
    """A picture of what a device holds, tensor by tensor, coloured by the axes that divide it."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    kinds = list(dict.fromkeys(row.kind for row in rows))
    divided = {
        row: "*".join(sorted({axis for dim in row.spec for axis in dim})) or "none: whole"
        for row in rows
    }
    colours = dict(zip(sorted(set(divided.values())), COLOURS, strict=False))
    figure = Figure(figsize=(5 * len(kinds), 6), layout="constrained")
    for panel, kind in zip(figure.subplots(1, len(kinds)), kinds, strict=True):
        shown = [row for row in rows if row.kind == kind][:largest][::-1]
        panel.barh(
            [row.name.removeprefix("layers/") for row in shown],
            [row.bytes / 2**20 for row in shown],
            color=[colours[divided[row]] for row in shown],
        )
        total = sum(row.bytes for row in rows if row.kind == kind)
        together = "" if kind == "activations" else f", {total / 2**30:.3g} GiB together"
        panel.set(title=f"{kind}{together}", xlabel="MiB of one device")
        panel.spines[["top", "right"]].set_visible(False)
    handles = [Patch(color=colour, label=axes) for axes, colour in colours.items()]
    figure.legend(handles=handles, title="divided over", loc="outside lower center", ncols=6)
    figure.suptitle("mesh " + " ".join(f"{axis}={size}" for axis, size in sizes.items()))
    figure.savefig(path, format="png", dpi=100)
