"""The plain backend and every switch of Attention against loops over rows, heads, queries, keys;
attention of encoders, and to them, against plain numpy.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.mesh import make_mesh, use_mesh
from lm.nn.attention import BACKENDS, Attention, CrossAttention, Visible, kv_copies, plain
from lm.nn.cache import begin
from lm.nn.params import bind
from tests.nn import attending, my_attention  # noqa: F401, registers the backend "sigmoid"
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


SWITCHES = {
    "scale": {"attention_scale": 0.3},
    "cap": {"attention_cap": 0.7},
    "sinks": {"attention_sinks": True},
    "sinks_of_groups": {"attention_sinks": True, "num_kv_heads": 2},
    "window": {"attention_pattern": "local", "window": 3},
    "alibi": {"position": "alibi"},
    "relative": {"position": "relative"},
    "relative_of_groups": {"position": "relative", "num_kv_heads": 2, "attention_scale": 0.3},
    "head_norm": {"query_key_norm": "head", "norm": "rms_norm", "norm_offset": True},
    "full_norm": {"query_key_norm": "full", "norm": "rms_norm", "num_kv_heads": 1},
    "layer_norm": {"query_key_norm": "full", "norm_eps": 0.1},
    "norm_before_rope": {"query_key_norm": "head", "norm": "rms_norm", "position": "rope"},
    "cap_of_what_sinks_do_not_share": {
        "attention_cap": 0.7,
        "attention_sinks": True,
        "position": "alibi",
        "attention_pattern": "local",
        "window": 4,
    },
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_is_its_formula(name):
    config = attending.double(SWITCHES[name])
    params = attending.random_parameters(attending.module_of(config))
    batch = (attending.X, attending.POSITIONS, attending.SEGMENTS)
    expected = attending.by_loops(config, params, *batch)
    np.testing.assert_allclose(attending.ours(config, params), expected, rtol=0, atol=1e-10)


def projected(p, x, name, letters, start=""):
    product = np.einsum("btd,dnh->btnh", x, p[f"{start}{name}_D{letters}"])
    return product + p[f"{start}{name}_bias_{letters}"]


def queries_keys_values(p, x, memory=None, start=""):
    memory = x if memory is None else memory
    pairs = (("query", "NH", x), ("key", "KH", memory), ("value", "KH", memory))
    return [projected(p, source, name, letters, start) for name, letters, source in pairs]


def output(p, out):
    return np.einsum("btnh,nhd->btd", out, p["output_NHD"]) + p["output_bias_D"]


def run(module, p, name, rows, memory=None, layer=None):
    """The module's output for attending.X, in float64, with the context of this name."""

    def attend(p, rows, memory):
        contexts, _ = begin(module.config, rows, None, jnp.float64, memory)
        context = dataclasses.replace(contexts[name], layer=layer)
        return bind(module, p)(jnp.asarray(attending.X), context)[0]

    with jax.enable_x64(True):
        return jax.jit(attend, compiler_options=attending.QUICK)(p, rows, memory)


ROWS = {"positions_BT": attending.POSITIONS, "segments_BT": attending.SEGMENTS}
SAME = attending.SEGMENTS[:, :, None] == attending.SEGMENTS[:, None, :]


def within(window):
    """Boolean (B, T, T); 0: all."""
    positions = attending.POSITIONS
    return abs(positions[:, :, None] - positions[:, None, :]) <= (window / 2 or np.inf)


@pytest.mark.parametrize("window", [0, 4])
def test_an_encoder_sees_both_sides(window):
    pattern = {"attention_pattern": "local", "window": window} if window else {}
    config = attending.double({"stack": "encoder", "num_kv_heads": 2, **pattern})
    module = attending.module_of(config)
    p = attending.random_parameters(module)
    mask = SAME & within(window)
    expected = output(p, attending.dense(*queries_keys_values(p, attending.X), mask, 0.5))
    ours = run(module, p, "local" if window else "full", ROWS)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("window", [0, 4])
def test_global_tokens_see_and_are_seen_by_all(window):
    """Longformer's dense equivalent, systems.md 4.4."""
    pattern = {"attention_pattern": "local", "window": window} if window else {}
    config = attending.double({"stack": "encoder", "global_attention": True, **pattern})
    module = attending.module_of(config)
    p = attending.random_parameters(module)
    is_global = np.random.default_rng(3).random(attending.SEGMENTS.shape) < 0.2
    mask = SAME & (within(window) | is_global[:, None, :])
    ordinary = attending.dense(*queries_keys_values(p, attending.X), mask, 0.5)
    of_all = attending.dense(*queries_keys_values(p, attending.X, start="global_"), SAME, 0.5)
    expected = output(p, np.where(is_global[..., None, None], of_all, ordinary))
    ours = run(module, p, "local" if window else "full", {**ROWS, "global_BT": is_global})
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10)


