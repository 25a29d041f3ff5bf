"""The Transformer: embedding, a stack of blocks, head."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm.errors import require
from lm.mesh import current_mesh, put
from lm.nn.attention import Attention, Visible, keep_mask, kv_copies
from lm.nn.feedforward import FeedForward
from lm.nn.heads import Embedding, Head
from lm.nn.norms import Norm
from lm.nn.params import stacked
from lm.nn.positions import LearnedPositions, rotation, sinusoid

# Which sublayer norms a placement has: of the branch's input, of its output, of the residual sum.
PLACEMENTS = {
    "pre": ("input",),
    "post": ("residual",),
    "sandwich": ("input", "output"),
    "output": ("output",),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer is given besides its input.

    visible: who sees whom. rotation: of this batch's queries and keys, or None. index: the next
    token of the cache, or None without one. layer: its number, which `run_layers` sets.
    """

    visible: Visible
    rotation: tuple | None = None
    index: jax.Array | None = None
    layer: jax.Array | None = None


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with its norms, added to the residual stream."""

    def __init__(self, config):
        self.config = config
        self.attention = Attention(config)
        self.feedforward = FeedForward(config)
        for place in PLACEMENTS[config.norm_placement]:
            suffix = "norm" if place == "input" else f"{place}_norm"
            setattr(self, f"attention_{suffix}", Norm(config))
            if not config.parallel_block:
                setattr(self, f"feedforward_{suffix}", Norm(config))

    def __call__(self, x_BTD, context, cache=None, key=None):
        """(B, T, D) and the updated cache."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        h_BTD = self._norm("attention_norm", x_BTD)
        a_BTD, cache = self.attention(h_BTD, context, cache, keys[0])
        if self.config.parallel_block:
            return x_BTD + self._drop(a_BTD, keys[1]) + self._drop(
                self.feedforward(h_BTD), keys[2]
            ), cache
        x_BTD = self._add(x_BTD, a_BTD, "attention", keys[1])
        f_BTD = self.feedforward(self._norm("feedforward_norm", x_BTD))
        return self._add(x_BTD, f_BTD, "feedforward", keys[2]), cache

    def _norm(self, name, x_BTD):
        return getattr(self, name)(x_BTD) if hasattr(self, name) else x_BTD

    def _drop(self, x_BTD, key):
        return dropout(x_BTD, key, self.config.residual_dropout)

    def _add(self, x_BTD, branch_BTD, name, key):
        branch_BTD = self._norm(f"{name}_output_norm", self._drop(branch_BTD, key))
        return self._norm(f"{name}_residual_norm", x_BTD + branch_BTD)


def run_layers(layers, x_BTD, context, cache=None, key=None):
    """(B, T, D) after all layers, and their cache; scanned or unrolled, by config.scan_layers.

    layers: a Block whose parameters are stacked, as the cache's arrays are.
    """
    config = layers.config
    graph, params = nnx.split(layers)

    def layer(carry, xs):
        (x_BTD, cache), (number, params) = carry, xs
        layer_key = None if key is None else jax.random.fold_in(key, number)
        here = dataclasses.replace(context, layer=number)
        return nnx.merge(graph, params)(x_BTD, here, cache, layer_key), None

    layer = rematerialised(layer, config)
    carry, xs = (x_BTD, cache), (jnp.arange(config.num_layers), params)
    if config.scan_layers:
        return jax.lax.scan(layer, carry, xs)[0]
    for layer_xs in unstacked(xs, config.num_layers):
        carry, _ = layer(carry, layer_xs)
    return carry


def unstacked(tree, num_layers):
    """A tree for each layer of one whose arrays are stacked.

    By one split, whose gradient is one concatenation: that of an index adds up whole stacks.
    """
    leaves, structure = jax.tree.flatten(tree)
    parts = [jax.lax.split(leaf, [1] * num_layers) for leaf in leaves]
    return [structure.unflatten(part[n].squeeze(0) for part in parts) for n in range(num_layers)]


def rematerialised(layer, config):
    """The layer with what its backward pass recomputes, by config.remat.

    Weights gathered over fsdp are never kept, whatever it is.
    """
    mesh = current_mesh()
    policy = None
    if config.remat == "dots":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    elif config.remat == "none":
        if mesh is None or mesh.shape["fsdp"] == 1:
            return layer
        policy = _is_computed
    # Unrolled, the compiler would merge the second computation with the first; in a loop it cannot.
    return jax.checkpoint(layer, prevent_cse=not config.scan_layers, policy=policy)


def _is_computed(primitive, *_, **__):
    """Policy: keep all but what was only moved between devices, as a gathered weight is."""
    return primitive.name not in ("reshard", "sharding_constraint")


