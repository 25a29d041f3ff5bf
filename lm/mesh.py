"""The device mesh, and the one table that says where every kind of tensor lives.

Mesh axes carry their sharding in the type of every array (JAX's explicit mode): a wrong placement
is an error at trace time and not a silent gather. Without a mesh, or on one device, every function
here does nothing.
"""

import collections
import contextlib
import contextvars
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.axes import AXES, check_sizes, divided_sizes

BATCH = ("data", "fsdp")
TILE = 128  # columns that TPUs keep together: fewer are padded
AT_ONCE = 32  # devices, of which a TPU gathers without stages

# The dims of a parameter at rest. Where the model uses one, the fsdp axis is gathered (`gathered`
# and `whole_weight`, below).
PARAMETER_DIMS = {
    "layers": None,
    "model": "fsdp",  # D, of every matrix
    "heads": "tensor",  # N
    "kv_heads": "tensor",  # K; copied where there are fewer than tensor devices
    "width": None,  # H
    "latent": None,  # C and Q, of latent attention
    "hidden": "tensor",  # F
    "experts": None,  # E
    "vocab": "tensor",  # V
    "positions": None,
    "buckets": None,  # R, of distances
    "classes": None,
    "norm": None,  # scales and biases: too small to divide
}

# Activations. Of their features only heads, hidden units and the vocabulary are divided.
ACTIVATIONS = {
    "tokens": P(BATCH, None),  # BT
    "fsdp_tokens": P("data", None),  # BT, of all devices along fsdp
    "columns": P("data", None, "fsdp"),  # BTD: of those tokens, a part of D
    "residual": P(BATCH, "tensor", None),  # BTD between sublayers: norms have a part of T each
    "whole": P(BATCH, None, None),  # BTD as sublayers and heads read it
    "heads": P(BATCH, None, "tensor", None),  # BTNH and BSKH
    "copied_heads": P(BATCH, None, None, None),  # BTKH of fewer key heads than tensor devices
    "layer_heads": P(None, BATCH, "tensor", None, None),  # LBKSH: the cache
    "layer_copied_heads": P(None, BATCH, None, None, None),  # the same, of one key head for all
    "latent": P(BATCH, None, None),  # BTC, BTQ and BTR
    "head_vectors": P("tensor"),  # N, what each head has
    "head_matrices": P(None, "tensor", None),  # DNH: weights of heads, gathered over fsdp
    "scores": P(BATCH, "tensor", None, None),  # BNTS
    "row_scores": P(None, "tensor", None, None),  # 1NTS, of all rows alike
    "bucket_heads": P(None, "tensor"),  # RN, of distances
    "hidden": P(BATCH, None, "tensor"),  # BTF
    "summands": P("tensor", BATCH, None, None),  # SBTD: what each tensor device adds to the sum
    "logits": P(BATCH, None, "tensor"),  # BTV
    "vocab": P("tensor"),  # V
    "expert_inputs": P(None, "fsdp", "tensor"),  # EDF: weights of experts
    "expert_outputs": P(None, "tensor", "fsdp"),  # EFD
    "expert_biases": P(None, "tensor"),  # EF
    "texts": P(None, None),  # CD: the vectors of all texts
    "microbatches": P(None, BATCH, None),  # a batch as the train step takes it: (A, B/A, T)
}


