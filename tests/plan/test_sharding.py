"""What is said of a tensor's place is where it is."""

import math

import jax
import pytest

from experiments.cli import readable_bytes
from lm.mesh import make_mesh
from lm.nn.transformer import Transformer
from lm.plan.sharding import draw, placements, text
from lm.train.state import abstract_state
from tests.nn.tiny import tiny

MESH = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}


@pytest.mark.parametrize("shard_moments", [False, True])
def test_bytes_and_parts_are_those_of_the_arrays(shard_moments):
    config = tiny({**MESH, "optim.shard_moments": shard_moments})
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    state = abstract_state(Transformer(config.model), config, mesh)

    def held(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): 4
            * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for path, leaf in leaves
        }

    rows = placements(config, dict(mesh.shape))
    kinds = ("params", "moments")
    said = {kind: {row.name: row.bytes for row in rows if row.kind == kind} for kind in kinds}
    moments = next(part.mu for part in state.opt_state if hasattr(part, "mu"))
    assert said["params"] == held(state.params)
    assert said["moments"] == {name: 2 * size for name, size in held(moments).items()}
    assert all(row.why for row in rows)


def test_as_text_and_as_a_picture(tmp_path):
    config = tiny(MESH)
    rows = placements(config, {"data": 2, "fsdp": 2, "tensor": 2})
    table = text(rows, readable_bytes)
    assert "40/tensor 16/fsdp" in table and "gathered where it is used" in table
    draw(rows, {"data": 2, "fsdp": 2, "tensor": 2}, tmp_path / "sharding.png")
    assert (tmp_path / "sharding.png").read_bytes().startswith(b"\x89PNG")
