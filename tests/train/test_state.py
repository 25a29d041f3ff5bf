"""A training state is plain data, placed as its parameters are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.mesh import make_mesh
from lm.nn.transformer import Transformer
from lm.train.state import TrainState, abstract_state, initial_state
from tests.nn.tiny import tiny

CONFIG = tiny({"model.num_layers": 1, "model.position": "none"})


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_moments_live_where_their_parameters_do(shape):
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    state = abstract_state(Transformer(CONFIG.model), CONFIG, mesh)
    adam = state.opt_state[1]
    params = by_path(state.params)
    for moments in (by_path(adam.mu), by_path(adam.nu)):
        assert moments.keys() == params.keys()
        for path, leaf in params.items():
            assert (moments[path].shape, moments[path].dtype) == (leaf.shape, leaf.dtype)
            assert moments[path].sharding == leaf.sharding
    scalars = (state.step, state.key, adam.count, *state.variables.values())
    assert all(leaf.sharding.is_fully_replicated for leaf in scalars)


def test_a_state_holds_arrays_in_dicts_and_tuples_and_nothing_of_flax():
    state = initial_state(Transformer(CONFIG.model), CONFIG, make_mesh(1, 1, 1, jax.devices()[:1]))

    def visit(node):
        if isinstance(node, dict):
            assert type(node) is dict
            for child in node.values():
                visit(child)
        elif isinstance(node, tuple):  # optax's are named
            for child in node:
                visit(child)
        else:
            assert isinstance(node, jax.Array), type(node)

    assert type(state) is TrainState
    for part in (state.step, state.params, state.opt_state, state.variables, state.key):
        visit(part)
    assert (state.step.dtype, int(state.step)) == (jnp.int32, 0)
    assert state.key.dtype == jnp.uint32


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_every_seed_has_a_key_of_its_own(seed):
    keys = {}
    for number in (seed, (seed + 1) % 2**31):
        config = tiny({"model.num_layers": 1, "train.seed": number})
        mesh = make_mesh(1, 1, 1, jax.devices()[:1])
        state = initial_state(Transformer(config.model), config, mesh)
        keys[number] = tuple(np.asarray(state.key).tolist())
    assert len(set(keys.values())) == 2
