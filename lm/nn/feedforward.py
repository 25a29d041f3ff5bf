"""The feed-forward sublayer, plain (arXiv:1706.03762, section 3.3) or gated (arXiv:2002.05202)."""

import functools

import jax
from flax import nnx

from lm.nn.matmul import matmul
from lm.nn.params import biased, matrix_init, param, weight, zeros

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class FeedForward(nnx.Module):
    def __init__(self, config):
        self.config = config
        D, F, dtype = config.d_model, config.d_ff, config.param_dtype
        names = ("gate", "up") if config.gated else ("up",)
        for name in names:
            setattr(
                self,
                f"{name}_DF",
                param((D, F), ("model", "hidden"), matrix_init(config, D, F), dtype),
            )
        self.down_FD = param(
            (F, D), ("hidden", "model"), matrix_init(config, F, D, residual=True), dtype
        )
        if config.feedforward_bias:
            for name in names:
                setattr(self, f"{name}_bias_F", param((F,), ("hidden",), zeros, dtype))
            self.down_bias_D = param((D,), ("norm",), zeros, dtype)

    def __call__(self, x_BTD):
        act = ACTIVATIONS[self.config.activation]
        up_BTF = self._branch("up", x_BTD)
        hidden_BTF = act(self._branch("gate", x_BTD)) * up_BTF if self.config.gated else act(up_BTF)
        y_BTD = matmul(hidden_BTF, weight(self.down_FD, x_BTD.dtype), "residual")
        if self.config.feedforward_bias:
            y_BTD = biased(y_BTD, self.down_bias_D)
        return y_BTD

    def _branch(self, name, x_BTD):
        h_BTF = matmul(x_BTD, weight(getattr(self, f"{name}_DF"), x_BTD.dtype), "hidden")
        if self.config.feedforward_bias:
            h_BTF = biased(h_BTF, getattr(self, f"{name}_bias_F"))
        return h_BTF
