import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.mesh import make_mesh, sharding, use_mesh
from lm.nn.attention import Visible
from lm.nn.params import abstract_parameters, bind
from lm.nn.positions import (
    DistanceBuckets,
    Table,
    alibi_slopes,
    distance_buckets,
    rotary_rates,
    rotate,
    rotation,
    sinusoid,
)
from tests.nn.tiny import tiny

RNG = np.random.default_rng(0)


def rotary(width, theta=10_000.0, **keys):
    keys = {"position": "rope", "head_width": width, "rope_theta": theta, **keys}
    return tiny({f"model.{key}": value for key, value in keys.items()}).model


def turned(x_BTNH, positions_BT, theta=10_000.0):
    model = rotary(x_BTNH.shape[-1], theta)
    return rotate(x_BTNH, rotation(positions_BT, model, x_BTNH.dtype))


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_rotary_positions_turn_complex_numbers(theta):
    x = RNG.standard_normal((2, 7, 3, 8)).astype(np.float32)
    positions = RNG.integers(0, 1000, (2, 7))
    z = x[..., :4] + 1j * x[..., 4:]
    angle = positions[..., None, None] / theta ** (np.arange(4) / 4)
    z = z * np.exp(1j * angle)
    expected = np.concatenate([z.real, z.imag], -1)
    np.testing.assert_allclose(turned(x, positions, theta), expected, atol=2e-4)


def test_scores_of_rotary_positions_depend_on_the_distance_alone():
    with jax.enable_x64(True):
        q, k = RNG.standard_normal((2, 1, 1, 1, 16))

        def score(m, n):
            return (turned(q, jnp.array([[m]])) * turned(k, jnp.array([[n]]))).sum()

        scores = [score(5 + shift, 2 + shift) for shift in (0, 1, 100, 5000)]
        np.testing.assert_allclose(scores, scores[0], rtol=1e-9)
        assert abs(score(5, 3) - scores[0]) > 1e-3


def test_rotary_angles_are_not_in_low_precision():
    # Position 4001 is no bfloat16 number: its angles would be those of 4000.
    cos, _ = rotation(jnp.array([[4001]]), rotary(8), jnp.bfloat16)
    np.testing.assert_allclose(cos[0, 0, 0, 0], np.cos(4001), atol=1e-3)


LLAMA3 = {
    "rope_scaling": "llama3",
    "rope_factor": 8.0,
    "rope_original_positions": 8192,
}


def test_llama3_slows_long_wavelengths_alone():
    rates = rotary_rates(rotary(128, 500_000.0, **LLAMA3))
    for i in range(64):
        rate = 500_000.0 ** (-2 * i / 128)
        wavelength = 2 * math.pi / rate
        if wavelength > 8192 / 1:
            expected = rate / 8
        elif wavelength < 8192 / 4:
            expected = rate
        else:
            s = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - s) * rate / 8 + s * rate
        assert rates[i] == pytest.approx(expected, rel=1e-12), i


def test_linear_slows_all():
    linear = rotary(16, 1e6, rope_scaling="linear", rope_factor=8.0)
    np.testing.assert_allclose(rotary_rates(linear), rotary_rates(rotary(16, 1e6)) / 8, rtol=1e-12)


# Where the ramp begins and ends: of GPT-OSS and of DeepSeek V3, systems.md 4.9.
@pytest.mark.parametrize(
    ("theta", "factor", "truncate", "low", "high"),
    [(150_000.0, 32.0, False, 8.0928, 17.3980), (10_000.0, 40.0, True, 10, 23)],
)
def test_yarn_ramps_from_fast_to_slow_pairs(theta, factor, truncate, low, high):
    yarn = rotary(
        64,
        theta,
        rope_scaling="yarn",
        rope_factor=factor,
        rope_original_positions=4096,
        rope_truncate=truncate,
    )
    rates = rotary_rates(yarn)
    for i in range(32):
        rate, ramp = theta ** (-2 * i / 64), min(1, max(0, (i - low) / (high - low)))
        assert rates[i] == pytest.approx(rate / factor * ramp + rate * (1 - ramp), rel=1e-4), i
    cos, sin = rotation(jnp.array([[3]]), yarn, jnp.float32)
    norm = np.hypot(cos, sin)
    np.testing.assert_allclose(norm, 0.1 * math.log(factor) + 1, rtol=1e-6)


def test_local_layers_may_turn_by_themselves():
    keys = {"rope_scaling": "yarn", "rope_factor": 8.0, "rope_original_positions": 64}
    own = rotary(16, 1e6, **keys, rope_theta_local=1e4)
    np.testing.assert_array_equal(rotary_rates(own, local=True), rotary_rates(rotary(16, 1e4)))
    np.testing.assert_array_equal(rotary_rates(own), rotary_rates(rotary(16, 1e6, **keys)))
    same = rotary(16, 1e6, **keys)
    np.testing.assert_array_equal(rotary_rates(same, local=True), rotary_rates(same))
    for model, local, factor in ((own, True, 1), (own, False, None), (same, True, None)):
        factor = 0.1 * math.log(8) + 1 if factor is None else factor
        cos, sin = rotation(jnp.array([[3]]), model, jnp.float32, local)
        np.testing.assert_allclose(np.hypot(cos, sin), factor, rtol=1e-6)


