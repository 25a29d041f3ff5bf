"""Latent attention against loops from arXiv:2405.04434, equations 37 to 47."""

import math

import jax
import numpy as np
import pytest

from lm.nn.attention import Attention
from lm.nn.cache import empty_cache
from lm.nn.latent import LatentAttention, make_attention
from lm.nn.params import abstract_parameters
from tests.nn import attending
from tests.nn.attending import POSITIONS, REAL, SEGMENTS, B, T, X, double

U, R, W, C, Q = 3, 2, 5, 6, 7
LATENT = {
    "kv_latent": C,
    "head_width": U + R,
    "rope_width": R,
    "value_width": W,
    "qkv_bias": False,
    "position": "rope",
    "norm_eps": 0.3,
}
CASES = {
    "of_the_stream": {},
    "of_a_latent": {"query_latent": Q, "norm_offset": True},
    "not_rotated": {"position": "none", "attention_output_bias": False},
    "capped": {"attention_cap": 0.7, "attention_sinks": True, "query_latent": Q},
}


def rms(config, x, scale):
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * (scale + 1 if config.norm_offset else scale)


def by_loops(config, p, x, positions, segments):
    names = ("query_DNU", "query_rope_DNR")
    source = x
    if config.query_latent:
        names = ("query_QNU", "query_rope_QNR")
        source = rms(config, x @ p["query_down_DQ"], p["query_latent_norm"]["scale_Q"])
    q, q_rope = (np.einsum("bts,snh->btnh", source, p[name]) for name in names)
    latent = rms(config, x @ p["latent_down_DC"], p["latent_norm"]["scale_C"])
    k_rope = (x @ p["key_rope_DR"])[:, :, None]
    if config.position == "rope":
        q_rope, k_rope = (
            attending.turned(z, positions, config.rope_theta) for z in (q_rope, k_rope)
        )
    k, v = (np.einsum("btc,cnh->btnh", latent, p[name]) for name in ("key_CNU", "value_CNW"))
    out = np.zeros((B, T, config.num_heads, W))
    for b, t, n in np.ndindex(out.shape[:3]):
        seen = (segments[b] == segments[b, t]) & (positions[b] <= positions[b, t])
        scores = k[b, seen, n] @ q[b, t, n] + k_rope[b, seen, 0] @ q_rope[b, t, n]
        scores = scores / math.sqrt(U + R)
        if config.attention_cap:
            scores = config.attention_cap * np.tanh(scores / config.attention_cap)
        weights = np.exp(scores)
        sink = np.exp(p["sinks_N"][n]) if config.attention_sinks else 0
        out[b, t, n] = weights @ v[b, seen, n] / (weights.sum() + sink)
    return np.einsum("btnw,nwd->btd", out, p["output_NWD"]) + p.get("output_bias_D", 0)


@pytest.mark.parametrize("name", CASES)
def test_it_is_its_formula_with_and_without_a_cache(name):
    config = double({**LATENT, **CASES[name]})
    params = attending.random_parameters(attending.module_of(config))
    expected = by_loops(config, params, X, POSITIONS, SEGMENTS)
    expanded = attending.ours(config, params)
    absorbed = attending.ours(config, params, parts=(6, 1, 1, 3))
    np.testing.assert_allclose(expanded, expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(absorbed[REAL], expected[REAL], rtol=0, atol=1e-11)


@pytest.mark.parametrize("query_latent", [0, Q])
def test_a_mesh_changes_nothing(query_latent):
    keys = {**LATENT, "query_latent": query_latent, "attention_sinks": query_latent > 0}
    attending.check_on_a_mesh(double(keys))


def test_yarn_multiplies_scores_by_deepseeks_factor():
    # V3: 1.36889 squared, systems.md 4.5. Rotation is off: position 0 alone.
    yarn = {"rope_scaling": "yarn", "rope_factor": 40.0, "rope_original_positions": 4096}
    plain = {**LATENT, "attention_scale": (U + R) ** -0.5 * 1.368888**2}
    scaled = {**LATENT, **yarn, "rope_mscale": 1.0, "rope_attention_factor": 1.0}
    positions, segments = np.zeros((B, T), np.int32), np.ones((B, T), np.int32)
    found = []
    for keys in (plain, scaled, {**scaled, "rope_mscale": 0.0}):
        config = double(keys)
        params = attending.random_parameters(attending.module_of(config))
        found.append(attending.ours(config, params, X, positions, segments))
    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    assert np.abs(found[2] - found[0]).max() > 1e-2


def test_its_cache_and_its_parameters_are_deepseeks():
    config = double({**LATENT, "query_latent": Q})
    cache = empty_cache(config, 3, 9)["full"]
    assert set(cache) == {"positions_BS", "segments_BS", "latent_LBKSH"}
    assert cache["latent_LBKSH"].shape == (config.num_layers, 3, 1, 9, C + R)
    shapes = abstract_parameters(LatentAttention(config))
    N, D = config.num_heads, config.d_model
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == (
        D * Q + Q + Q * N * (U + R) + D * (C + R) + C + C * N * (U + W) + N * W * D + D
    )


def test_the_configuration_says_which_attention_it_is():
    assert type(make_attention(double({}))) is Attention
    assert type(make_attention(double(LATENT))) is LatentAttention
