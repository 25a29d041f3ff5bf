"""LayerNorm (arXiv:1607.06450) and RMSNorm (arXiv:1910.07467)."""

import jax
import jax.numpy as jnp
from flax import nnx

from lm.nn.params import ones, param, zeros


class Norm(nnx.Module):
    """Normalises the last dim, in float32 or wider, and scales it; config.norm says which."""

    def __init__(self, config):
        self.config = config
        width = (config.d_model,)
        self.scale_D = param(width, ("norm",), ones, config.param_dtype)
        if config.norm_bias:
            self.bias_D = param(width, ("norm",), zeros, config.param_dtype)

    def __call__(self, x_BTD):
        config = self.config
        x = x_BTD.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
        if config.norm == "layer_norm":
            x = x - x.mean(-1, keepdims=True)
        y = (
            x
            * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + config.norm_eps)
            * self.scale_D[...]
        )
        if config.norm_bias:
            y = y + self.bias_D[...]
        return y.astype(x_BTD.dtype)
