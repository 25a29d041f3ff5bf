"""The one matrix product of the model."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lm.mesh import current_mesh, laid_out, placed, product_gradient, together, whole_weight


def matmul(x, w, name, contract=1, in_order=True):
    """x (B, T, ...) times w (..., ...) over x's last and w's first `contract` dims, placed as
    ACTIVATIONS[name]. A weight is rounded to x's precision and gathered over fsdp here, as a matrix
    of two dims, which needs no other layout in the compute than at rest.

    in_order: on TPUs the backward pass goes on when the weight's gradient is summed over devices.
    Else the sums of several weights are put off, and all of each is kept until then; in a loop of
    one product there is no need.

    Tokens are flattened first where T is whole on every device: XLA for CPUs runs the gradient of a
    product of (B, T, D) up to 2.4 times slower than of (B*T, D), and elsewhere the reshape is free.
    """
    lead, out = x.shape[: x.ndim - contract], w.shape[contract:]
    inner = math.prod(w.shape[:contract])
    w = w.reshape(inner, math.prod(out)).astype(x.dtype)
    if current_mesh() is None:
        return (x.reshape(math.prod(lead), inner) @ w).reshape(*lead, *out)
    place, w = placed(name, x.shape), laid_out(w)
    y = _product(x.reshape(*lead, inner), w, P(*place[: len(lead) + 1]), in_order)
    return y.reshape(*lead, *out, out_sharding=place)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x, w, place, in_order):
    """Its own gradient has w's dims in w's order; jax's has them turned round, and TPUs and GPUs
    then keep every layer's once more, to turn them back.
    """
    return _forward(x, w, place, in_order)[0]


def _forward(x, w, place, in_order):
    whole = whole_weight(w)
    return jnp.matmul(x, whole, out_sharding=place), (x, w, whole)


def _backward(place, in_order, saved, dy):
    x, w, whole = saved
    dx = jnp.tensordot(dy, whole, ((-1,), (1,)), out_sharding=jax.typeof(x).sharding.spec)
    dw = laid_out(product_gradient(x, dy, jax.typeof(w).sharding.spec))
    # What tensor devices add to dx is then summed in one go with that of other products of x.
    in_order = in_order and current_mesh().shape["tensor"] == 1
    return together(dx, dw) if in_order else (dx, dw)


_product.defvjp(_forward, _backward)


def anew(function, x, weights, again=True):
    """function(x, weights). Of it the backward pass is given x and the weights at rest and nothing
    that is made of them: on TPUs it gathers and computes again, unless `again` is false.

    Worth it where much lies between the two uses and little is made again: a product as such is
    not, since its gradient does not need it.
    """
    if not again:
        return function(x, weights)

    @jax.custom_vjp
    def run(x, weights):
        return function(x, weights)

    def backward(saved, dy):
        x, weights = saved
        # x is left out: behind a barrier, a slice of all layers' inputs would become a copy.
        weights, dy = together(weights, dy)
        return jax.vjp(function, x, weights)[1](dy)

    run.defvjp(lambda x, weights: (function(x, weights), (x, weights)), backward)
    return run(x, weights)
