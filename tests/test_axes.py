"""The sizes of a mesh against a search through all of them."""

import itertools
import math
import re

import pytest

from lm.axes import AXES, axis_sizes
from lm.errors import UserError

SIZES = [
    dict(zip(AXES, sizes, strict=True)) for sizes in itertools.product((-1, 1, 2, 3, 4), repeat=3)
]


def found(sizes, num_devices):
    """All meshes of so many devices that have these sizes, by search."""
    free = [range(1, num_devices + 1) if size == -1 else [size] for size in sizes.values()]
    every = itertools.product(*free)
    return [dict(zip(AXES, one, strict=True)) for one in every if math.prod(one) == num_devices]


@pytest.mark.parametrize("num_devices", [1, 2, 6, 8, 12])
def test_it_is_the_only_mesh_there_is_or_what_is_proposed_is_one(num_devices):
    for sizes in (sizes for sizes in SIZES if list(sizes.values()).count(-1) <= 1):
        if expected := found(sizes, num_devices):
            assert [axis_sizes(sizes, num_devices)] == expected
            continue
        with pytest.raises(UserError, match=f"there are {num_devices}; make one") as caught:
            axis_sizes(sizes, num_devices)
        proposed = re.findall(r"--config\.mesh\.(\w+)=(-?\d+)", str(caught.value))
        remedy = {axis: int(size) for axis, size in proposed}
        assert math.prod(axis_sizes(remedy, num_devices).values()) == num_devices


def test_without_a_number_it_is_the_fewest():
    for sizes in (sizes for sizes in SIZES if list(sizes.values()).count(-1) <= 1):
        fewest = next(n for n in itertools.count(1) if found(sizes, n))
        assert axis_sizes(sizes) == axis_sizes(sizes, fewest)


def test_two_axes_cannot_take_what_is_left():
    for sizes in (sizes for sizes in SIZES if list(sizes.values()).count(-1) > 1):
        with pytest.raises(UserError, match="only one axis"):
            axis_sizes(sizes, 8)
