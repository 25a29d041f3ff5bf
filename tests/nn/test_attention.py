"""The plain backend against loops over every batch row, head, query and key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.mesh import make_mesh, use_mesh
from lm.nn.attention import Attention, Visible, kv_copies, plain
from tests.nn.tiny import tiny

RNG = np.random.default_rng(0)
B, T, H = 2, 6, 4
DOCUMENTS = {
    "segments": np.array([[1, 1, 1, 2, 2, 2], [1, 2, 2, 2, 0, 0]]),
    "positions": np.array([[0, 1, 2, 0, 1, 2], [0, 0, 1, 2, 0, 1]]),
}


def sees(documents, b, t, s):
    """The mask as its docstring says it."""
    if documents is None:
        return s <= t
    segments, positions = documents["segments"][b], documents["positions"][b]
    return segments[s] == segments[t] and positions[s] <= positions[t]


def by_loops(q, k, v, documents, scale, keep=None):
    out = np.zeros(q.shape)
    queries_per_key = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        keys = [s for s in range(k.shape[1]) if sees(documents, b, t, s)]
        head = n // queries_per_key
        scores = np.array([q[b, t, n] @ k[b, s, head] * scale for s in keys])
        probs = np.exp(scores) / np.exp(scores).sum()
        for s, prob in zip(keys, probs, strict=True):
            out[b, t, n] += prob * (1 if keep is None else keep[b, n, t, s]) * v[b, s, head]
    return out


def visible(documents):
    if documents is None:
        positions = jnp.arange(T)[None]
        return Visible(positions, positions)
    positions, segments = (jnp.asarray(documents[key]) for key in ("positions", "segments"))
    return Visible(positions, positions, segments, segments)


def heads(N, K):
    return [RNG.standard_normal((B, T, count, H)).astype(np.float32) for count in (N, K, K)]


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["stream", "documents"])
@pytest.mark.parametrize(("N", "K"), [(4, 4), (4, 2), (4, 1)])
def test_plain_attention_is_its_definition(N, K, documents):
    q, k, v = heads(N, K)
    keep = RNG.integers(0, 2, (B, N, T, T)) * 2.0
    for mask in (None, keep):
        ours = plain(q, k, v, visible(documents), scale=0.3, keep_BNTS=mask)
        expected = by_loops(q, k, v, documents, 0.3, mask)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_softmax_is_not_in_low_precision():
    # 300 equal scores: a bfloat16 sum of their exponentials would stop at 256.
    q, k = jnp.zeros((2, 1, 300, 1, H), jnp.bfloat16)
    v = jnp.ones((1, 300, 1, H), jnp.bfloat16)
    positions = jnp.arange(300)[None]
    out = plain(q, k, v, Visible(positions, positions), scale=1.0)
    np.testing.assert_allclose(np.float32(out), 1, atol=2**-8)


def test_scores_are_not_rounded_to_low_precision():
    # Scores of up to 100: between two bfloat16 numbers there, probabilities differ by a third.
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.standard_normal((1, 16, 2, 64)), jnp.bfloat16) for _ in range(3))
    positions = jnp.arange(16)[None]
    out = plain(q, k, v, Visible(positions, positions), scale=4.0)
    expected = by_loops(*(np.float64(x) for x in (q, k, v)), None, 4.0)
    assert np.abs(np.float64(out) - expected).max() < 0.01


def test_scores_too_large_for_float16_stay_finite():
    q = k = jnp.full((1, 4, 1, H), 100, jnp.float16)
    v = jnp.ones((1, 4, 1, H), jnp.float16)
    positions = jnp.arange(4)[None]
    out = plain(q, k, v, Visible(positions, positions), scale=0.5)
    np.testing.assert_array_equal(np.float32(out), 1)


def test_an_unknown_backend_is_refused_with_a_suggestion():
    model = tiny({"model.attention_backend": "plane"}).model
    with pytest.raises(UserError, match=r"'plane' is not registered\. Did you mean 'plain'"):
        Attention(model)


@pytest.mark.parametrize(
    ("kv_heads", "tensor", "copies"), [(4, 4, 1), (4, 2, 1), (2, 4, 2), (1, 4, 4), (1, 1, 1)]
)
def test_every_tensor_device_has_a_key_head(kv_heads, tensor, copies):
    model = tiny({"model.num_kv_heads": kv_heads}).model
    with use_mesh(make_mesh(1, 1, tensor, devices=jax.devices()[:tensor])):
        assert kv_copies(model) == copies
