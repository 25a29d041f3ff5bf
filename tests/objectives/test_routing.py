"""Losses of the router beside loops over layers, sequences and tokens."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.experts import routed
from lm.objectives.routing import expert_metrics, router_loss

L, B, T, E, K = 3, 4, 6, 5, 2
MODEL = types.SimpleNamespace(num_experts=E, experts_per_token=K, router_score="softmax")


@dataclasses.dataclass
class Coefficients:
    router_aux_loss: float = 0.0
    router_sequence_loss: float = 0.0
    router_z_loss: float = 0.0


def draw(seed=0):
    """(logits LBTE, chosen LBTk, real LBT) of a router; the second sequence is short."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((L, B, T, E)).astype(np.float32)
    real = np.ones((B, T), bool)
    real[1, 2:] = False
    return logits, np.argsort(-logits, -1)[..., :K], real


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def stack(logits, chosen, real):
    layers = [
        routed(MODEL, jnp.array(x), jnp.array(softmax(x)), jnp.array(c), jnp.array(real))
        for x, c in zip(logits, chosen, strict=True)
    ]
    return {name: jnp.stack([layer[name] for layer in layers]) for name in layers[0]}


def pooled(logits, chosen, real):
    """E * sum f P as Hugging Face's Mixtral computes it: layers behind each other, then means."""
    p = softmax(logits)[:, real].reshape(-1, E)
    f = np.eye(E)[chosen[:, real].reshape(-1, K)].mean(0)  # (k, E)
    return E * (f * p.mean(0)).sum()


def by_sequence(logits, chosen, real):
    """arXiv:2412.19437, equations 17 to 20, averaged over sequences and layers."""
    found = []
    for x, c in zip(logits, chosen, strict=True):
        for b in range(B):
            n = real[b].sum()
            f = np.zeros(E)
            for expert in c[b][real[b]].ravel():
                f[expert] += E / (K * n)
            found.append((f * softmax(x[b][real[b]]).mean(0)).sum())
    return np.mean(found)


def squared_log_z(logits, chosen, real):
    return np.mean(np.log(np.exp(logits[:, real]).sum(-1)) ** 2)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("router_aux_loss", pooled),
        ("router_sequence_loss", by_sequence),
        ("router_z_loss", squared_log_z),
    ],
)
def test_losses_are_their_formulas(key, expected):
    drawn = draw()
    ours = router_loss(stack(*drawn), MODEL, Coefficients(**{key: 0.3}))
    np.testing.assert_allclose(ours, 0.3 * expected(*drawn), rtol=1e-5)


def test_losses_add_up():
    ours = stack(*draw())
    keys = ("router_aux_loss", "router_sequence_loss", "router_z_loss")
    single = [router_loss(ours, MODEL, Coefficients(**{key: 0.3})) for key in keys]
    together = router_loss(ours, MODEL, Coefficients(0.3, 0.3, 0.3))
    np.testing.assert_allclose(together, sum(single), rtol=1e-6)


def test_balanced_values():
    """With equal probabilities and each expert chosen alike: k, and 1 of a sequence."""
    chosen = (np.arange(B * E * K) % E).reshape(1, B, E, K)
    even = stack(np.zeros((1, B, E, E), np.float32), chosen, np.ones((B, E), bool))
    assert router_loss(even, MODEL, Coefficients(1.0)) == pytest.approx(K)
    assert router_loss(even, MODEL, Coefficients(0.0, 1.0)) == pytest.approx(1)
    assert expert_metrics(even) == {"experts/max_load": pytest.approx(1), "experts/idle": 0}


def test_padding_alone_costs_nothing():
    logits, chosen, real = draw()
    nothing = stack(logits, chosen, np.zeros_like(real))
    assert router_loss(nothing, MODEL, Coefficients(1.0, 1.0, 1.0)) == 0
    assert np.isfinite(expert_metrics(nothing)["experts/max_load"])


def test_metrics_show_collapse():
    """All tokens to two experts of five in one layer, spread in the others."""
    logits, chosen, real = draw()
    chosen[1] = [3, 0]
    chosen[0] = chosen[2] = np.stack([np.arange(T) % E, (np.arange(T) + 1) % E], -1)
    metrics = expert_metrics(stack(logits, chosen, real))
    assert metrics["experts/max_load"] == pytest.approx(E / K)
    assert metrics["experts/idle"] == pytest.approx(3 / (L * E))
