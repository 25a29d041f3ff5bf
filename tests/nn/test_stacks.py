"""Encoders, encoder-decoders and prefixes: who sees whom, and what is equal to what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.cache import empty_cache
from lm.nn.params import bind, initialise
from lm.nn.transformer import Transformer
from tests.nn.attending import QUICK
from tests.nn.tiny import parameters, tiny

RNG = np.random.default_rng(0)
T = 8
TOKENS = RNG.integers(0, 40, (1, T)).astype(np.int32)
PLACE = np.arange(T)
SEGMENTS = np.array([[1, 1, 1, 1, 1, 2, 2, 2]], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 4, 0, 1, 2]], np.int32)


def config_of(**keys):
    return tiny({f"model.{key}": value for key, value in keys.items()})


@functools.partial(jax.jit, static_argnames=("config", "method"), compiler_options=QUICK)
def run(config, params, *arguments, method="__call__", **rows):
    return getattr(bind(Transformer(config), params), method)(*arguments, **rows)


def influence(config, **rows):
    """bool (T, T): whether token s changes the state of token t."""
    changed = np.tile(TOKENS, (T + 1, 1))
    changed[1 + PLACE, PLACE] = (changed[1 + PLACE, PLACE] + 1) % 40
    rows = {name: np.tile(np.int32(row), (T + 1, 1)) for name, row in rows.items()}
    states = np.asarray(run(config.model, parameters(config), changed, method="states", **rows))
    return abs(states[1:] - states[:1]).max(-1) > 1e-6


SAME = SEGMENTS[0][:, None] == SEGMENTS[0]
ENCODER = {"stack": "encoder", "position": "sinusoid"}


def test_a_token_of_an_encoder_sees_its_segment():
    assert influence(config_of(**ENCODER)).all()
    found = influence(config_of(**ENCODER), segments=SEGMENTS, positions=POSITIONS)
    np.testing.assert_array_equal(found, SAME)


def test_a_window_of_an_encoder_has_two_sides_and_global_tokens():
    keys = {**ENCODER, "num_layers": 1, "attention_pattern": "local", "window": 3}
    near = abs(PLACE[:, None] - PLACE) <= 1
    np.testing.assert_array_equal(influence(config_of(**keys)), near)
    config = config_of(**keys, global_attention=True)
    np.testing.assert_array_equal(influence(config), near)
    is_global = PLACE == 6
    expected = near | is_global | is_global[:, None]
    np.testing.assert_array_equal(influence(config, global_mask=is_global[None]), expected)


PREFIXES = {"one": (PLACE < 3)[None], "packed": np.array([[1, 1, 1, 0, 0, 1, 1, 0]])}


@pytest.mark.parametrize("position", ["learned", "buckets"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_read_in_both_directions(prefix, position):
    config = config_of(prefix_attention=True, position=position)
    is_prefix, earlier = PREFIXES[prefix][0] > 0, PLACE[:, None] <= PLACE
    packing = {"segments": SEGMENTS, "positions": POSITIONS} if prefix == "packed" else {}
    found = influence(config, prefix=PREFIXES[prefix], **packing)
    same = SAME if packing else True
    np.testing.assert_array_equal(found, same & (earlier | (is_prefix[:, None] & is_prefix)))
    np.testing.assert_array_equal(influence(config, **packing), same & earlier)


def test_padding_before_a_prefix_changes_nothing():
    config = config_of(prefix_attention=True)
    params, prefix = parameters(config), np.int32(PREFIXES["one"])
    tokens = np.pad(TOKENS[:, :5], ((0, 0), (3, 0)))
    rows = [
        np.pad(x[None], ((0, 0), (3, 0))) for x in (np.arange(5), np.ones(5, int), prefix[0, :5])
    ]
    rows = dict(zip(("positions", "segments", "prefix"), map(np.int32, rows), strict=True))
    expected = run(config.model, params, TOKENS[:, :5], prefix=prefix[:, :5])
    found = run(config.model, params, tokens, **rows)
    np.testing.assert_allclose(found[:, 3:], expected, atol=1e-5)


BOTH = {
    "learned": {"norm_placement": "post", "final_norm": False, "embedding_norm": True},
    "buckets": {"norm": "rms_norm", "attention_scale": 1.0, "qkv_bias": False, "num_kv_heads": 2},
    "rope": {"attention_pattern": "local,full", "window": 2, "num_encoder_layers": 3},
}


@pytest.fixture(params=BOTH)
def both(request):
    return config_of(stack="encoder_decoder", position=request.param, **BOTH[request.param])


def test_packed_texts_are_as_if_alone(both):
    """Two texts, each with a source of 4 tokens and a target of 3, and padding."""
    params, source, target = parameters(both), TOKENS, TOKENS[:, ::-1]
    target_rows = {
        "segments": np.array([[1, 1, 1, 2, 2, 2, 0, 0]], np.int32),
        "positions": np.array([[0, 1, 2, 0, 1, 2, 0, 0]], np.int32),
    }
    rows = {"segments": np.int32(1 + PLACE // 4)[None], "positions": np.int32(PLACE % 4)[None]}
    packed = run(both.model, params, source, target, target_rows, **rows)
    for read, written in ((slice(0, 4), slice(0, 3)), (slice(4, 8), slice(3, 6))):
        alone = run(both.model, params, source[:, read], target[:, written])
        np.testing.assert_allclose(packed[:, written], alone, atol=1e-5)


def test_an_encoders_output_is_remembered_and_read_token_by_token(both):
    """Of sources of 6 and 8 tokens; padding comes before the first."""
    params = parameters(both)
    source, target = (RNG.integers(0, 40, (2, T)).astype(np.int32) for _ in range(2))
    rows = {
        "segments": np.array([[0] * 2 + [1] * 6, [1] * 8], np.int32),
        "positions": np.array([[0, 0, *range(6)], [*range(8)]], np.int32),
    }

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step_by_step(params):
        model = bind(Transformer(both.model), params)
        memory, _ = model.encode(source, **rows)
        cache = {**empty_cache(both.model, 2, T), "cross": model.remember(memory)}

        def step(cache, n):
            rows = {"positions": jnp.full((2, 1), n), "segments": jnp.ones((2, 1), jnp.int32)}
            token = jax.lax.dynamic_slice_in_dim(jnp.asarray(target), n, 1, 1)
            hidden, cache, _ = model.hidden(token, cache=cache, **rows)
            return cache, model.logits(hidden)[:, 0]

        return jax.lax.scan(step, cache, jnp.arange(T))[1].swapaxes(0, 1)

    found = step_by_step(params)
    np.testing.assert_allclose(found, run(both.model, params, source, target, **rows), atol=1e-5)


STACKED = {
    "encoder": {
        "stack": "encoder",
        "skip_first_norm": True,
        "position": "rope",
        "attention_pattern": "full,local",
        "window": 2,
        "num_layers": 6,
    },
    "both": {
        "stack": "encoder_decoder",
        "position": "buckets",
        "num_encoder_layers": 3,
        "num_layers": 2,
    },
}


@pytest.mark.parametrize("name", STACKED)
def test_scanned_and_unrolled_stacks_are_equal(name):
    """Forward; whether gradients are, a decoder's tell in test_transformer.py."""
    scanned, unrolled = (config_of(**STACKED[name], scan_layers=scan) for scan in (True, False))
    read = (TOKENS, TOKENS[:, ::-1]) if name == "both" else (TOKENS,)
    found, expected = (
        run(config.model, parameters(scanned), *read) for config in (scanned, unrolled)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert len(config_of(**STACKED["encoder"]).model.stretches()) == 3


def test_the_first_norm_is_left_out():
    """A norm of what was just normed changes nothing."""
    keys = {"stack": "encoder", "num_layers": 2, "embedding_norm": True, "norm_eps": 1e-9}
    skipping, whole = (config_of(**keys, skip_first_norm=skip) for skip in (True, False))
    params = parameters(whole)
    params["embedding_norm"] = {"scale_D": jnp.ones(16), "bias_D": jnp.zeros(16)}
    norms = params["layers"]["attention_norm"]
    first = {"scale_D": norms["scale_D"].at[0].set(1), "bias_D": norms["bias_D"].at[0].set(0)}
    second = jax.tree.map(lambda x: x[1:], norms)
    expected, found = (
        run(
            config.model, {**params, "layers": {**params["layers"], "attention_norm": norm}}, TOKENS
        )
        for config, norm in ((whole, first), (skipping, second))
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_takes_no_position_where_the_model_says_so():
    keys = {"stack": "encoder", "position_offset": 2, "max_positions": 10}
    aware, plain = (config_of(**keys, position_pad_aware=value) for value in (True, False))
    params, segments = parameters(aware), np.array([[0, 0, 1, 1, 1, 0, 1, 1]], np.int32)
    counted = np.array([[0, 0, 0, 1, 2, 0, 3, 4]], np.int32)
    real, rows = segments[0] > 0, {"segments": segments}
    found = run(aware.model, params, TOKENS, **rows)
    expected = run(plain.model, params, TOKENS, **rows, positions=counted)
    np.testing.assert_allclose(found[:, real], expected[:, real], atol=1e-6)
    as_given = run(aware.model, params, TOKENS, **rows, positions=PLACE[None])
    expected = run(plain.model, params, TOKENS, **rows)
    np.testing.assert_allclose(as_given[:, real], expected[:, real], atol=1e-6)


def test_token_types_are_added_as_positions_are():
    keys = {"stack": "encoder", "embedding_norm": True}
    config, without = config_of(**keys, token_types=2), config_of(**keys)
    params = parameters(config)
    types = params.pop("token_types")["table_YD"]
    for number in (0, 1):
        table = params["positions"]["table_PD"] + types[number]
        expected = run(without.model, {**params, "positions": {"table_PD": table}}, TOKENS)
        typed = {**params, "token_types": {"table_YD": types}}
        given = {"token_types": np.full_like(TOKENS, number)}
        found = run(config.model, typed, TOKENS, **given)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    first = run(config.model, typed, TOKENS, token_types=np.zeros_like(TOKENS))
    np.testing.assert_allclose(run(config.model, typed, TOKENS), first, atol=1e-6)


def test_t5s_initial_weights():
    """systems.md 3.2: what T5 draws; the relative error of a std of n numbers is 1 / sqrt(2 n)."""
    keys = {"stack": "encoder_decoder", "position": "buckets", "initializer": "t5"}
    keys |= {"d_model": 64, "head_width": 24, "d_ff": 96, "scaled_residual_init": False}
    d, k, h, f = 64, 24, 4, 96
    params = initialise(Transformer(config_of(**keys).model), 0)
    attention = {"query_DNH": (d * k) ** -0.5, "output_NHD": (h * k) ** -0.5}
    attention |= dict.fromkeys(("key_DKH", "value_DKH"), d**-0.5)
    expected = {("embed", "table_VD"): 1.0}
    for stack in ((), ("encoder",)):
        expected[*stack, "positions", "table_RN"] = d**-0.5
        expected[*stack, "layers", "feedforward", "up_DF"] = d**-0.5
        expected[*stack, "layers", "feedforward", "down_FD"] = f**-0.5
        for name, std in attention.items():
            expected[*stack, "layers", "attention", name] = std
            if not stack:
                expected["layers", "cross_attention", name] = std
    for path, std in expected.items():
        x = np.asarray(functools.reduce(lambda tree, name: tree[name], path, params))
        assert abs(np.sqrt(np.square(x).mean()) / std - 1) < 4 / np.sqrt(2 * x.size), path
