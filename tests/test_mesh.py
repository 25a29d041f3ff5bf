"""Meshes that fit, and those that do not: one line, whose remedy works."""

import re
import types

import jax
import numpy as np
import pytest

from configs.base import base
from lm.axes import check_sizes
from lm.config import resolve
from lm.errors import UserError
from lm.mesh import (
    AXES,
    gathered,
    in_one_slice,
    local,
    make_mesh,
    parameter_spec,
    put,
    stages,
    use_mesh,
)

EIGHT = jax.devices()[:8]


def model_of(**keys):
    config = base()
    config.model.update({"d_model": 16, "num_heads": 4, **keys})
    return resolve(config.to_dict(), 64).model


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2)),
        ({"data": 1, "tensor": 8}, (1, 1, 8)),
    ],
)
def test_what_is_left_is_taken(sizes, expected):
    mesh = make_mesh(**sizes, devices=EIGHT)
    assert tuple(mesh.shape[axis] for axis in AXES) == expected


def remedied(message, sizes, keys):
    """The mesh's sizes and the model's keys as the message proposes them."""
    proposed = re.findall(r"--config\.(mesh|model)\.(\w+)=(-?\d+)", message)
    assert proposed and "\n" not in message
    sizes = {**sizes, **{key: int(size) for section, key, size in proposed if section == "mesh"}}
    return sizes, {**keys, **{key: int(n) for section, key, n in proposed if section == "model"}}


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"data": 3}, "there are 8"),
        ({"data": 16}, "16 devices"),
        ({"data": 2, "fsdp": 2}, "needs 4 devices"),
        ({"data": 1, "fsdp": 3, "tensor": 2}, "needs 6 devices"),
        ({"data": 1, "fsdp": 6, "tensor": 12}, "needs 72 devices"),
        ({"fsdp": 3}, "a multiple of 3"),
        ({"data": 2, "fsdp": -1, "tensor": 5}, "a multiple of 10"),
    ],
)
def test_a_mesh_of_other_devices_is_refused_and_the_one_proposed_is_not(sizes, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        make_mesh(**sizes, devices=EIGHT)
    assert make_mesh(**remedied(str(caught.value), sizes, {})[0], devices=EIGHT).size == 8


@pytest.mark.parametrize(
    ("sizes", "proposed"),
    [
        ({"fsdp": 3}, {"data": -1, "fsdp": 2, "tensor": 1}),
        ({"fsdp": 7, "data": 1}, {"data": -1, "fsdp": 4, "tensor": 1}),
        ({"tensor": 6}, {"data": -1, "fsdp": 1, "tensor": 4}),
        ({"fsdp": 3, "tensor": 3}, {"data": -1, "fsdp": 2, "tensor": 2}),
        ({"data": 3, "fsdp": -1, "tensor": 2}, {"data": 2, "fsdp": -1, "tensor": 2}),
    ],
)
def test_the_largest_that_divide_are_proposed(sizes, proposed):
    with pytest.raises(UserError) as caught:
        make_mesh(**sizes, devices=EIGHT)
    assert remedied(str(caught.value), {}, {})[0] == proposed


def test_there_is_one_slice_only():
    with pytest.raises(UserError, match="needs 3 slices; there is one only") as caught:
        make_mesh(dcn_data=3, devices=EIGHT)
    remedy = dict(re.findall(r"--config\.mesh\.(\w+)=(\d+)", str(caught.value)))
    assert remedy == {"dcn_data": "1", "dcn_fsdp": "1", "dcn_tensor": "1"}


@pytest.mark.parametrize(
    ("sizes", "keys", "proposed"),
    [
        ({"tensor": 8}, {}, {"fsdp": 1, "tensor": 4}),
        ({"fsdp": 2, "tensor": 4}, {"d_ff": 30}, {"fsdp": 2, "tensor": 2}),
        ({"fsdp": 8}, {"d_model": 20}, {"fsdp": 4, "tensor": 1}),
        # Of both axes, and past what divides neither 66 tokens nor 6 heads of 4 and a width of 36.
        ({"data": 1, "fsdp": 2, "tensor": 4}, {"vocab_size": 66}, {"fsdp": 2, "tensor": 2}),
        ({"fsdp": 8}, {"num_heads": 6, "d_model": 36}, {"fsdp": 4, "tensor": 1}),
    ],
)
def test_the_nearest_mesh_that_fits_is_proposed(sizes, keys, proposed):
    with pytest.raises(UserError) as caught:
        check_sizes(make_mesh(**sizes, devices=EIGHT).shape, model_of(**keys), 8)
    found = remedied(str(caught.value), {}, {})[0]
    assert found == {"data": -1, **proposed}
    check_sizes(make_mesh(**found, devices=EIGHT).shape, model_of(**keys), 8)


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"fsdp": -1}, "only one axis"),
        ({"tensor": 0}, "mesh.tensor=0"),
        ({"tensor": -2}, "mesh.tensor=-2"),
    ],
)
def test_an_impossible_size_is_refused(sizes, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        make_mesh(**sizes, devices=EIGHT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("size", [2, 12, 20, 36])
def test_the_batch_that_is_proposed_fits(size, parts):
    mesh, model = make_mesh(4, 2, 1, devices=EIGHT), model_of()
    with pytest.raises(UserError, match=f"batch_size={size}") as caught:
        check_sizes(mesh.shape, model, size, parts)
    nearest = int(re.search(r"nearest that does is (\d+)", str(caught.value))[1])
    assert nearest % parts == 0
    check_sizes(mesh.shape, model, nearest, parts)


@pytest.mark.parametrize(
    ("sizes", "keys", "says"),
    [
        ({"tensor": 8}, {}, "mesh.tensor=8 does not divide model.num_heads=4"),
        # Six heads would not divide the width of 16, nor two key heads six.
        ({"tensor": 8}, {"num_kv_heads": 2}, "mesh.tensor=8 does not divide model.num_heads=4"),
        ({"tensor": 4}, {"d_ff": 30}, "mesh.tensor=4 does not divide model.d_ff=30"),
        ({"tensor": 4}, {"vocab_size": 66}, "mesh.tensor=4 does not divide model.vocab_size=66"),
        ({"fsdp": 8}, {"d_model": 20}, "mesh.fsdp=8 does not divide model.d_model=20"),
        (
            {"tensor": 4},
            {"num_kv_heads": 3, "num_heads": 12, "head_width": 4},
            "mesh.tensor=4 neither divides model.num_kv_heads=3",
        ),
    ],
)
def test_a_model_that_the_mesh_does_not_divide_is_refused_and_the_remedy_fits(sizes, keys, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        check_sizes(make_mesh(**sizes, devices=EIGHT).shape, model_of(**keys), 8)
    sizes, keys = remedied(str(caught.value), sizes, keys)
    check_sizes(make_mesh(**sizes, devices=EIGHT).shape, model_of(**keys), 8)


def test_few_key_heads_are_copied():
    mesh = make_mesh(1, 1, 4, devices=EIGHT[:4])
    check_sizes(mesh.shape, model_of(num_kv_heads=2), 8)
    spec = parameter_spec(("model", "kv_heads", "width"), (16, 2, 4), mesh)
    assert tuple(spec) == ("fsdp", None, None)


def test_a_function_without_a_mesh_or_on_one_device_is_left_alone():
    def double(x):
        return 2 * x

    for mesh in (None, make_mesh(devices=EIGHT[:1])):
        with use_mesh(mesh):
            assert local(double, ("tokens",), "tokens") is double
            assert put(3, "tokens") == gathered(3) == 3


def test_stages_are_the_groups_of_two_steps_that_leave_everyone_its_part():
    outer, inner = stages(8)
    assert outer == [[0, 2, 4, 6], [1, 3, 5, 7]] and inner == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert stages(2) == stages(7) == ()


@pytest.mark.parametrize(("shape", "one"), [((2, 4, 1), True), ((1, 8, 1), False)])
def test_stages_are_for_devices_of_one_slice(shape, one):
    devices = np.array([types.SimpleNamespace(slice_index=n // 4) for n in range(8)])
    sizes = dict(zip(AXES, shape, strict=True))
    mesh = types.SimpleNamespace(devices=devices.reshape(shape), axis_names=AXES, shape=sizes)
    assert in_one_slice(mesh) == one