def test_alibi_slopes_are_the_papers():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-n for n in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(16), [2 ** (-n / 2) for n in range(1, 17)])
    # The paper's code, for 12: the 8 of 8, then every second of 16's.
    expected = [2.0**-n for n in range(1, 9)] + [2 ** (-n / 2) for n in (1, 3, 5, 7)]
    np.testing.assert_allclose(alibi_slopes(12), expected)
    np.testing.assert_allclose(alibi_slopes(1), [2.0**-8])


def test_sinusoids_are_the_papers():
    positions = np.array([[0, 1, 7, 300], [3, 2, 1, 0]])
    ours = sinusoid(jnp.asarray(positions), 10)
    for i in range(5):
        angle = positions / 10_000 ** (2 * i / 10)
        np.testing.assert_allclose(ours[..., 2 * i], np.sin(angle), atol=1e-4)
        np.testing.assert_allclose(ours[..., 2 * i + 1], np.cos(angle), atol=1e-4)


def test_learned_positions_are_rows_of_the_table():
    model = tiny({"model.max_positions": 9}).model
    table = RNG.standard_normal((9, 16)).astype(np.float32)
    positions = np.array([[0, 8, 3], [1, 1, 2]])
    ours = bind(
        Table(model, "P", model.max_positions, "positions", model.position_offset),
        {"table_PD": jnp.asarray(table)},
    )(positions)
    np.testing.assert_array_equal(ours, table[positions])


def test_the_first_rows_of_a_table_may_be_left_out():
    model = tiny({"model.max_positions": 11, "model.position_offset": 2}).model
    table = RNG.standard_normal((11, 16)).astype(np.float32)
    positions = np.array([[0, 8, 3]])
    ours = bind(
        Table(model, "P", model.max_positions, "positions", model.position_offset),
        {"table_PD": jnp.asarray(table)},
    )(positions)
    np.testing.assert_array_equal(ours, table[positions + 2])


def test_sinusoids_in_halves_are_sines_and_then_cosines():
    positions = np.array([[0, 1, 7, 300]])
    angle = positions[..., None] / 10_000 ** (2 * np.arange(5) / 10)
    expected = np.concatenate([np.sin(angle), np.cos(angle)], -1)
    np.testing.assert_allclose(sinusoid(positions, 10, halves=True), expected, atol=1e-4)


# The first distance of each bucket, systems.md 4.2.
ENCODER = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
DECODER = [*range(16), 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]


def bucketed(stack, **keys):
    keys = {"stack": stack, "position": "buckets", **keys}
    return tiny({f"model.{key}": value for key, value in keys.items()}).model


def bucket_of(stack, distance):
    """distance: key less query."""
    firsts = ENCODER if stack == "encoder" else DECODER
    within = sum(first <= abs(distance) for first in firsts) - 1
    if stack == "decoder":
        return within if distance < 0 else 0
    return within + (16 if distance > 0 else 0)


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_buckets_begin_at_t5s_distances(stack):
    expected = [bucket_of(stack, distance) for distance in range(-128, 129)]
    assert distance_buckets(bucketed(stack)).tolist() == expected


def test_the_stacks_of_both_have_buckets_of_their_own():
    both = bucketed("encoder_decoder")
    np.testing.assert_array_equal(distance_buckets(both), distance_buckets(bucketed("decoder")))
    encoder = distance_buckets(both.encoder())
    np.testing.assert_array_equal(encoder, distance_buckets(bucketed("encoder")))


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_each_bucket_of_distances_has_a_number_on_any_mesh(stack):
    config = bucketed(stack)
    module = DistanceBuckets(config)
    table = RNG.standard_normal((32, 4)).astype(np.float32)
    rows = RNG.integers(0, 300, (8, 9)), RNG.integers(0, 300, (8, 11))
    one = rows[0][:1], rows[1][:1]

    def expected(queries, keys):
        distance = keys[:, None] - queries[:, :, None]
        buckets = np.vectorize(lambda each: bucket_of(stack, each))(distance)
        return np.moveaxis(table[buckets], -1, 1)

    def ours(params, queries, keys):
        segments = jnp.ones_like(queries), jnp.ones_like(keys)
        return bind(module, params)(Visible(queries, keys, *segments))

    for positions in (rows, one):
        np.testing.assert_array_equal(ours({"table_RN": table}, *positions), expected(*positions))
    mesh = make_mesh(2, 2, 2)
    with use_mesh(mesh):
        place = abstract_parameters(module, mesh)["table_RN"].sharding
        params = {"table_RN": jax.device_put(table, place)}
        for positions, placed in (
            (rows, jax.device_put(rows, sharding(mesh, "tokens"))),
            (one,) * 2,
        ):
            found = jax.device_get(jax.jit(ours)(params, *placed))
            np.testing.assert_array_equal(found, expected(*positions))


@pytest.mark.parametrize(
    ("position", "key"), [("sinusoid", "model.d_model"), ("rope", "model.head_width")]
)
def test_pairs_need_an_even_width(position, key):
    with pytest.raises(UserError, match=f"{key}=15 is odd"):
        tiny({"model.position": position, "model.head_width": 15, "model.d_model": 15})
    keys = {"model.position": position, "model.head_width": 15, "model.d_model": 15}
    tiny({**keys, key: 16})
