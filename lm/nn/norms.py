"""LayerNorm (arXiv:1607.06450) and RMSNorm (arXiv:1910.07467)."""

import jax
import jax.numpy as jnp
from flax import nnx

from lm.nn.params import ones, param, zeros


class Norm(nnx.Module):
    """Normalises the last dims, in float32 or wider, and scales them; config.norm says how.

    letters: of the dims, one each, as in scale_D; shape: of the scale, (d_model,) if not given;
    dims: keys of mesh.PARAMETER_DIMS. A dim may be divided over devices: its mean is over all.
    """

    def __init__(self, config, letters="D", shape=None, dims=("norm",)):
        self.config, self.letters = config, letters
        shape = (config.d_model,) if shape is None else shape
        start = zeros if config.norm_offset else ones
        setattr(self, f"scale_{letters}", param(shape, dims, start, config.param_dtype))
        if config.norm_bias:
            setattr(self, f"bias_{letters}", param(shape, dims, zeros, config.param_dtype))

    def __call__(self, x):
        config, dims = self.config, tuple(range(-len(self.letters), 0))
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if config.norm == "layer_norm":
            y = y - y.mean(dims, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(dims, keepdims=True) + config.norm_eps)
        scale = getattr(self, f"scale_{self.letters}")[...].astype(y.dtype)
        y = y * (1 + scale if config.norm_offset else scale)
        if config.norm_bias:
            y = y + getattr(self, f"bias_{self.letters}")[...]
        return y.astype(x.dtype)
