"""The feed-forward sublayer, plain (arXiv:1706.03762, section 3.3) or gated (arXiv:2002.05202)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lm.nn.dropout import dropout
from lm.nn.matmul import matmul
from lm.nn.params import biased, matrix_init, param, weight, zeros

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def branches(config):
    """Names of the products that the hidden layer is made of."""
    return ("gate", "up") if config.gated else ("up",)


def activate(config, up, gate=None):
    """The hidden layer from its branches."""
    if gate is None:
        return ACTIVATIONS[config.activation](up)
    if config.activation == "clamped_silu":  # arXiv:2508.10925, and OpenAI's code
        gate, up = jnp.minimum(gate, 7), jnp.clip(up, -7, 7)
        return gate * jax.nn.sigmoid(1.702 * gate) * (up + 1)
    return ACTIVATIONS[config.activation](gate) * up


class FeedForward(nnx.Module):
    def __init__(self, config, width=None):
        """width: of the hidden layer, config.d_ff if None."""
        self.config = config
        D, F, dtype = config.d_model, width or config.d_ff, config.param_dtype
        init, names = matrix_init(config, D, F), branches(config)
        for name in names:
            setattr(self, f"{name}_DF", param((D, F), ("model", "hidden"), init, dtype))
        init = matrix_init(config, F, D, residual=True)
        self.down_FD = param((F, D), ("hidden", "model"), init, dtype)
        if config.feedforward_bias:
            for name in names:
                setattr(self, f"{name}_bias_F", param((F,), ("hidden",), zeros, dtype))
            self.down_bias_D = param((D,), ("norm",), zeros, dtype)

    def __call__(self, x_BTD, key=None):
        """(B, T, D). key: for dropout, None: off."""
        branched = {name: self._branch(name, x_BTD) for name in branches(self.config)}
        hidden_BTF = activate(self.config, **branched)
        hidden_BTF = dropout(hidden_BTF, key, self.config.activation_dropout, "hidden")
        y_BTD = matmul(hidden_BTF, weight(self.down_FD, x_BTD.dtype), "residual")
        if self.config.feedforward_bias:
            y_BTD = biased(y_BTD, self.down_bias_D)
        return y_BTD

    def _branch(self, name, x_BTD):
        h_BTF = matmul(x_BTD, weight(getattr(self, f"{name}_DF"), x_BTD.dtype), "hidden")
        if self.config.feedforward_bias:
            h_BTF = biased(h_BTF, getattr(self, f"{name}_bias_F"))
        return checkpoint_name(h_BTF, name)
