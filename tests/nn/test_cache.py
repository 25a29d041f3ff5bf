"""Caches: what was read in parts is as if read at once, and a ring holds a window, no more."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.mesh import make_mesh, use_mesh
from lm.nn.attention import written
from lm.nn.cache import begin, empty_cache, take_rows
from tests.nn import attending
from tests.nn.attending import POSITIONS, REAL, SEGMENTS, B, T, double

LOCAL = {"attention_pattern": "local", "position": "rope", "num_kv_heads": 2}
PARTS = {
    "at_once": (T,),
    "one_by_one": (1,) * T,
    "a_prompt_longer_than_the_window": (7, 1, 1, 1, 1),
    "a_prompt_of_the_window": (3, 1, 1, 1, 1, 1, 1, 1, 1),
    "parts_that_wrap": (2, 4, 5),
    "an_empty_slot_and_one_token": (2, 1, 1, 1, 6),
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_read_in_parts_is_as_read_at_once(parts):
    config = double({**LOCAL, "window": 3})
    params = attending.random_parameters(attending.module_of(config))
    expected = attending.ours(config, params)
    ours = attending.ours(config, params, parts=parts)
    np.testing.assert_allclose(ours[REAL], expected[REAL], rtol=0, atol=1e-12)


def named(positions, segments):
    return {"positions_BT": positions, "segments_BT": segments}


def test_without_a_window_too():
    config = double({"position": "rope", "num_kv_heads": 2})
    params = attending.random_parameters(attending.module_of(config))
    expected = attending.ours(config, params)
    ours = attending.ours(config, params, parts=(4, 1, 1, 5))
    np.testing.assert_allclose(ours[REAL], expected[REAL], rtol=0, atol=1e-12)


def test_a_ring_holds_the_last_tokens():
    rng, ring = np.random.default_rng(1), np.zeros((2, 1, 1, 4, 3), np.float32)
    write = jax.jit(written, static_argnames="ring")
    stream, read = rng.standard_normal((1, 40, 1, 3)).astype(np.float32), 0
    for length in (3, 1, 1, 9, 1, 9, 3, 1, 1, 1, 1, 1):
        x, before = stream[:, read : read + length], ring
        seen, ring = jax.device_get(write(ring, x, (1, np.int32(read)), ring=True))
        read += length
        for n in range(max(0, read - 4), read):
            np.testing.assert_array_equal(ring[1, 0, 0, n % 4], stream[0, n, 0])
        expected = ring[1] if length == 1 else np.concatenate([before[1], x.swapaxes(1, 2)], 2)
        np.testing.assert_array_equal(seen.swapaxes(1, 2), expected)
        np.testing.assert_array_equal(ring[0], 0)


def test_each_kind_of_layer_has_a_cache_of_its_size():
    keys = {"attention_pattern": "local,local,full", "window": 3, "num_layers": 7}
    cache = empty_cache(double(keys), 2, 9)
    assert set(cache) == {"index", "full", "local"}
    assert cache["full"]["key_LBKSH"].shape == cache["full"]["value_LBKSH"].shape == (2, 2, 4, 9, 4)
    assert cache["local"]["key_LBKSH"].shape == (5, 2, 4, 3, 4)
    assert cache["local"]["positions_BS"].shape == (2, 3)
    # A window that is never filled takes no more than what is read.
    assert empty_cache(double(keys), 2, 2)["local"]["key_LBKSH"].shape == (5, 2, 4, 2, 4)
    assert set(empty_cache(double({}), 2, 9)) == {"index", "full"}
    assert set(empty_cache(double({**LOCAL, "window": 3}), 2, 9)) == {"index", "local"}


def test_contexts_hold_the_index_before_and_the_cache_that_after():
    config = double({"attention_pattern": "local,full", "window": 3})
    cache = empty_cache(config, B, T)
    read = jax.jit(lambda cache, *rows: begin(config, named(*rows), cache, jnp.float32))
    for start, length in ((0, 5), (5, 1), (6, 1)):
        rows = [np.int32(a[:, start : start + length]) for a in (POSITIONS, SEGMENTS)]
        contexts, cache = read(cache, *rows)
        assert cache["index"] == start + length
        assert {int(context.index) for context in contexts.values()} == {start}
        assert {kind: context.visible.window for kind, context in contexts.items()} == {
            "local": 3,
            "full": 0,
        }
        end = start + length
        segments = np.asarray(cache["full"]["segments_BS"])
        np.testing.assert_array_equal(segments[:, :end], SEGMENTS[:, :end])
        assert (segments[:, end:] == 0).all()


def numbered(name, x):
    """An array of the cache plus the number of each row of the batch."""
    dim = 0 if name.endswith("_BS") else 1
    return x + np.expand_dims(np.arange(4), [n for n in range(x.ndim) if n != dim]).astype(x.dtype)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_rows_are_taken_of_every_array(shape):
    config = double({**LOCAL, "attention_pattern": "local,full", "window": 3})
    rows = np.array([3, 3, 0, 1, 2, 0, 0, 1])

    @jax.jit
    def run():
        cache = {**empty_cache(config, 4, 6), "index": jnp.int32(5)}
        for kind in ("local", "full"):
            cache[kind] = {name: numbered(name, x) for name, x in cache[kind].items()}
        return take_rows(cache, rows)

    with use_mesh(make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])):
        cache = jax.device_get(run())
    assert cache["index"] == 5
    for kind in ("local", "full"):
        assert set(cache[kind]) == {"positions_BS", "segments_BS", "key_LBKSH", "value_LBKSH"}
        for name, x in cache[kind].items():
            by_row = x if name.endswith("_BS") else x.swapaxes(0, 1)
            assert all((row == n).all() for row, n in zip(by_row, rows, strict=True))


@pytest.mark.parametrize("keys", [{}, {"attention_pattern": "local", "window": 512}])
def test_a_loop_over_layers_writes_the_cache_in_place(keys):
    L, length = 16, 512
    config = double({"num_layers": L, "param_dtype": "float32", "compute_dtype": "float32", **keys})
    kind = "local" if keys else "full"
    layer = attending.module_of(config)
    params = jax.tree.map(jnp.float32, attending.random_parameters(layer))

    @jax.jit
    def decode(cache, x, positions):
        def token(cache, n):
            contexts, cache = begin(config, named(positions + n, positions + 1), cache, x.dtype)

            def one(carry, number):
                x, part = carry
                context = dataclasses.replace(contexts[kind], layer=number)
                return attending.bind(layer, params)(x, context, part), None

            (y, part), _ = jax.lax.scan(one, (x, cache[kind]), jnp.arange(L))
            return {**cache, kind: part}, y

        return jax.lax.scan(token, cache, jnp.arange(20))[1]

    cache = empty_cache(config, 2, length)
    compiled = decode.lower(cache, jnp.ones((2, 1, 16)), jnp.zeros((2, 1), jnp.int32)).compile()
    # One copy of the cache is that of the argument, which is not donated.
    size = sum(x.nbytes for x in jax.tree.leaves(cache))
    assert compiled.memory_analysis().temp_size_in_bytes < 1.3 * size
