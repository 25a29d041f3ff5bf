"""Meshes that fit, and those that do not: one line, whose remedy works."""

import re

import jax
import pytest

from configs.base import base
from lm.config import resolve
from lm.errors import UserError
from lm.mesh import AXES, check_mesh, make_mesh, parameter_spec

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


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"data": 3}, "there are 8"),
        ({"data": 16}, "16 devices"),
        ({"fsdp": 3}, "a multiple of 3"),
        ({"fsdp": -1}, "only one axis"),
        ({"tensor": 0}, "mesh.tensor=0"),
        ({"tensor": -2}, "mesh.tensor=-2"),
    ],
)
def test_a_mesh_of_other_devices_is_refused(sizes, says):
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        make_mesh(**sizes, devices=EIGHT)
    assert "\n" not in str(caught.value)


def test_the_batch_that_is_proposed_fits():
    mesh, model = make_mesh(4, 2, 1, devices=EIGHT), model_of()
    with pytest.raises(UserError, match="batch_size=20") as caught:
        check_mesh(mesh, model, 20)
    nearest = int(re.search(r"nearest that does is (\d+)", str(caught.value))[1])
    check_mesh(mesh, model, nearest)


@pytest.mark.parametrize(
    ("mesh", "keys"),
    [
        ((1, 1, 8), {}),  # 4 heads
        ((1, 1, 4), {"d_ff": 30}),
        ((1, 1, 4), {"vocab_size": 66}),
        ((1, 8, 1), {"d_model": 20}),
    ],
)
def test_the_size_that_is_proposed_is_divided(mesh, keys):
    mesh = make_mesh(*mesh, devices=EIGHT[: mesh[0] * mesh[1] * mesh[2]])
    with pytest.raises(UserError, match="does not divide model") as caught:
        check_mesh(mesh, model_of(**keys), 8)
    key, size = re.search(r"--config\.model\.(\w+)=(\d+)", str(caught.value)).groups()
    remedied = {**keys, key: int(size), "head_width": 4}
    check_mesh(mesh, model_of(**remedied), 8)


def test_few_key_heads_are_copied_and_three_are_refused():
    mesh = make_mesh(1, 1, 4, devices=EIGHT[:4])
    check_mesh(mesh, model_of(num_kv_heads=2), 8)
    spec = parameter_spec(("model", "kv_heads", "width"), (16, 2, 4), mesh)
    assert tuple(spec) == ("fsdp", None, None)
    with pytest.raises(UserError, match="num_kv_heads=3"):
        check_mesh(mesh, model_of(num_kv_heads=3, num_heads=12, head_width=4), 8)
