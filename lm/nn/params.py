"""The only place where parameters are made: shape, dims (for the sharding table) and initialiser,
in one line each.

A module holds descriptions until `bind` gives it arrays, so that a model of any size is built,
counted and sharded without allocating anything, and a model's parameters are a plain nested dict.
"""

import functools
import math
import statistics
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding

from lm.mesh import gathered, parameter_spec, use_mesh


def param(shape, dims, init, dtype="float32", buffer=False):
    """The description of a parameter.

    dims: a key of mesh.PARAMETER_DIMS for each dim; init: see `normal`. buffer: it is kept with the
    others and has no gradient; a rule of its own moves it.
    """
    value = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    return nnx.Param(value, dims=dims, init=init, buffer=buffer)


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


def biased(y, bias):
    """y plus a bias, added in the bias's precision, in which its gradient, a sum over all tokens,
    is then summed too: in bfloat16 it would stop growing.
    """
    return (y + bias[...]).astype(y.dtype)


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
        place = mesh and NamedSharding(mesh, parameter_spec(variable.dims, value.shape, mesh))
        shapes[path] = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=place)
    return unflatten_dict(shapes)


def count_parameters(module, buffers=False):
    """How many there are; buffers: count those that no gradient moves too."""
    counted = [x for x in descriptions(module).values() if buffers or not x.buffer]
    return sum(math.prod(variable.get_value().shape) for variable in counted)


def initialise(module, seed, mesh=None):
    """The nested dict of initial parameters, born sharded. The same seed gives the same bits on
    every mesh.

    Each parameter's key is derived from its path, so that adding one changes no other.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_parameters(module, mesh))
    with use_mesh(mesh):
        return jax.jit(lambda: drawn(module, seed, mesh), out_shardings=shardings)()


def drawn(module, seed, mesh=None):
    """What `initialise` gives, for a function that jax.jit compiles."""
    values, divided = {}, mesh is not None and mesh.size > 1
    for path, variable in descriptions(module).items():
        value = variable.get_value()
        place = parameter_spec(variable.dims, value.shape, mesh) if divided else None
        values[path] = variable.init(parameter_key(seed, path), value.shape, value.dtype, place)
    return unflatten_dict(values)


def bind(module, params):
    """The module with arrays in place of descriptions.

    params: a nested dict as `initialise` makes it.
    """
    return nnx.merge(nnx.graphdef(module), params)


def named(tree):
    """{"embed/table_VD": leaf, ...}: the leaves of a tree by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def nested(leaves):
    """The nested dict of {"embed/table_VD": leaf, ...}."""
    return unflatten_dict(leaves, sep="/")


def zeros(key, shape, dtype, place):
    return jnp.zeros(shape, dtype, out_sharding=place)


def ones(key, shape, dtype, place):
    return jnp.ones(shape, dtype, out_sharding=place)


# Initial values are drawn as 16 random bits that pick one of 65,536 quantiles of the distribution.
# An index is exact on every chip; the usual inverse error function differs in its last bit between
# shards of different shapes, and a run would depend on its mesh. The quantiles are cached because a
# program holds one copy of a constant that is one array.
LEVELS = 2**16
MIDDLES = (np.arange(LEVELS) + 0.5) / LEVELS


@functools.cache
def _normal_quantiles(truncate, dtype):
    """(65536,) of the standard normal distribution, or of its part within +-truncate."""
    distribution = statistics.NormalDist()
    below = 0.0 if truncate is None else distribution.cdf(-truncate)
    inside = below + MIDDLES * (1 - 2 * below)
    return np.array([distribution.inv_cdf(p) for p in inside.tolist()], dtype)


@functools.cache
def _uniform_quantiles(dtype):
    """(65536,) of the uniform distribution from -1 to 1."""
    return (2 * MIDDLES - 1).astype(dtype)


def normal(std, truncate=None):
    return functools.partial(_picked, functools.partial(_normal_quantiles, truncate), std)


def uniform(limit):
    return functools.partial(_picked, _uniform_quantiles, limit)


def _picked(quantiles, scale, key, shape, dtype, place):
    levels = jnp.asarray(quantiles(jnp.promote_types(dtype, jnp.float32)))
    bits = random_bits(key, shape, place)
    return (scale * levels.at[bits].get(out_sharding=place)).astype(dtype)


COUNTS = 2**32  # that a word tells apart


def parameter_key(seed, path):
    """Two uint32, of jax.random.fold_in(jax.random.key(seed), CRC-32 of the path)."""
    number = zlib.crc32("/".join(path).encode())
    key, high, low = (np.array(words, np.uint32) for words in ([0, seed], [0], [number]))
    return threefry(key, high, low)


def random_bits(key, shape, place):
    """uint16, the same as jax.random.bits of the same key.

    key: two uint32. place: a PartitionSpec, or None. jax's own loop over 8 parameters takes XLA for
    CPUs half a second longer to compile than this expression, and 5 times as long to run.
    """
    if math.prod(shape) > COUNTS:
        typed = jax.random.wrap_key_data(jnp.stack([*key]).ravel(), impl="threefry2x32")
        return jax.random.bits(typed, shape, jnp.uint16, out_sharding=place)
    zero = counter = jnp.zeros(shape, jnp.uint32, out_sharding=place)
    for dim, size in enumerate(shape):
        iota = jax.lax.broadcasted_iota(jnp.uint32, shape, dim, out_sharding=place)
        counter = counter * np.uint32(size) + iota
    high, low = threefry(key, zero, counter)
    return (high ^ low).astype(jnp.uint16)


def threefry(key, high, low):
    """Two uint32 for a counter of two: Threefry-2x32 of 20 rounds (Salmon et al. 2011, section
    3.3), for numpy and jax arrays.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA))
    high, low = high + keys[0], low + keys[1]
    for number in range(20):
        left = (13, 15, 26, 6, 17, 29, 16, 24)[number % 8]
        high = high + low
        low = high ^ ((low << left) | (low >> (32 - left)))
        if number % 4 == 3:
            added = number // 4 + 1
            high = high + keys[added % 3]
            low = low + keys[(added + 1) % 3] + np.uint32(added)
    return high, low


def matrix_init(config, fan_in, fan_out, residual=False, query=False):
    """The initialiser of a matrix by `config.initializer`.

    residual: it writes to the residual stream; with `scaled_residual_init` its scale is divided by
    sqrt(2 * num_layers) (GPT-2 report, section 2.3). query: it makes queries; "t5" gives them the
    scale that T5's scores lack, as the code of arXiv:1910.10683 has it.
    """
    kind = config.initializer
    scale = (2 * config.num_layers) ** -0.5 if residual and config.scaled_residual_init else 1.0
    if kind == "glorot":
        return uniform(scale * (6 / (fan_in + fan_out)) ** 0.5)
    if query and kind == "t5":
        scale *= config.head_width**-0.5
    std = scale * (fan_in**-0.5 if kind in ("fan_in", "t5") else config.initializer_std)
    return normal(std, truncate=2 if kind == "truncated_normal" else None)
