"""The one matrix product of the model."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lm.mesh import current_mesh, gathered, laid_out, placed


def matmul(x, w, name, contract=1):
    """x (B, T, ...) times w (..., ...) over x's last and w's first `contract` dims, placed as
    ACTIVATIONS[name]. A weight is rounded to x's precision and gathered over fsdp here, as a matrix
    of two dims, which needs no other layout in the compute than at rest.

    Tokens are flattened first where T is whole on every device: XLA for CPUs runs the gradient of a
    product of (B, T, D) up to 2.4 times slower than of (B*T, D), and elsewhere the reshape is free.
    """
    lead, out = x.shape[: x.ndim - contract], w.shape[contract:]
    inner = math.prod(w.shape[:contract])
    w = w.reshape(inner, math.prod(out)).astype(x.dtype)
    if current_mesh() is None:
        return (x.reshape(math.prod(lead), inner) @ w).reshape(*lead, *out)
    place, w = placed(name, x.shape), laid_out(w)
    y = _product(x.reshape(*lead, inner), gathered(w), P(*place[: len(lead) + 1]))
    return y.reshape(*lead, *out, out_sharding=place)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, w, place):
    """Its own gradient has w's dims in w's order; jax's has them turned round, and TPUs and GPUs
    then keep every layer's once more, to turn them back.
    """
    return jnp.matmul(x, w, out_sharding=place)


def _forward(x, w, place):
    return _product(x, w, place), (x, w)


def _backward(place, saved, dy):
    x, w = saved
    lead = tuple(range(x.ndim - 1))
    dx = jnp.tensordot(dy, w, ((-1,), (1,)), out_sharding=jax.typeof(x).sharding.spec)
    dw = jnp.tensordot(x, dy, (lead, lead), out_sharding=jax.typeof(w).sharding.spec)
    return dx, laid_out(dw)


_product.defvjp(_forward, _backward)
