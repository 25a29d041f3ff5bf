"""The axes of a device mesh and their sizes: arithmetic, without jax, so that a plan needs none."""

import math

from lm.errors import UserError, require

AXES = ("data", "fsdp", "tensor")


def axis_sizes(sizes, num_devices=None, supposed=False):
    """{axis: size} of a mesh on num_devices; in `sizes`, a size of -1 takes what is left.

    num_devices: 1 or more; None: the fewest that these sizes take. supposed: not those there are.
    Raises UserError if the product of the sizes is not the number of devices.
    """
    written = " ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    require(
        len(open_axes) <= 1,
        f"{written}: only one axis can take what is left (-1); give the others a size.",
    )
    for axis, size in sizes.items():
        require(
            size == -1 or size >= 1,
            f"mesh.{axis}={size} must be 1 or more, or -1 for what is left.",
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    num_devices = fixed if num_devices is None else num_devices
    if num_devices % fixed or (fixed != num_devices and not open_axes):
        keep = math.gcd(max(sizes["fsdp"], 1) * max(sizes["tensor"], 1), num_devices)
        fits = math.gcd(max(sizes["tensor"], 1), keep)
        raise UserError(
            f"{written} needs {'a multiple of ' if open_axes else ''}{fixed} devices, "
            f"{'not' if supposed else 'but there are'} {num_devices}; make one of them -1 and let "
            "the others divide that, as "
            f"--config.mesh.data=-1 --config.mesh.fsdp={keep // fits} --config.mesh.tensor={fits}."
        )
    return {**sizes, **dict.fromkeys(open_axes, num_devices // fixed)}
