"""The device mesh, and the one table that says where every kind of tensor lives.

Mesh axes carry their sharding in the type of every array (JAX's explicit mode): a wrong placement
is an error at trace time and not a silent gather. Without a mesh, or on one device, every function
here does nothing.
"""

import contextlib
import math

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.axes import AXES, axis_sizes
from lm.errors import UserError, require

BATCH = ("data", "fsdp")

# The dims of a parameter at rest. Where the model uses one, the fsdp axis is gathered (`gathered`,
# below).
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
    "residual": P(BATCH, None, None),  # BTD
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
    "expert_inputs": P(None, None, "tensor"),  # EDF: weights of experts, gathered over fsdp
    "expert_outputs": P(None, "tensor", None),  # EFD
    "expert_biases": P(None, "tensor"),  # EF
    "texts": P(None, None),  # CD: the vectors of all texts
    "microbatches": P(None, BATCH, None),  # a batch as the train step takes it: (A, B/A, T)
}


def make_mesh(data=-1, fsdp=1, tensor=1, devices=None):
    """A mesh of all devices, or of those given; a size of -1 takes what is left.

    Raises UserError if the product of the sizes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = axis_sizes({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices))
    # On one device there is nothing to place, and plain types keep every JAX function usable.
    kind = AxisType.Explicit if len(devices) > 1 else AxisType.Auto
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(kind,) * len(AXES), devices=devices
    )


def check_mesh(mesh, model, batch_size, accumulation_steps=1):
    """Raise UserError unless the mesh divides the model's dims and the batch.

    model: a TransformerConfig.
    """
    tensor, fsdp = mesh.shape["tensor"], mesh.shape["fsdp"]
    shards = mesh.shape["data"] * fsdp
    part = batch_size // accumulation_steps
    if part % shards:
        nearest = max(1, round(part / shards)) * shards * accumulation_steps
        raise UserError(
            f"data.batch_size={batch_size} in train.accumulation_steps={accumulation_steps} parts "
            f"does not divide over the {shards} data shards of mesh {dict(mesh.shape)}; "
            f"the nearest that does is {nearest}."
        )
    require(
        model.d_model % fsdp == 0,
        f"mesh.fsdp={fsdp} does not divide model.d_model={model.d_model}; "
        f"--config.mesh.fsdp={math.gcd(fsdp, model.d_model)} --config.mesh.data=-1 does.",
    )
    heads, kv_heads = model.num_heads, model.num_kv_heads

    def fits(size):
        return heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)

    if not fits(tensor):
        largest = max(size for size in range(1, tensor) if tensor % size == 0 and fits(size))
        remedy = f"--config.mesh.tensor={largest} --config.mesh.data=-1 fits"
        require(
            heads % tensor == 0,
            f"mesh.tensor={tensor} does not divide model.num_heads={heads}; {remedy}, or a model "
            f"of num_heads={-(-heads // tensor) * tensor}.",
        )
        raise UserError(
            f"mesh.tensor={tensor} neither divides model.num_kv_heads={kv_heads} nor is a multiple "
            f"of it; {remedy}."
        )
    dense = not all(layer.experts for layer in model.layers())
    widths = ["d_ff"] if dense else []
    widths += ["expert_d_ff"] if model.num_experts else []
    widths += ["shared_expert_d_ff"] if model.shared_expert_d_ff else []
    for key in (*widths, "vocab_size"):
        size = getattr(model, key)
        require(
            size % tensor == 0,
            f"mesh.tensor={tensor} does not divide model.{key}={size}; the next that it divides is "
            f"--config.model.{key}={-(-size // tensor) * tensor}.",
        )


def parameter_spec(dims, shape, mesh):
    """The PartitionSpec of a parameter at rest; dims are keys of PARAMETER_DIMS."""
    axes = []
    for dim, size in zip(dims, shape, strict=True):
        axis = PARAMETER_DIMS[dim]
        copied = dim == "kv_heads" and size % mesh.shape["tensor"]
        axes.append(None if copied else axis)
    return P(*axes)


def sharding(mesh, name):
    """The NamedSharding of an activation: a key of ACTIVATIONS."""
    return NamedSharding(mesh, ACTIVATIONS[name])


def current_mesh():
    """The mesh set by `use_mesh`; None without one, or with one device: nothing to place."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def use_mesh(mesh):
    """The context in which a model runs on this mesh."""
    return contextlib.nullcontext() if mesh is None or mesh.size == 1 else jax.set_mesh(mesh)


def put(x, name):
    """x, moved to where ACTIVATIONS keeps this kind of tensor."""
    return _put(x, ACTIVATIONS[name])


def _put(x, spec):
    mesh = current_mesh()
    if mesh is None:
        return x
    explicit = AxisType.Explicit in mesh.axis_types
    return (jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint)(x, spec)


def gathered(w):
    """A parameter at its use: gathered over fsdp, still divided over tensor."""
    mesh = current_mesh()
    if mesh is None:
        return w
    spec = jax.typeof(w).sharding.spec
    return _put(w, P(*(None if axis == "fsdp" else axis for axis in spec)))


def local(function, in_names, out_names):
    """`function` run by every device on its own part, so that its body is plain JAX and names no
    axis.

    in_names, out_names: for each argument and result a key of ACTIVATIONS, or None for what every
    device has whole; an argument that is None stays None. One name stands for a whole pytree.
    """
    mesh = current_mesh()
    if mesh is None:
        return function

    def spec(name):
        return P() if name is None else ACTIVATIONS[name]

    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=jax.tree.map(spec, tuple(in_names), is_leaf=lambda name: name is None),
        out_specs=jax.tree.map(spec, out_names, is_leaf=lambda name: name is None),
        check_vma=False,
    )
