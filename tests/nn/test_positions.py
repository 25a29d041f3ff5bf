import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.nn.params import bind
from lm.nn.positions import LearnedPositions, rotate, rotation, sinusoid
from tests.nn.tiny import tiny

RNG = np.random.default_rng(0)


def turned(x_BTNH, positions_BT, theta=10_000.0):
    return rotate(x_BTNH, rotation(positions_BT, x_BTNH.shape[-1], theta, x_BTNH.dtype))


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
    cos, _ = rotation(jnp.array([[4001]]), 8, 10_000.0, jnp.bfloat16)
    np.testing.assert_allclose(cos[0, 0, 0, 0], np.cos(4001), atol=1e-3)


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
    ours = bind(LearnedPositions(model), {"table_PD": jnp.asarray(table)})(positions)
    np.testing.assert_array_equal(ours, table[positions])


@pytest.mark.parametrize(
    ("position", "key"), [("sinusoid", "model.d_model"), ("rope", "model.head_width")]
)
def test_pairs_need_an_even_width(position, key):
    with pytest.raises(UserError, match=f"{key}=15 is odd"):
        tiny({"model.position": position, "model.head_width": 15, "model.d_model": 15})
    keys = {"model.position": position, "model.head_width": 15, "model.d_model": 15}
    tiny({**keys, key: 16})
