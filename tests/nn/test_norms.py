import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.mesh import make_mesh, put, use_mesh
from lm.nn.norms import Norm
from lm.nn.params import abstract_parameters, bind, initialise
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


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_a_scale_may_be_an_offset_to_one(kind):
    model = tiny({"model.norm": kind, "model.norm_bias": False, "model.norm_offset": True}).model
    # In bfloat16 one plus a small scale would be one.
    small = jnp.full(16, 2**-10, jnp.bfloat16)
    ours = bind(Norm(model), {"scale_D": small})(jnp.float32(X))
    np.testing.assert_allclose(ours, formula(kind, X, 1e-5) * (1 + 2**-10), rtol=1e-5, atol=1e-5)
    born = initialise(Norm(model), 0)["scale_D"]
    np.testing.assert_array_equal(born, 0)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_heads_are_normalised_together_over_devices(kind, shape):
    model = tiny({"model.norm": kind, "model.norm_bias": False}).model
    heads = Norm(model, "NH", (4, 4), ("heads", "width"))
    x = np.float32(X.reshape(2, 5, 4, 4).repeat(2, 0))
    expected = formula(kind, X, 1e-5) * SCALE
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    with use_mesh(mesh):
        places = jax.tree.map(lambda leaf: leaf.sharding, abstract_parameters(heads, mesh))
        scale = jax.device_put({"scale_NH": np.float32(SCALE.reshape(4, 4))}, places)
        ours = jax.jit(lambda scale, x: bind(heads, scale)(put(x, "heads")))(scale, x)
    np.testing.assert_allclose(
        ours, expected.reshape(2, 5, 4, 4).repeat(2, 0), rtol=1e-5, atol=1e-5
    )