def make_mesh(data=-1, fsdp=1, tensor=1, devices=None, *, dcn_data=1, dcn_fsdp=1, dcn_tensor=1):
    """A mesh of all devices, or of those given; a size of -1 takes what is left.

    Of an axis that goes over slices (dcn_), neighbours are of one slice as far as it reaches.
    Raises UserError if the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    sizes |= {"dcn_data": dcn_data, "dcn_fsdp": dcn_fsdp, "dcn_tensor": dcn_tensor}
    slices = slices_of(devices, sizes)
    within, over = divided_sizes(sizes, len(devices), num_slices=slices and len(slices))
    # On one device there is nothing to place, and plain types keep every JAX function usable.
    kind = AxisType.Explicit if len(devices) > 1 else AxisType.Auto
    kinds = (kind,) * len(AXES)
    if slices is None:
        return jax.make_mesh(tuple(within.values()), AXES, axis_types=kinds, devices=devices)
    parts = np.stack([create_device_mesh(tuple(within.values()), part) for part in slices])
    whole = parts.reshape(*over.values(), *within.values()).transpose(0, 3, 1, 4, 2, 5)
    shape = [within[axis] * over[axis] for axis in AXES]
    return jax.sharding.Mesh(whole.reshape(shape), AXES, axis_types=kinds)


def slices_of(devices, sizes):
    """The devices of each slice, or of each process where the platform has no slices; None if all
    dcn sizes are 1. CPUs of one process, which only tests have, are cut as the sizes need.
    """
    over = [size for name, size in sizes.items() if name.startswith("dcn_")]
    if all(size == 1 for size in over):
        return None
    by_slice = collections.defaultdict(list)
    for device in devices:
        by_slice[getattr(device, "slice_index", 0)].append(device)
    if len(by_slice) == 1:
        by_slice.clear()
        for device in devices:
            by_slice[device.process_index].append(device)
    count = math.prod(size for size in over if size > 0)
    if len(by_slice) == 1 and devices[0].platform == "cpu" and len(devices) % count == 0:
        return np.array(devices).reshape(count, -1).tolist()
    return list(by_slice.values())


def mesh_of(config, devices=None):
    """The mesh of an lm.config.Config. Raises UserError if it does not fit."""
    mesh = make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    check_sizes(mesh.shape, config.model, config.data.batch_size, config.train.accumulation_steps)
    return mesh


def parameter_spec(dims, shape, mesh):
    """The PartitionSpec of a parameter at rest; dims are keys of PARAMETER_DIMS."""
    axes = []
    for dim, size in zip(dims, shape, strict=True):
        axis = PARAMETER_DIMS[dim]
        copied = dim == "kv_heads" and size % mesh.shape["tensor"]
        axes.append(None if copied else axis)
    return P(*axes)


def divided_over_data(spec, shape, mesh):
    """The PartitionSpec of a moment whose parameter has `spec`, divided over data too (ZeRO-1):
    along the first dim that divides, of those that other axes divide already if there is one.
    """
    axes = [() if axis is None else (axis,) for axis in (*spec, *[None] * (len(shape) - len(spec)))]
    for dim in sorted(range(len(shape)), key=lambda dim: not axes[dim]):
        parts = math.prod(mesh.shape[axis] for axis in ("data", *axes[dim]))
        if shape[dim] % parts == 0:
            axes[dim] = (*axes[dim], "data")
            break
    return P(*(axis or None for axis in axes))


def sharding(mesh, name):
    """The NamedSharding of an activation: a key of ACTIVATIONS."""
    return NamedSharding(mesh, ACTIVATIONS[name])


def current_mesh():
    """The mesh set by `use_mesh`; None without one, or with one device: nothing to place."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


@contextlib.contextmanager
def use_mesh(mesh):
    """The context in which a model runs on this mesh."""
    if mesh is None or mesh.size == 1:
        yield
        return
    token = _one_slice.set(in_one_slice(mesh))
    try:
        with jax.set_mesh(mesh):
            yield
    finally:
        _one_slice.reset(token)


# Whether devices along fsdp are of one slice: of several, XLA knows which links are slow.
_one_slice = contextvars.ContextVar("one_slice", default=False)


def in_one_slice(mesh):
    """Whether all devices along fsdp are of one slice, wherever one is along the other axes."""
    rows = np.moveaxis(mesh.devices, mesh.axis_names.index("fsdp"), -1)
    slices = np.vectorize(lambda device: getattr(device, "slice_index", 0))(rows)
    return bool((slices == slices[..., :1]).all())


def placed(name, shape):
    """The PartitionSpec of an activation of this shape; None without a mesh.

    The tensor axis is left out of T where it does not divide it, as in decoding, token by token.
    """
    mesh = current_mesh()
    if mesh is None:
        return None
    spec = ACTIVATIONS[name]
    if name == "residual" and shape[1] % mesh.shape["tensor"]:
        return ACTIVATIONS["whole"]
    return spec


def put(x, name):
    """x, moved to where ACTIVATIONS keeps this kind of tensor."""
    return x if current_mesh() is None else _put(x, placed(name, x.shape))


def _put(x, spec):
    mesh = current_mesh()
    if mesh is None or jax.typeof(x).sharding.spec == spec:
        return x
    explicit = AxisType.Explicit in mesh.axis_types
    return (jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint)(x, spec)


def moved(tree, shardings):
    """A pytree of arrays, each moved to its NamedSharding's spec; shardings: the same pytree."""
    return jax.tree.map(lambda x, sharding: _put(x, sharding.spec), tree, shardings)


