"""The only place where parameters are made: shape, dims (for the sharding table) and initialiser,
in one line each.

A module holds descriptions until `bind` gives it arrays, so that a model of any size is built,
counted and sharded without allocating anything, and a model's parameters are a plain nested dict.
"""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from scipy.special import ndtr, ndtri

from lm.mesh import gathered, parameter_spec, use_mesh


def param(shape, dims, init, dtype="float32"):
    """The description of a parameter.

    dims: a key of mesh.PARAMETER_DIMS for each dim; init: see `normal`.
    """
    return nnx.Param(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)), dims=dims, init=init)


def stacked(module, num_layers):
    """The module with every parameter given a leading dim of layers."""
    for _, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        value = variable.get_value()
        variable.set_value(jax.ShapeDtypeStruct((num_layers, *value.shape), value.dtype))
        variable.set_metadata(dims=("layers", *variable.dims))
    return module


def weight(variable, dtype):
    """A parameter at its use: in the compute dtype, gathered over fsdp."""
    return gathered(variable[...].astype(dtype))


def biased(y, variable):
    """y plus a bias, added in the bias's precision, in which its gradient, a sum over all tokens,
    is then summed too: in bfloat16 it would stop growing.
    """
    return (y + variable[...]).astype(y.dtype)


def descriptions(module):
    """{path: description} of every parameter, path a tuple of names."""
    return dict(nnx.to_flat_state(nnx.state(module, nnx.Param)))


def abstract_parameters(module, mesh=None):
    """The nested dict of jax.ShapeDtypeStruct of the module's parameters, with shardings if there
    is a mesh.
    """
    shapes = {}
    for path, variable in descriptions(module).items():
        value = variable.get_value()
        place = (
            NamedSharding(mesh, parameter_spec(variable.dims, value.shape, mesh)) if mesh else None
        )
        shapes[path] = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=place)
    return _nested(shapes)


def count_parameters(module):
    return sum(math.prod(variable.get_value().shape) for variable in descriptions(module).values())


def initialise(module, seed, mesh=None):
    """The nested dict of initial parameters, born sharded. The same seed gives the same bits on
    every mesh.

    Each parameter's key is derived from its path, so that adding one changes no other.
    """
    places = abstract_parameters(module, mesh)
    described = descriptions(module)
    # LLVM would vectorise the random bits for seconds, to save a third of a moment's work.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None

    def draw():
        root, values = jax.random.key(seed), {}
        for path, variable in described.items():
            value = variable.get_value()
            place = (
                None
                if mesh is None or mesh.size == 1
                else parameter_spec(variable.dims, value.shape, mesh)
            )
            key = jax.random.fold_in(root, zlib.crc32("/".join(path).encode()))
            values[path] = variable.init(key, value.shape, value.dtype, place)
        return _nested(values)

    with use_mesh(mesh):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, places)
        return jax.jit(draw, out_shardings=shardings, compiler_options=options)()


def bind(module, params):
    """The module with arrays in place of descriptions.

    params: a nested dict as `initialise` makes it.
    """
    return nnx.merge(nnx.graphdef(module), params)


def _nested(flat):
    tree = {}
    for path, value in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def zeros(key, shape, dtype, place):
    return jnp.zeros(shape, dtype, out_sharding=place)


def ones(key, shape, dtype, place):
    return jnp.ones(shape, dtype, out_sharding=place)


# Initial values are drawn as 16 random bits that pick one of 65,536 quantiles of the distribution.
# An index is exact on every chip; the usual inverse error function differs in its last bit between
# shards of different shapes, and a run would depend on its mesh.
LEVELS = 2**16
MIDDLES = (np.arange(LEVELS) + 0.5) / LEVELS


@functools.cache
def _normal_quantiles(truncate):
    """(65536,) of the standard normal distribution, or of its part within +-truncate."""
    below = 0.0 if truncate is None else float(ndtr(-truncate))
    return ndtri(below + MIDDLES * (1 - 2 * below))


def normal(std, truncate=None):
    def init(key, shape, dtype, place):
        return _pick(std * _normal_quantiles(truncate), key, shape, dtype, place)

    return init


def uniform(limit):
    def init(key, shape, dtype, place):
        return _pick(limit * (2 * MIDDLES - 1), key, shape, dtype, place)

    return init


def _pick(quantiles, key, shape, dtype, place):
    bits = jax.random.bits(key, shape, jnp.uint16, out_sharding=place)
    return jnp.asarray(quantiles, dtype).at[bits].get(out_sharding=place)


def matrix_init(config, fan_in, fan_out, residual=False):
    """The initialiser of a matrix by `config.initializer`.

    residual: it writes to the residual stream; with `scaled_residual_init` its scale is divided by
    sqrt(2 * num_layers) (GPT-2 report, section 2.3).
    """
    scale = (2 * config.num_layers) ** -0.5 if residual and config.scaled_residual_init else 1.0
    if config.initializer == "glorot":
        return uniform(scale * (6 / (fan_in + fan_out)) ** 0.5)
    std = scale * (fan_in**-0.5 if config.initializer == "fan_in" else config.initializer_std)
    return normal(std, truncate=2 if config.initializer == "truncated_normal" else None)