def test_attention_to_an_encoder_sees_its_segment_whole():
    """At once, and of keys and values that all layers remember: this one is the second of two."""
    config = attending.double({"stack": "encoder_decoder", "num_kv_heads": 2})
    module = CrossAttention(config)
    p, rng = attending.random_parameters(module), np.random.default_rng(4)
    hidden = rng.standard_normal((attending.B, 7, 16))
    segments = np.array(
        [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 2, 2], [0] + [1] * 6, [1] * 6 + [0]]
    )
    q, k, v = queries_keys_values(p, attending.X, hidden)
    mask = attending.SEGMENTS[:, :, None] == segments[:, None, :]
    with np.errstate(invalid="ignore"):  # padding of texts whose source has none
        expected = output(p, attending.dense(q, k, v, mask, 0.5))
    source = {"segments_BS": segments, "positions_BS": np.arange(7)[None].repeat(4, 0)}
    at_once = run(module, p, "cross", ROWS, {**source, "hidden_BSD": hidden})
    stacks = {
        name: np.stack([rng.standard_normal(x.shape), x]).swapaxes(2, 3)
        for name, x in (("key_LBKSH", k), ("value_LBKSH", v))
    }
    remembered = run(module, p, "cross", ROWS, {**source, **stacks}, layer=1)
    for ours in (at_once, remembered):
        real = attending.REAL
        np.testing.assert_allclose(ours[real], expected[real], rtol=0, atol=1e-10)


def test_values_may_have_a_width_of_their_own():
    q, k, _ = heads(4, 2)
    wide = RNG.standard_normal((B, T, 2, H + 3)).astype(np.float32)
    ours = plain(q, k, wide, visible(DOCUMENTS), scale=0.3)
    assert ours.shape == (B, T, 4, H + 3)
    for part in (slice(0, H), slice(3, H + 3)):
        expected = by_loops(q, k, wide[..., part], DOCUMENTS, 0.3)
        np.testing.assert_allclose(ours[..., part], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "keys",
    [
        {"position": "rope", "query_key_norm": "full", "num_kv_heads": 1, "attention_sinks": True},
        {"position": "relative", "attention_pattern": "local", "window": 3, "num_kv_heads": 2},
        {"position": "alibi", "query_key_norm": "head", "attention_cap": 2.0},
    ],
    ids=lambda keys: keys["position"],
)
def test_a_mesh_and_a_cache_change_nothing(keys):
    attending.check_on_a_mesh(attending.double({**keys, "norm": "rms_norm"}))


@pytest.mark.parametrize(
    ("keys", "argument"),
    [
        ({"attention_cap": 5.0}, "cap"),
        ({"attention_sinks": True}, "sinks_N"),
        ({"position": "alibi"}, "bias_BNTS"),
        ({"position": "relative"}, "bias_BNTS"),
    ],
)
def test_a_backend_that_lacks_what_the_model_needs_is_refused(keys, argument):
    model = attending.double({**keys, "attention_backend": "sigmoid"})
    ((key, value),) = keys.items()
    expected = f"'sigmoid' takes no {argument}, which model.{key}={value!r} needs; .*'plain'"
    with pytest.raises(UserError, match=expected):
        Attention(model)


def test_a_backend_is_given_more_only_when_it_is_needed(monkeypatch):
    given = []

    def spy(q, k, v, visible, *, scale, keep_BNTS=None, **more):
        given.append((scale, sorted(more), visible.window))
        return v

    def lacking(q, k, v, visible, *, scale, keep_BNTS=None, sinks_N=None):
        return spy(q, k, v, visible, scale=scale, **({} if sinks_N is None else {"sinks_N": 0}))

    monkeypatch.setitem(BACKENDS, "lacking", lacking)
    local = {"attention_pattern": "local", "window": 2}
    for keys in ({}, {"attention_sinks": True, "attention_scale": 0.2, **local}):
        config = attending.double({**keys, "attention_backend": "lacking"})
        params = attending.random_parameters(attending.module_of(config))
        attending.ours(config, params)
    assert given == [(0.5, [], 0), (0.2, ["sinks_N"], 2)]
