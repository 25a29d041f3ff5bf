"""Cross-entropy, label smoothing and z-loss against NumPy; in chunks, and whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import base
from lm.config import resolve
from lm.nn.params import bind, initialise
from lm.nn.transformer import Transformer
from lm.objectives.loss import objective_loss

B, T, V = 3, 12, 17


def config_of(**objective):
    config = base()
    config.model.update(d_model=16, num_layers=2, num_heads=2)
    config.data.update(batch_size=B, sequence_length=T)
    config.objective.update(**objective)
    return resolve(config.to_dict(), V)


CONFIG = config_of()
MODEL = Transformer(CONFIG.model)
PARAMS = initialise(MODEL, 0)
RANDOM = np.random.default_rng(0)
BATCH = {
    "tokens": RANDOM.integers(0, V, (B, T)).astype(np.int32),
    "targets": RANDOM.integers(0, V, (B, T)).astype(np.int32),
    "weights": RANDOM.integers(0, 2, (B, T)).astype(np.float32),
}


def loss(params, objective, batch=BATCH):
    return objective_loss(bind(MODEL, params), batch, objective)[:2]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("logits_chunk", [0, 4])
def test_is_numpy_s(label_smoothing, z_loss, logits_chunk):
    objective = dataclasses.replace(
        CONFIG.objective,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logits_chunk=logits_chunk,
    )
    minimised, nll = loss(PARAMS, objective)
    logits = np.asarray(bind(MODEL, PARAMS)(BATCH["tokens"]), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    log_p = logits - log_z[..., None]
    target = np.eye(V)[BATCH["targets"]]
    smooth = (1 - label_smoothing) * target + label_smoothing / V
    expected = (BATCH["weights"] * (-(smooth * log_p).sum(-1) + z_loss * log_z**2)).sum()
    np.testing.assert_allclose(minimised, expected, rtol=1e-5)
    np.testing.assert_allclose(nll, -(BATCH["weights"] * (target * log_p).sum(-1)).sum(), rtol=1e-5)


def test_chunks_have_the_gradients_of_the_whole():
    chunked = dataclasses.replace(CONFIG.objective, logits_chunk=3, z_loss=1e-3)
    whole = dataclasses.replace(chunked, logits_chunk=0)
    grads = [jax.jit(jax.grad(lambda p, o=o: loss(p, o)[0]))(PARAMS) for o in (chunked, whole)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *grads)


def test_chunks_never_hold_all_logits():
    def shapes(chunk):
        objective = dataclasses.replace(CONFIG.objective, logits_chunk=chunk)
        grad = jax.grad(lambda p: loss(p, objective)[0])
        return str(jax.make_jaxpr(grad)(PARAMS))

    whole = f"[{B},{T},{V}]"
    assert whole in shapes(0)
    assert whole not in shapes(4) and f"[{B * T},{V}]" not in shapes(4)


def test_padding_counts_nothing():
    other = {**BATCH, "targets": np.where(BATCH["weights"] > 0, BATCH["targets"], 0)}
    assert float(loss(PARAMS, CONFIG.objective)[0]) == float(
        loss(PARAMS, CONFIG.objective, jax.tree.map(jnp.asarray, other))[0]
    )
