"""Rows in groups, beside one product for each group; the way of CPUs beside jax.lax.ragged_dot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.grouped import grouped_matmul

SIZES = ([7, 0, 300, 1, 0, 92], [0, 0, 5], [1], [8, 16, 8], [0, 700])


def draw(sizes):
    rng = np.random.default_rng(0)
    rows, groups = sum(sizes), len(sizes)
    shapes = ((rows, 5), (groups, 5, 3), (rows, 3))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@jax.jit
def computed(x_MI, w_EIO, sizes_E, gradient_MO):
    """(products, gradients of x and w)."""
    y_MO, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes_E), x_MI, w_EIO)
    return y_MO, pull(gradient_MO)


def by_group(x_MI, w_EIO, sizes):
    parts = np.split(x_MI, np.cumsum(sizes)[:-1])
    return np.concatenate([part @ w_IO for part, w_IO in zip(parts, w_EIO, strict=True)])


@pytest.mark.parametrize("sizes", SIZES)
def test_products_and_gradients(sizes):
    x_MI, w_EIO, gradient_MO = draw(sizes)
    y_MO, (x_gradient_MI, w_gradient_EIO) = computed(x_MI, w_EIO, np.array(sizes), gradient_MO)
    np.testing.assert_allclose(y_MO, by_group(x_MI, w_EIO, sizes), rtol=1e-4, atol=1e-5)
    expected = by_group(gradient_MO, w_EIO.swapaxes(1, 2), sizes)
    np.testing.assert_allclose(x_gradient_MI, expected, rtol=1e-4, atol=1e-5)
    ends = np.cumsum(sizes)
    for group, end in enumerate(ends):
        part = slice(end - sizes[group], end)
        expected = x_MI[part].T @ gradient_MO[part]
        np.testing.assert_allclose(w_gradient_EIO[group], expected, rtol=1e-4, atol=1e-4)


def test_gradients_of_bfloat16_are_summed_in_float32():
    """1000 ones: in bfloat16 a sum of blocks stops growing at 256."""
    x_MI, w_EIO, gradient_MO = (
        np.ones(shape, jnp.bfloat16) for shape in ((1000, 2), (1, 2, 3), (1000, 3))
    )
    y_MO, gradients = computed(x_MI, w_EIO, np.array([1000]), gradient_MO)
    assert {x.dtype.name for x in (y_MO, *gradients)} == {"bfloat16"}
    np.testing.assert_array_equal(gradients[1], 1000)


def test_other_platforms_take_the_instruction():
    x_MI, w_EIO, _ = draw(SIZES[0])

    def loss(x, w):
        return (grouped_matmul(x, w, jnp.array(SIZES[0])) ** 2).sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(x_MI, w_EIO)
    assert "ragged_dot" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "ragged_dot" not in traced.lower(lowering_platforms=("cpu",)).as_text()
