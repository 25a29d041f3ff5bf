"""The rule that moves selection biases: by hand, and that it balances a lopsided router."""

import jax
import jax.numpy as jnp
import numpy as np

from lm.nn.experts import choose
from lm.optim.balance import is_buffer, move_selection_bias
from lm.optim.optimizers import decay_mask
from tests.nn.tiny import tiny


def params(bias_LE, mtp_LE):
    def layers(bias_LE):
        return {"experts": {"selection_bias_E": bias_LE, "router_DE": jnp.ones((2, 3, 4))}}

    return {"mtp": {"layers": layers(mtp_LE)}, "layers": layers(bias_LE)}


def test_biases_move_by_hand():
    before = params(jnp.full((2, 4), 0.5), jnp.zeros((1, 4)))
    count_LE = jnp.array([[4.0, 2, 2, 0], [2, 2, 2, 2], [1, 1, 1, 5]])
    after = move_selection_bias(before, count_LE, 0.25)
    expected = params(
        np.array([[0.25, 0.5, 0.5, 0.75], [0.5] * 4]), np.array([[0.25, 0.25, 0.25, -0.25]])
    )
    jax.tree.map(np.testing.assert_array_equal, after, expected)
    assert before["layers"]["experts"]["selection_bias_E"][0, 0] == 0.5


def test_a_module_that_did_not_run_keeps_its_bias():
    before = params(jnp.zeros((2, 4)), jnp.full((1, 4), 0.5))
    after = move_selection_bias(before, jnp.array([[4.0, 0, 2, 2], [2, 2, 2, 2]]), 0.25)
    expected = params(np.array([[-0.25, 0.25, 0, 0], [0] * 4]), np.full((1, 4), 0.5))
    jax.tree.map(np.testing.assert_array_equal, after, expected)


def test_buffers_are_told_from_parameters_and_never_decay():
    tree = params(jnp.zeros((2, 4)), jnp.zeros((1, 4)))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert sum(is_buffer(path) for path in paths) == 2 < len(paths)
    for kind in ("all", "matrices", "kernels"):
        mask = decay_mask(tree, kind)["layers"]["experts"]
        assert mask == {"selection_bias_E": False, "router_DE": True}


def test_a_lopsided_router_is_balanced():
    keys = {"num_experts": 4, "experts_per_token": 1, "router_selection_bias": True}
    config = tiny({f"model.{key}": value for key, value in keys.items()}).model
    scores_BTE = jax.nn.sigmoid(
        jax.random.normal(jax.random.key(0), (4, 64, 4)) + jnp.array([2.0, 1, 0, -1])
    )
    tree = {"experts": {"selection_bias_E": jnp.zeros((1, 4))}}

    @jax.jit
    def step(tree):
        bias_E = tree["experts"]["selection_bias_E"][0]
        chosen_BTk = choose(config, scores_BTE, bias_E)
        count_LE = (chosen_BTk == jnp.arange(4)).sum((0, 1))[None].astype(float)
        return move_selection_bias(tree, count_LE, 0.01), count_LE

    first = step(tree)[1]
    for _ in range(100):
        tree, count_LE = step(tree)
    assert first.max() > 120 and first.min() < 15
    assert count_LE.max() < 75 and count_LE.min() > 53