class Transformer(nnx.Module):
    """A decoder: tokens (B, T) to logits (B, T, V)."""

    def __init__(self, config):
        for key in ("param_dtype", "compute_dtype"):  # jax would make it float32, with a warning
            require(
                jax.dtypes.canonicalize_dtype(getattr(config, key)) == getattr(config, key),
                f"model.{key}='float64' needs JAX_ENABLE_X64=1 in the environment.",
            )
        self.config = config
        self.embed = Embedding(config)
        if config.position == "learned":
            self.positions = LearnedPositions(config)
        if config.embedding_norm:
            self.embedding_norm = Norm(config)
        self.layers = stacked(Block(config), config.num_layers)
        if config.final_norm:
            self.final_norm = Norm(config)
        if not config.tied_embedding:
            self.head = Head(config)

    def __call__(self, tokens_BT, *, positions=None, segments=None):
        """Logits (B, T, V), float32 or wider.

        positions, segments: int32 (B, T), of packed documents; 0 is padding.
        """
        hidden_BTD, _ = self.hidden(tokens_BT, positions=positions, segments=segments)
        return self.logits(hidden_BTD)

    def hidden(self, tokens_BT, *, positions=None, segments=None, cache=None, key=None):
        """What the head reads, (B, T, D), and the cache after these tokens.

        cache: None, or what `empty_cache` makes; then positions are required. key: for
        dropout.
        """
        config = self.config
        if positions is None:
            length = tokens_BT.shape[1]
            fits = config.position != "learned" or length <= config.max_positions
            require(
                fits, f"{length} tokens are more than the model's {config.max_positions} positions."
            )
            positions = jnp.arange(length)[None]
            if segments is not None:  # with as many rows, and where they are
                positions = put(jnp.broadcast_to(positions, segments.shape), "tokens")
        x_BTD = self.embed(tokens_BT)
        if config.position == "learned":
            x_BTD = (x_BTD + put_rows(self.positions(positions))).astype(x_BTD.dtype)
        elif config.position == "sinusoid":
            x_BTD = x_BTD + put_rows(sinusoid(positions, config.d_model).astype(x_BTD.dtype))
        if config.embedding_norm:
            x_BTD = self.embedding_norm(x_BTD)
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = dropout(x_BTD, keys[0], config.embedding_dropout)
        context, cache = self._context(positions, segments, cache)
        layers = None if cache is None else cache["layers"]
        x_BTD, layers = run_layers(self.layers, x_BTD, context, layers, keys[1])
        if config.final_norm:
            x_BTD = self.final_norm(x_BTD)
        return x_BTD, None if cache is None else {**cache, "layers": layers}

    def logits(self, hidden_BTD):
        """(B, T, V), float32 or wider."""
        head = self.embed.logits if self.config.tied_embedding else self.head
        return head(hidden_BTD)

    def _context(self, positions, segments, cache):
        """The layers' Context, and the cache with these tokens' positions and segments in it."""
        config = self.config
        turned = None
        if config.position == "rope":
            turned = rotation(positions, config.head_width, config.rope_theta, config.compute_dtype)
        if cache is None:
            return Context(Visible(positions, positions, segments, segments), turned), None
        index, length = cache["index"], positions.shape[1]
        keys = {
            "positions_BS": jax.lax.dynamic_update_slice_in_dim(
                cache["positions_BS"], positions, index, 1
            ),
            "segments_BS": jax.lax.dynamic_update_slice_in_dim(
                cache["segments_BS"], segments, index, 1
            ),
        }
        visible = Visible(positions, keys["positions_BS"], segments, keys["segments_BS"])
        return Context(visible, turned, index), {**cache, **keys, "index": index + length}


def put_rows(x_BTD):
    """Position embeddings, laid out to be added to the residual.

    A single row, which serves the whole batch, stays whole on every device.
    """
    return x_BTD if x_BTD.shape[0] == 1 else put(x_BTD, "residual")


def dropout(x_BTD, key, rate):
    """x with elements zeroed with probability `rate`, the rest scaled to the same mean.

    key None: off.
    """
    if key is None or rate == 0:
        return x_BTD
    return (x_BTD * keep_mask(key, x_BTD.shape, rate, "residual")).astype(x_BTD.dtype)


def empty_cache(config, batch, length):
    """The cache of `length` tokens for `batch` rows: plain arrays, carried by whoever decodes.

    key_LBKSH and value_LBKSH in the compute dtype; positions and segments (B, S); segment 0 is
    empty.
    """
    heads = config.num_kv_heads * kv_copies(config)
    shape = (config.num_layers, batch, heads, length, config.head_width)
    layers = {name: jnp.zeros(shape, config.compute_dtype) for name in ("key_LBKSH", "value_LBKSH")}
    rows = {name: jnp.zeros((batch, length), jnp.int32) for name in ("positions_BS", "segments_BS")}
    rows = jax.tree.map(lambda x: put(x, "tokens"), rows)
    layers = jax.tree.map(lambda x: put(x, "layer_heads"), layers)
    return {"layers": layers, "index": jnp.zeros((), jnp.int32), **rows}
