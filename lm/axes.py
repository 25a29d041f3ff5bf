"""The axes of a device mesh and their sizes: arithmetic, without jax, so that a plan needs none."""

import functools
import math

from lm.errors import UserError, require

AXES = ("data", "fsdp", "tensor")


def axis_sizes(sizes, num_devices=None, supposed=False, num_slices=None):
    """{axis: size} of a mesh on num_devices; in `sizes`, a size of -1 takes what is left.

    sizes: of each axis within a slice and, as "dcn_data", over slices. num_devices: 1 or more;
    None: the fewest that these sizes take. supposed: not those there are. num_slices: None: as many
    as these sizes take. Raises UserError if the product of the sizes is not the number of devices.
    """
    within, over = divided_sizes(sizes, num_devices, supposed, num_slices)
    return {axis: within[axis] * over[axis] for axis in AXES}


def divided_sizes(sizes, num_devices=None, supposed=False, num_slices=None):
    """({axis: size within a slice}, {axis: size over slices}); as `axis_sizes`."""
    over = _filled({f"dcn_{axis}": sizes.get(f"dcn_{axis}", 1) for axis in AXES}, num_slices)
    slices = math.prod(over.values())
    within = {axis: sizes.get(axis, 1) for axis in AXES}
    if num_devices is not None:
        told = f"{_written(sizes)} needs {slices} slices of as many devices each, into which"
        told += f" {num_devices} do not divide; make mesh.dcn_data=1."
        require(num_devices % slices == 0, told)
        num_devices //= slices
    within = _filled(within, num_devices, supposed, " in each slice" if slices > 1 else "")
    return within, {axis: over[f"dcn_{axis}"] for axis in AXES}


def _written(sizes):
    return " ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())


def _filled(sizes, count, supposed=False, where=""):
    """The sizes with -1 replaced by what is left of `count`, of which their product must be all.

    where: of these devices, for whoever reads what is refused.
    """
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    told = f"{_written(sizes)}: only one axis can take what is left (-1); give the others a size."
    require(len(open_axes) <= 1, told)
    for axis, size in sizes.items():
        told = f"mesh.{axis}={size} must be 1 or more, or -1 for what is left."
        require(size == -1 or size >= 1, told)
    fixed = math.prod(size for size in sizes.values() if size != -1)
    count = fixed if count is None else count
    if count % fixed or (fixed != count and not open_axes):
        raise UserError(_mismatch(sizes, fixed, count, supposed, where))
    return {**sizes, **dict.fromkeys(open_axes, count // fixed)}


def _mismatch(sizes, fixed, count, supposed, where):
    several = "a multiple of " if -1 in sizes.values() else ""
    found = f"{'not' if supposed else 'but there are'} {count}"
    needs = f"{_written(sizes)} needs {several}{fixed}"
    if "dcn_data" in sizes:
        if count == 1:
            ones = " ".join(f"--config.mesh.{axis}=1" for axis in sizes)
            return f"{needs} slices; there is one only: {ones}."
        remedy = "--config.mesh.dcn_data=-1 with the others 1 takes all there are."
        return f"{needs} slices, {found}; {remedy}"
    # The largest sizes up to those asked for that divide what is there, and each other's rest.
    left, proposed = count, {}
    open_axis = next((axis for axis, size in sizes.items() if size == -1), "data")
    for axis in ("fsdp", "tensor", "data"):
        if axis != open_axis:
            proposed[axis] = max(n for n in range(1, sizes[axis] + 1) if left % n == 0)
            left //= proposed[axis]
    flags = " ".join(f"--config.mesh.{axis}={proposed.get(axis, -1)}" for axis in AXES)
    remedy = f"make one of them -1 and let the others divide that, as {flags}."
    return f"{needs} devices{where}, {found}; {remedy}"


def check_sizes(sizes, model, batch_size, accumulation_steps=1):
    """Raise UserError, which names what fits, unless a mesh of these sizes, {axis: size},
    divides the model and the batch.

    model: a TransformerConfig. batch_size: 0 of no batch.
    """
    misfit = functools.partial(_misfit, model, batch_size, accumulation_steps)
    told = misfit(sizes)
    if told is None:
        return
    count = math.prod(sizes.values())
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    meshes = (
        {"data": count // fsdp // tensor, "fsdp": fsdp, "tensor": tensor}
        for fsdp in divisors
        for tensor in divisors
        if count // fsdp % tensor == 0
    )

    def distance(other):
        return sum(abs(math.log(other[axis] / sizes[axis])) for axis in ("fsdp", "tensor"))

    if fitting := [other for other in meshes if misfit(other) is None]:
        nearest = min(fitting, key=distance)
        flags = f"--config.mesh.fsdp={nearest['fsdp']} --config.mesh.tensor={nearest['tensor']}"
        told += f", or --config.mesh.data=-1 {flags}"
    raise UserError(f"{told}.")


def _misfit(model, batch_size, accumulation_steps, sizes):
    """What a mesh of these sizes, {axis: size}, does not divide, and what it would; or None."""
    shards, tensor = sizes["data"] * sizes["fsdp"], sizes["tensor"]
    part = batch_size // accumulation_steps
    if part % shards:
        nearest = max(1, round(part / shards)) * shards * accumulation_steps
        told = f"data.batch_size={batch_size} in train.accumulation_steps={accumulation_steps}"
        told += f" parts does not divide over the {shards} data shards of mesh {dict(sizes)}; the"
        return f"{told} nearest that does is {nearest}"
    divided = {"d_model": "fsdp", "num_heads": "tensor", "vocab_size": "tensor"}
    if not all(layer.experts for layer in model.layers()):
        divided["d_ff"] = "tensor"
    if model.num_experts:
        divided |= {"expert_d_ff": "tensor", "shared_expert_d_ff": "tensor"}
    for key, axis in divided.items():
        size, count = getattr(model, key), sizes[axis]
        # Heads divide the width, if nothing else is said.
        step = math.lcm(count, model.num_heads) if key == "d_model" else count
        if size % count:
            told = f"mesh.{axis}={count} does not divide model.{key}={size}; the next that it"
            return f"{told} divides is --config.model.{key}={-(-size // step) * step}"
    if model.num_kv_heads % tensor and tensor % model.num_kv_heads:
        told = f"mesh.tensor={tensor} neither divides model.num_kv_heads={model.num_kv_heads} nor"
        return f"{told} is a multiple of it; as many as model.num_heads={model.num_heads} would do"
    return None