def gathered(w):
    """A parameter at its use: gathered over fsdp, still divided over tensor."""
    mesh = current_mesh()
    if mesh is None:
        return w
    return _put(w, _without_fsdp(jax.typeof(w).sharding.spec))


def laid_out(x):
    """x (..., rows, columns), and its gradient, with neighbours in memory as in a parameter at
    rest. Compilers for TPUs else choose by what is next to an operation, and keep a second copy of
    a stack of weights or of layers' inputs, turned round, or one half of whose tiles is padding.
    """
    if current_mesh() is None:
        return x
    # On each device's part: a constraint on the whole array would have it gathered.
    spec = jax.typeof(x).sharding.spec
    return jax.shard_map(_laid_out, in_specs=spec, out_specs=spec)(x)


def _laid_out(x, parts=1):
    """`laid_out` on one device; parts: as if x were cut into so many along its columns."""

    def on_tpu(x):
        order = list(range(x.ndim))
        if (x.shape[-1] // parts) % TILE and not x.shape[-2] % TILE:
            order[-2:] = order[-1], order[-2]
        return with_layout_constraint(x, Layout(tuple(order)))

    return jax.lax.platform_dependent(x, tpu=on_tpu, default=lambda x: x)


def together(*values):
    """values, of which a TPU uses none before all are there.

    Other compilers overlap what is moved with what is computed, which this would keep them from.
    """

    def on_tpu(*values):
        return jax.lax.optimization_barrier(values)

    return jax.lax.platform_dependent(*values, tpu=on_tpu, default=lambda *values: values)


def whole_weight(w):
    """A weight gathered over fsdp, for `product_gradient`, in which it is divided again."""
    spec = jax.typeof(w).sharding.spec
    if "fsdp" not in spec or not _stages():
        return gathered(w)
    gather = functools.partial(_whole, dim=spec.index("fsdp"))
    on_tpu = jax.shard_map(gather, in_specs=spec, out_specs=_without_fsdp(spec), check_vma=False)
    return jax.lax.platform_dependent(w, tpu=on_tpu, default=gathered)


def product_gradient(x, dy, spec):
    """Of x (B, T, I) @ w the gradient (I, O) of w, placed as `spec`, from that of the product.

    For TPUs alone it is written out what is moved; other compilers scatter sums as it is. (XLA for
    CPUs, of a program that was stored, mixes up collectives that are written out.)
    """
    lead = tuple(range(x.ndim - 1))

    def default(x, dy):
        dw = jnp.tensordot(x, dy, (lead, lead), out_sharding=_without_fsdp(spec))
        return _put(dw, spec)

    if "fsdp" not in spec or not _stages():
        return default(x, dy)

    def of_device(x, dy):
        dw = _scattered(jnp.tensordot(x, dy, (lead, lead)), spec.index("fsdp"))
        return jax.lax.psum(dw, "data")

    def on_tpu(x, dy):
        rows, columns = _without_fsdp(P(*spec, *[None] * (2 - len(spec))))
        places = tuple(P(BATCH, *[None] * (x.ndim - 2), axis) for axis in (rows, columns))
        x, dy = (_put(*each) for each in zip((x, dy), places, strict=True))
        return jax.shard_map(of_device, in_specs=places, out_specs=spec, check_vma=False)(x, dy)

    return jax.lax.platform_dependent(x, dy, tpu=on_tpu, default=default)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _whole(w, dim):
    """On one device, which has a part of dim `dim` of a weight: all of it."""
    groups = _stages() if current_mesh().shape["fsdp"] > AT_ONCE else (None,)
    for group in reversed(groups):
        w = jax.lax.all_gather(w, "fsdp", axis=dim, tiled=True, axis_index_groups=group)
    return w


def _scattered(dw, dim):
    """The other way: the sum of all devices' gradients of a weight, of which each has its part."""
    dw = _laid_out(dw, current_mesh().shape["fsdp"] if dim == dw.ndim - 1 else 1)
    for group in _stages():
        of_group = {"scatter_dimension": dim, "tiled": True, "axis_index_groups": group}
        dw = jax.lax.psum_scatter(dw, "fsdp", **of_group)
    return dw


_whole.defvjp(lambda w, dim: (_whole(w, dim), None), lambda dim, _, dw: (_scattered(dw, dim),))


def _without_fsdp(spec):
    return P(*(None if axis == "fsdp" else axis for axis in spec))


def _stages():
    return stages(current_mesh().shape["fsdp"]) if _one_slice.get() else ()


def stages(size):
    """Of a scatter over `size` devices in two stages, of nearly as many each, the groups of each.

    Compilers for TPUs make of one stage over a whole slice an all-reduce, which moves twice as
    much and keeps all of it, and beyond AT_ONCE devices of a gather too.
    """
    inner = next(n for n in range(math.isqrt(size), 0, -1) if size % n == 0)
    if inner == 1:
        return ()
    numbers = np.arange(size).reshape(-1, inner)
    return numbers.T.tolist(), numbers.tolist()


def in_columns(tree, size):
    """(chunks, rest) of a pytree of arrays (..., V): chunks has up to `size` columns of each in
    every step of a loop over its first dim, rest what is left, or None. There is none where V is a
    multiple of anything from size / 2 to size.

    Where V is divided over tensor, every device has its own part of each chunk.
    """
    mesh = current_mesh()
    shards = mesh.shape["tensor"] if mesh else 1
    (total,) = {x.shape[-1] for x in jax.tree.leaves(tree)}
    size = max(1, size // shards)
    size = next((n for n in range(size, size // 2, -1) if total // shards % n == 0), size)
    count = total // shards // size

    def reshaped(x, lead, *last):
        shape, places = zip(*last, strict=True)
        place = P(*jax.typeof(x).sharding.spec[:lead], *places) if mesh else None
        return x.reshape(*x.shape[:lead], *shape, out_sharding=place)

    def of_all(x, first, last):
        """Of each device's part of V the columns from first to last, a multiple of `size`."""
        lead = x.ndim - 1
        x = reshaped(x, lead, (shards, "tensor"), (total // shards, None))[..., first:last]
        x = reshaped(x, lead + 1, (-1, None), (min(size, last - first), None))
        return reshaped(jnp.moveaxis(x, -2, 0), lead + 1, (-1, "tensor"))

    end = count * size
    chunks = jax.tree.map(lambda x: of_all(x, 0, end), tree)
    if end * shards == total:
        return chunks, None
    return chunks, jax.tree.map(lambda x: of_all(x, end, total // shards)[0], tree)


def piece(w, dim, index, count):
    """The index-th of `count` equal pieces of a dim, of each device its own part's."""

    def cut(w, index):
        size = w.shape[dim] // count
        return jax.lax.dynamic_slice_in_dim(w, index * size, size, dim)

    if current_mesh() is None:
        return cut(w, index)
    spec = jax.typeof(w).sharding.spec
    return jax.shard_map(cut, in_specs=(spec, P()), out_specs=spec, check_vma=False)(w, index)


def local(function, in_names, out_names):
    """`function` run by every device on its own part, so that its body is plain JAX and names no
    axis.

    in_names, out_names: for each argument and result a key of ACTIVATIONS, or None for what every
    device has whole; an argument that is None stays None. One name stands for a whole pytree. What
    is divided over fsdp alone is a weight: the function gets it gathered.
    """
    mesh = current_mesh()
    if mesh is None:
        return function

    def specs(names):
        return jax.tree.map(
            lambda name: P() if name is None else ACTIVATIONS[name],
            names,
            is_leaf=lambda name: name is None,
        )

    def mapped(function, ins):
        return jax.shard_map(
            function, mesh=mesh, in_specs=ins, out_specs=specs(out_names), check_vma=False
        )

    ins = specs(tuple(in_names))
    divided = [spec for spec in jax.tree.leaves(ins) if "fsdp" in spec]
    if not divided:
        return mapped(function, ins)

    def changed(args, change):
        """args, those that fsdp divides by `change` of one and its dim."""

        def of_spec(spec, arg):
            return change(arg, spec.index("fsdp")) if "fsdp" in spec else arg

        return jax.tree.map(of_spec, ins, args)

    def default(*args):
        whole = changed(args, lambda w, dim: gathered(w))
        return mapped(function, jax.tree.map(_without_fsdp, ins))(*whole)

    def on_tpu(*args):
        return mapped(lambda *args: function(*changed(args, _whole)), ins)(*args)

    def run(*args):
        if not _stages():
            return default(*args)
        return jax.lax.platform_dependent(*args, tpu=on_tpu, default=default)

    return run
