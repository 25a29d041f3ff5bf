"""The Transformer: embedding, a stack of blocks, head."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from lm.errors import require
from lm.mesh import current_mesh, put
from lm.nn.attention import keep_mask
from lm.nn.cache import begin, kind
from lm.nn.experts import Experts
from lm.nn.feedforward import FeedForward
from lm.nn.heads import Embedding, Head
from lm.nn.latent import make_attention
from lm.nn.matmul import matmul
from lm.nn.norms import Norm
from lm.nn.params import matrix_init, param, stacked, weight
from lm.nn.positions import LearnedPositions, sinusoid

# Which sublayer norms a placement has: of the branch's input, of its output, of the residual sum.
PLACEMENTS = {
    "pre": ("input",),
    "post": ("residual",),
    "sandwich": ("input", "output"),
    "output": ("output",),
}


class Block(nnx.Module):
    """One layer: attention and feed-forward, each with its norms, added to the residual stream.

    layer: a config.Layer, which says what its attention sees and whether it has experts.
    """

    def __init__(self, config, layer):
        self.config = config
        self.attention = make_attention(config, layer.local)
        if layer.experts:
            self.experts = Experts(config)
        else:
            self.feedforward = FeedForward(config)
        for place in PLACEMENTS[config.norm_placement]:
            suffix = "norm" if place == "input" else f"{place}_norm"
            setattr(self, f"attention_{suffix}", Norm(config))
            if not config.parallel_block:
                setattr(self, f"feedforward_{suffix}", Norm(config))

    def __call__(self, x_BTD, context, cache=None, key=None):
        """((B, T, D), the updated cache, what the router did or {})."""
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        h_BTD = self._norm("attention_norm", x_BTD)
        a_BTD, cache = self.attention(h_BTD, context, cache, keys[0])
        if self.config.parallel_block:
            f_BTD, routed = self._feedforward(h_BTD, context, keys[3])
            x_BTD = x_BTD + self._drop(a_BTD, keys[1]) + self._drop(f_BTD, keys[2])
            return x_BTD, cache, routed
        x_BTD = self._add(x_BTD, a_BTD, "attention", keys[1])
        h_BTD = self._norm("feedforward_norm", x_BTD)
        f_BTD, routed = self._feedforward(h_BTD, context, keys[3])
        return self._add(x_BTD, f_BTD, "feedforward", keys[2]), cache, routed

    def _feedforward(self, x_BTD, context, key):
        if not hasattr(self, "experts"):
            return self.feedforward(x_BTD), {}
        segments_BT = context.visible.segments_BT
        return self.experts(x_BTD, None if segments_BT is None else segments_BT > 0, key)

    def _norm(self, name, x_BTD):
        return getattr(self, name)(x_BTD) if hasattr(self, name) else x_BTD

    def _drop(self, x_BTD, key):
        return dropout(x_BTD, key, self.config.residual_dropout)

    def _add(self, x_BTD, branch_BTD, name, key):
        branch_BTD = self._norm(f"{name}_output_norm", self._drop(branch_BTD, key))
        return self._norm(f"{name}_residual_norm", x_BTD + branch_BTD)


class Layers(nnx.Module):
    """All blocks: each part of a block stacked over the layers that have it.

    Layers that repeat in a period run in a loop over the periods, if config.scan_layers; what is
    before and after them is unrolled (config.stretches).
    """

    def __init__(self, config):
        self.config = config
        parts = {layer: parts_of(Block(config, layer)) for layer in dict.fromkeys(config.layers())}
        self.names = tuple(tuple(parts[layer]) for layer in config.layers())
        for name, part in collections.ChainMap(*parts.values()).items():
            setattr(self, name, stacked(part, self._count(name)))

    def __call__(self, x_BTD, contexts, cache=None, key=None):
        """((B, T, D), the cache, what the routers did, stacked over the layers with experts).

        contexts, cache: as `cache.begin` gives them. key: for dropout.
        """
        carry, routed = (x_BTD, cache), []
        divided = self._divided(nnx.to_pure_dict(nnx.state(self)))
        for stretch, parts in zip(self.config.stretches(), divided, strict=True):
            loops = stretch.cycles > 1
            run = functools.partial(self._runner, contexts=contexts, key=key, loops=loops)
            run = {layer: run(layer) for layer in dict.fromkeys(self.config.layers())}
            cycle = functools.partial(self._cycle, stretch=stretch, run=run)
            if loops:
                carry, out = jax.lax.scan(cycle, carry, (jnp.arange(stretch.cycles), parts))
                out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
            else:
                carry, out = cycle(carry, (0, jax.tree.map(lambda x: x[0], parts)))
            routed += [out] if out else []
        joined = jax.tree.map(lambda *each: jnp.concatenate(each), *routed) if routed else {}
        return *carry, joined

    def _count(self, name, first=0, last=None):
        """How many of the layers from first to last have a part."""
        return sum(name in names for names in self.names[first:last])

    def _divided(self, stacks):
        """For each stretch {part: (cycles, of one cycle's layers those that have it, ...)}."""
        stretches = self.config.stretches()
        divided = [{} for _ in stretches]
        for name, stack in stacks.items():
            counts = [self._count(name, stretch.first, stretch.last) for stretch in stretches]
            pieces = split(stack, counts)
            for parts, stretch, piece in zip(divided, stretches, pieces, strict=True):
                if jax.tree.leaves(piece)[0].size:
                    parts[name] = in_cycles(piece, stretch.cycles)
        return divided

    def _cycle(self, carry, xs, stretch, run):
        """One cycle of a stretch, and what its routers did. xs: its number, and its parts."""
        (cycle, parts), routed, layers = xs, [], self.config.layers()
        each = {name: iter(unstacked(part)) for name, part in parts.items()}
        for place in range(stretch.first, stretch.first + stretch.period):
            alike = [other.local == layers[place].local for other in layers]
            in_cycle = sum(alike[stretch.first : stretch.first + stretch.period])
            rank, number = sum(alike[:place]) + cycle * in_cycle, place + cycle * stretch.period
            params = {name: next(each[name]) for name in self.names[place]}
            carry, out = run[layers[place]](carry, (number, rank, params))
            routed += [out] if out else []
        return carry, jax.tree.map(lambda *each: jnp.stack(each), *routed) if routed else {}

    def _runner(self, layer, contexts, key, loops):
        """function(carry, (number, number among those of its attention, parameters)) of a kind."""
        graph, name = nnx.graphdef(Block(self.config, layer)), kind(layer)

        def run(carry, xs):
            (x_BTD, cache), (number, rank, params) = carry, xs
            layer_key = None if key is None else jax.random.fold_in(key, number)
            context = dataclasses.replace(contexts[name], layer=rank)
            block, here = nnx.merge(graph, params), None if cache is None else cache[name]
            x_BTD, here, routed = block(x_BTD, context, here, layer_key)
            return (x_BTD, None if cache is None else {**cache, name: here}), routed

        return rematerialised(run, self.config, loops)


class Mtp(nnx.Module):
    """Multi-token prediction: one more layer, which reads the next token beside what the head reads
    of this one (arXiv:2412.19437, section 2.2; in the order of the released weights).
    """

    def __init__(self, config):
        self.config = config
        D, local = config.d_model, config.layers()[-1].local
        self.embedding_norm, self.hidden_norm = Norm(config), Norm(config)
        init = matrix_init(config, 2 * D, D)
        self.projection_ID = param((2 * D, D), ("width", "model"), init, config.param_dtype)
        self.layers = Layers(
            dataclasses.replace(
                config,
                num_layers=1,
                dense_layers=0,
                experts_every=1,
                attention_pattern="local" if local else "full",
                window=config.window if local else 0,
                mtp_depth=0,
            )
        )
        self.final_norm = Norm(config)

    def __call__(self, next_BTD, hidden_BTD, positions, segments, key=None):
        """((B, T, D), what the router did). next_BTD: embeddings of the tokens that follow."""
        next_BTD, hidden_BTD = self.embedding_norm(next_BTD), self.hidden_norm(hidden_BTD)
        both_BTI = jnp.concatenate([next_BTD, hidden_BTD], -1)
        x_BTD = matmul(both_BTI, weight(self.projection_ID, both_BTI.dtype), "residual")
        contexts, _ = begin(self.layers.config, positions, segments, None, x_BTD.dtype)
        x_BTD, _, routed = self.layers(x_BTD, contexts, key=key)
        return self.final_norm(x_BTD), routed


def parts_of(block):
    """{name: module} of what a block is made of."""
    return {name: part for name, part in vars(block).items() if isinstance(part, nnx.Module)}


def split(tree, counts):
    """Trees of `counts` rows of one whose arrays are stacked.

    By one split, whose gradient is one concatenation: that of an index adds up whole stacks.
    """
    leaves, structure = jax.tree.flatten(tree)
    pieces = [jax.lax.split(leaf, counts) for leaf in leaves]
    return [structure.unflatten(piece[n] for piece in pieces) for n in range(len(counts))]


def in_cycles(tree, cycles):
    """A tree whose arrays (rows, ...) are (cycles, rows of one, ...)."""
    return jax.tree.map(lambda x: x.reshape(cycles, -1, *x.shape[1:]), tree)


def unstacked(tree):
    """A tree for each row of one whose arrays are stacked."""
    rows = split(tree, [1] * jax.tree.leaves(tree)[0].shape[0])
    return [jax.tree.map(lambda x: x.squeeze(0), row) for row in rows]


def rematerialised(layer, config, loops):
    """The layer with what its backward pass recomputes, by config.remat. loops: it runs in a loop.

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
    return jax.checkpoint(layer, prevent_cse=not loops, policy=policy)


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
        self.layers = Layers(config)
        if config.final_norm:
            self.final_norm = Norm(config)
        if not config.tied_embedding:
            self.head = Head(config)
        if config.mtp_depth:
            self.mtp = Mtp(config)

    def __call__(self, tokens_BT, *, positions=None, segments=None):
        """Logits (B, T, V), float32 or wider.

        positions, segments: int32 (B, T), of packed documents; 0 is padding.
        """
        hidden_BTD, _, _ = self.hidden(tokens_BT, positions=positions, segments=segments)
        return self.logits(hidden_BTD)

    def hidden(self, tokens_BT, *, positions=None, segments=None, cache=None, key=None):
        """What the head reads, (B, T, D), the cache after these tokens, and what the routers did:
        as `Experts` says, stacked over the layers with experts; {} without.

        cache: None, or what `empty_cache` makes; then positions and segments are required. key: for
        dropout and the routers' jitter.
        """
        config = self.config
        if positions is None:
            positions = self._positions(tokens_BT, segments)
        x_BTD = self._embedded(tokens_BT)
        if config.position == "learned":
            x_BTD = (x_BTD + put_rows(self.positions(positions))).astype(x_BTD.dtype)
        elif config.position == "sinusoid":
            x_BTD = x_BTD + put_rows(sinusoid(positions, config.d_model).astype(x_BTD.dtype))
        if config.embedding_norm:
            x_BTD = self.embedding_norm(x_BTD)
        keys = (None, None) if key is None else jax.random.split(key)
        x_BTD = dropout(x_BTD, keys[0], config.embedding_dropout)
        contexts, cache = begin(config, positions, segments, cache, x_BTD.dtype)
        x_BTD, cache, routed = self.layers(x_BTD, contexts, cache, keys[1])
        if config.final_norm:
            x_BTD = self.final_norm(x_BTD)
        return x_BTD, cache, routed

    def ahead(self, hidden_BTD, next_BT, *, positions=None, segments=None, key=None):
        """What the head reads to predict the token after the next, (B, T, D), and what the routers
        did on the way; for models with mtp_depth.

        hidden_BTD: of `hidden`. next_BT: the token that follows each.
        """
        if positions is None:
            positions = self._positions(next_BT, segments)
        return self.mtp(self._embedded(next_BT), hidden_BTD, positions, segments, key)

    def logits(self, hidden_BTD):
        """(B, T, V), float32 or wider."""
        config = self.config
        head = self.embed.logits if config.tied_embedding else self.head
        logits_BTV = head(hidden_BTD)
        if config.logit_scale != 1:
            logits_BTV = logits_BTV * config.logit_scale
        if config.logit_cap:
            logits_BTV = config.logit_cap * jnp.tanh(logits_BTV / config.logit_cap)
        return logits_BTV

    def _embedded(self, tokens_BT):
        x_BTD, scale = self.embed(tokens_BT), self.config.embedding_scale
        # Rounded to the precision of what it multiplies, as Gemma was trained.
        return x_BTD if scale == 1 else x_BTD * jnp.asarray(scale, x_BTD.dtype)

    def _positions(self, tokens_BT, segments):
        """From 0 in each row: (1, T), or with as many rows as the segments, and where they are."""
        length = tokens_BT.shape[1]
        require(
            self.config.position != "learned" or length <= self.config.max_positions,
            f"{length} tokens are more than the model's {self.config.max_positions} positions.",
        )
        positions = jnp.arange(length)[None]
        if segments is None:
            return positions
        return put(jnp.broadcast_to(positions, segments.shape), "tokens")


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
