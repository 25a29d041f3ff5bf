"""Dropout: its share, its mean, the same on every mesh, and a mask of its own in every place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm.nn.attention
import lm.nn.dropout
from lm.mesh import make_mesh, use_mesh
from lm.nn.dropout import dropout, keep_mask
from lm.nn.feedforward import FeedForward
from lm.nn.params import bind, initialise
from lm.nn.transformer import Transformer
from lm.objectives.loss import objective_loss
from tests.nn.tiny import tiny

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 40, (1, 8)).astype(np.int32)
PLACES = ("embedding", "attention", "residual", "activation", "final")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dropout_zeroes_its_share_and_keeps_the_mean(dtype):
    x = jnp.asarray(1 + RNG.random((100, 100, 100)), dtype)
    y = np.asarray(dropout(x, jax.random.key(0), 0.1), np.float64)
    assert abs((y == 0).mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / y.size)
    # 1 / 0.9 rounded to bfloat16 would make all of it 0.16% smaller.
    kept = y != 0
    assert abs(y[kept].mean() / np.float64(x)[kept].mean() * 0.9 - 1) < 2e-4
    assert dropout(x, None, 0.1) is x and dropout(x, jax.random.key(0), 0.0) is x


def test_dropout_masks_are_the_same_on_every_mesh():
    expected = np.asarray(keep_mask(jax.random.key(0), (8, 8, 8, 8), 0.3, "scores"))
    for shape in ((8, 1, 1), (2, 2, 2), (1, 1, 8)):
        with use_mesh(make_mesh(*shape)):
            mask = jax.jit(lambda: keep_mask(jax.random.key(0), (8, 8, 8, 8), 0.3, "scores"))()
            np.testing.assert_array_equal(mask, expected)


def test_every_layer_and_place_of_both_stacks_has_a_mask_of_its_own(monkeypatch):
    rates = {f"model.{place}_dropout": 0.1 for place in PLACES}
    config = tiny({**rates, "model.stack": "encoder_decoder", "model.scan_layers": False})
    model, used = Transformer(config.model), []
    bound = bind(model, initialise(model, 0))

    def recorded(key, *rest):
        used.append(tuple(jax.random.key_data(key).tolist()))
        return keep_mask(key, *rest)

    weights = jnp.ones(TOKENS.shape)
    batch = dict.fromkeys(("source", "tokens", "targets"), TOKENS) | {"weights": weights}
    batch["source_segments"] = np.ones_like(TOKENS)
    monkeypatch.setattr(lm.nn.attention, "keep_mask", recorded)
    monkeypatch.setattr(lm.nn.dropout, "keep_mask", recorded)
    for seed in (0, 1):
        objective_loss(bound, batch, config.objective, jax.random.key(seed))
    # Around the layers two of each stack; in a layer four, with attention to an encoder six.
    assert len(set(used)) == len(used) == 2 * (2 + 2 * 4 + 2 + 2 * 6)


def test_the_hidden_layer_is_dropped_with_a_key_alone():
    config = tiny({"model.activation_dropout": 0.5, "model.d_ff": 16}).model
    module = FeedForward(config)
    # What comes out is the hidden layer itself.
    params = {**initialise(module, 0), "down_FD": jnp.eye(16), "up_bias_F": jnp.ones(16)}
    x = jnp.asarray(RNG.standard_normal((4, 50, 16)), jnp.float32)
    whole, dropped = (bind(module, params)(x, key) for key in (None, jax.random.key(1)))
    kept = np.asarray(dropped) != 0
    assert abs(kept.mean() - 0.5) < 4 * 0.5 / np.sqrt(kept.size)
    np.testing.assert_allclose(dropped[kept], 2 * whole[kept], rtol=1e-6)
    plain = bind(FeedForward(tiny({"model.d_ff": 16}).model), params)(x, jax.random.key(1))
    np.testing.assert_array_equal(whole, plain)


def test_what_the_head_reads_is_dropped_with_a_key_alone():
    config = tiny({"model.final_dropout": 0.25, "model.num_layers": 1}).model
    model = Transformer(config)
    bound = bind(model, initialise(model, 0))
    tokens = RNG.integers(0, 40, (32, 8)).astype(np.int32)
    whole, dropped = (bound.hidden(tokens, key=key)[0] for key in (None, jax.random.key(1)))
    kept = np.asarray(dropped) != 0
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / kept.size)
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.75, rtol=1e-5)
