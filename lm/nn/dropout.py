"""Dropout (Srivastava et al. 2014), the same on every mesh."""

import jax
import jax.numpy as jnp

from lm.mesh import placed


def keep_mask(key, shape, rate, name):
    """Dropout's multiplier: 0 with probability `rate`, else 1 / (1 - rate); equal on every mesh.

    float32, in whatever precision its factor is: in bfloat16 1 / 0.9 would be 1.109.
    """
    bits = jax.random.bits(key, shape, jnp.uint32, out_sharding=placed(name, shape))
    return (bits >= jnp.uint32(rate * 2**32)).astype(float) / (1 - rate)


def dropout(x, key, rate, name="residual"):
    """x with elements zeroed with probability `rate`, the rest scaled to the same mean.

    key None: off. name: where x lies, a key of mesh.ACTIVATIONS.
    """
    if key is None or rate == 0:
        return x
    return (x * keep_mask(key, x.shape, rate, name)).astype(x.dtype)
