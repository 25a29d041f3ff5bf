import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.norms import Norm
from lm.nn.params import bind
from tests.nn.tiny import tiny

RNG = np.random.default_rng(0)
X = 3 + 2 * RNG.standard_normal((2, 5, 16))
SCALE, BIAS = RNG.standard_normal((2, 16))


def formula(kind, x, eps):
    if kind == "rms_norm":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def norm(kind, bias, eps=1e-5):
    keys = {"model.norm": kind, "model.norm_bias": bias, "model.norm_eps": eps}
    values = {"scale_D": jnp.float32(SCALE), **({"bias_D": jnp.float32(BIAS)} if bias else {})}
    return bind(Norm(tiny(keys).model), values)


@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_a_norm_is_its_formula(kind, bias, eps):
    ours = norm(kind, bias, eps)(jnp.float32(X))
    expected = formula(kind, X, eps) * SCALE + (BIAS if bias else 0)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_low_precision_is_rounded_only_at_the_end(kind):
    # In bfloat16 the mean of these squares would lose all but two digits.
    x = jnp.asarray(X, jnp.bfloat16)
    ours = norm(kind, bias=True)(x)
    assert ours.dtype == jnp.bfloat16
    expected = formula(kind, np.float64(x), 1e-5) * SCALE + BIAS
    np.testing.assert_allclose(np.float64(ours), expected, rtol=2**-8, atol=1e-5)
