"""Attention of one layer by loops over rows, queries, heads and keys, in numpy; and ours."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.mesh import make_mesh, sharding, use_mesh
from lm.nn.cache import begin, empty_cache
from lm.nn.latent import make_attention
from lm.nn.params import abstract_parameters, bind
from tests.nn.tiny import tiny

B, T, D = 4, 11, 16
RNG = np.random.default_rng(0)
X = RNG.standard_normal((B, T, D))
# Rows: one text; two documents; a left-padded text; a document and padding.
POSITIONS = np.array([range(11), [*range(4), *range(7)], [0, 0, *range(9)], [*range(9), 0, 1]])
SEGMENTS = np.array([[1] * 11, [1] * 4 + [2] * 7, [0] * 2 + [1] * 9, [1] * 9 + [0] * 2])
REAL = SEGMENTS > 0
QUICK = {"xla_backend_optimization_level": 0}  # to compile


def double(keys):
    """A resolved model configuration in float64; keys without "model."."""
    keys = {"param_dtype": "float64", "compute_dtype": "float64", **keys}
    return tiny({f"model.{key}": value for key, value in keys.items()}).model


def random_parameters(module, seed=1):
    rng = np.random.default_rng(seed)
    shapes = abstract_parameters(module)
    return jax.tree.map(lambda leaf: 0.5 * rng.standard_normal(leaf.shape), shapes)


def module_of(config):
    return make_attention(config, local="local" in config.attention_pattern)


def ours(config, params, x=X, positions=POSITIONS, segments=SEGMENTS, parts=None):
    """(B, T, D), read at once without a cache, or with one in parts of these lengths; compiled."""
    rows = (np.int32(positions), np.int32(segments))
    with jax.enable_x64(True):
        return compiled(config, params, x, *rows, parts=parts)


def _ours(config, params, x, positions, segments, parts=None):
    name = "local" if config.window else "full"
    layer = bind(module_of(config), params)
    if parts is None:
        rows = {"positions_BT": positions, "segments_BT": segments}
        contexts, _ = begin(config, rows, None, x.dtype)
        return layer(x, contexts[name])[0]
    cache, found = empty_cache(config, *x.shape[:2]), []
    for start, end in zip(np.cumsum([0, *parts]), np.cumsum(parts), strict=False):
        here = slice(start, end)
        rows = {"positions_BT": positions[:, here], "segments_BT": segments[:, here]}
        contexts, cache = begin(config, rows, cache, x.dtype)
        context = dataclasses.replace(contexts[name], layer=0)
        y, cache[name] = layer(x[:, here], context, cache[name])
        found.append(y)
    return jnp.concatenate(found, 1)


compiled = jax.jit(_ours, static_argnames=("config", "parts"), compiler_options=QUICK)


def check_on_a_mesh(config, shape=(2, 2, 2), parts=(5, 1, 5)):
    """Outputs, gradients and cached outputs on a mesh are those of one device, in float64."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params, x, positions, segments):
        def loss(params):
            y = _ours(config, params, x, positions, segments)
            return jnp.sin(y).sum(), y

        (_, y), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return y, grads, _ours(config, params, x, positions, segments, parts=parts)

    with jax.enable_x64(True):
        module = module_of(config)
        params, rows = random_parameters(module), [np.int32(POSITIONS), np.int32(SEGMENTS)]
        one = run(params, X, *rows)
        mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
        with use_mesh(mesh):
            places = jax.tree.map(lambda leaf: leaf.sharding, abstract_parameters(module, mesh))
            x = jax.device_put(X, sharding(mesh, "whole"))
            rows = jax.device_put(rows, sharding(mesh, "tokens"))
            many = run(jax.device_put(params, places), x, *rows)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), many, one)
        np.testing.assert_allclose(one[2][REAL], one[0][REAL], rtol=0, atol=1e-11)


def by_loops(config, p, x, positions, segments):
    """What Attention is, from systems.md 3, 4.3 and 4.9 and the papers; q, k and v as lists."""
    N, K, H = config.num_heads, config.num_kv_heads, config.head_width
    q = np.einsum("btd,dnh->btnh", x, p["query_DNH"]) + p.get("query_bias_NH", 0)
    k = np.einsum("btd,dkh->btkh", x, p["key_DKH"]) + p.get("key_bias_KH", 0)
    v = np.einsum("btd,dkh->btkh", x, p["value_DKH"]) + p.get("value_bias_KH", 0)
    if config.query_key_norm != "none":
        letters = ("H", "H") if config.query_key_norm == "head" else ("NH", "KH")
        q = normed(config, q, p["query_norm"][f"scale_{letters[0]}"])
        k = normed(config, k, p["key_norm"][f"scale_{letters[1]}"])
    if config.position == "rope":
        q, k = (turned(z, positions, config.rope_theta) for z in (q, k))
    out = np.zeros((*x.shape[:2], N, H))
    for b, t, n in np.ndindex(out.shape[:3]):
        scores, values = [], []
        for s in range(x.shape[1]):
            distance = positions[b, t] - positions[b, s]
            if segments[b, t] != segments[b, s] or distance < 0:
                continue
            if config.window and distance >= config.window:
                continue
            score = q[b, t, n] @ k[b, s, n // (N // K)]
            if config.position == "relative":
                key = np.einsum("d,dh->h", distance_row(distance), p["position_DNH"][:, n])
                score = (q[b, t, n] + p["content_bias_NH"][n]) @ k[b, s, n // (N // K)]
                score += (q[b, t, n] + p["position_bias_NH"][n]) @ key
            score *= config.attention_scale
            if config.position == "alibi":  # the slopes of 4 heads: 2^-2, 2^-4, 2^-6, 2^-8
                score -= 4.0 ** -(n + 1) * distance
            if config.attention_cap:
                score = config.attention_cap * np.tanh(score / config.attention_cap)
            scores.append(score)
            values.append(v[b, s, n // (N // K)])
        weights = np.exp(scores)
        sink = np.exp(p["sinks_N"][n]) if config.attention_sinks else 0
        out[b, t, n] = weights @ np.array(values) / (weights.sum() + sink)
    return np.einsum("btnh,nhd->btd", out, p["output_NHD"]) + p.get("output_bias_D", 0)


def dense(q, k, v, mask, scale):
    """The softmax of what a mask (B, T, S) leaves, times v; a key head is for queries in a row."""
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    weights = np.exp(scale * np.einsum("btnh,bsnh->bnts", q, k)) * mask[:, None]
    return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v)


def normed(config, x, scale):
    dims = tuple(range(-scale.ndim, 0))
    if config.norm == "layer_norm":
        x = x - x.mean(dims, keepdims=True)
    rms = np.sqrt((x**2).mean(dims, keepdims=True) + config.norm_eps)
    return x / rms * (scale + 1 if config.norm_offset else scale)


def turned(x, positions, theta):
    half = x.shape[-1] // 2
    angle = positions[..., None, None] * theta ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], -1)


def distance_row(distance):
    angle = distance / 10_000 ** (2 * np.arange(D // 2) / D)
    return np.concatenate([np.sin(angle), np.cos(angle)])
