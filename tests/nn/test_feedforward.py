import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, expit

from lm.nn.feedforward import FeedForward, activate
from lm.nn.params import abstract_parameters, bind
from tests.nn.tiny import tiny

FORMULAS = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * expit(x),
}


def test_clamped_silu_is_its_formula():
    """arXiv:2508.10925: of large values on both sides of the clamps."""
    gate, up = np.meshgrid(np.linspace(-20, 20, 81), np.linspace(-20, 20, 81))
    low, clipped = np.minimum(gate, 7), np.clip(up, -7, 7)
    expected = (clipped + 1) * low * expit(1.702 * low)
    config = tiny({"model.activation": "clamped_silu", "model.gated": True}).model
    ours = activate(config, gate=jnp.float32(gate), up=jnp.float32(up))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_width_of_its_own():
    shapes = abstract_parameters(FeedForward(tiny().model, 7))
    assert shapes["up_DF"].shape == (16, 7) and shapes["down_FD"].shape == (7, 16)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", FORMULAS)
def test_feedforward_is_its_formula(activation, gated, bias):
    keys = {"activation": activation, "gated": gated, "feedforward_bias": bias}
    module = FeedForward(tiny({f"model.{key}": value for key, value in keys.items()}).model)
    rng = np.random.default_rng(0)
    shapes = abstract_parameters(module)
    p = {name: rng.standard_normal(leaf.shape) for name, leaf in shapes.items()}
    assert ("gate_DF" in p, "up_bias_F" in p, "gate_bias_F" in p) == (gated, bias, gated and bias)
    x = rng.standard_normal((2, 3, 16))
    up, act = x @ p["up_DF"] + p.get("up_bias_F", 0), FORMULAS[activation]
    hidden = act(x @ p["gate_DF"] + p.get("gate_bias_F", 0)) * up if gated else act(up)
    expected = hidden @ p["down_FD"] + p.get("down_bias_D", 0)
    ours = bind(module, {name: jnp.float32(value) for name, value in p.items()})(jnp.float32(x))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gated", [True, False])
def test_in_pieces_it_is_the_whole_and_holds_less(gated):
    keys = {"model.remat": "full", "model.gated": gated, "model.activation_dropout": 0.5}
    whole, pieces = (
        FeedForward(tiny({**keys, "model.feedforward_pieces": count}).model) for count in (1, 5)
    )
    rng = np.random.default_rng(0)
    shapes = abstract_parameters(whole)
    params = {name: jnp.float32(rng.standard_normal(leaf.shape)) for name, leaf in shapes.items()}
    x = jnp.float32(rng.standard_normal((2, 5, 16)))

    def gradients(module, key=None):
        def loss(params, x):
            return jnp.square(bind(module, params)(x, key)).sum()

        return jax.value_and_grad(loss, (0, 1))(params, x)

    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-2),
        *(gradients(module) for module in (pieces, whole)),
    )
    # 5 does not divide 24 hidden units, 4 does: never all of them, but with dropout.
    made = {
        module: str(jax.make_jaxpr(lambda m=module: gradients(m))()) for module in (whole, pieces)
    }
    assert "f32[2,5,24]" in made[whole] and "f32[2,5,6]" not in made[whole]
    assert "f32[2,5,6]" in made[pieces] and "f32[2,5,24]" not in made[pieces]
    one, other = (gradients(module, jax.random.key(3))[0] for module in (whole, pieces))
    assert one == other


def test_a_shared_expert_has_pieces_of_the_same_size():
    config = tiny({"model.remat": "full", "model.d_ff": 24, "model.feedforward_pieces": 6}).model
    found = []
    for width in (24, 8, 2, 48):
        module = FeedForward(config, width)
        shapes = abstract_parameters(module)
        params = {name: jnp.zeros(leaf.shape) for name, leaf in shapes.items()}
        found.append(bind(module, params)._pieces(None))
    assert found == [6, 2, 1, 6]
