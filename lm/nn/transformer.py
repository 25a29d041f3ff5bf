"""The Transformer: embedding, a stack of blocks, head."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lm.errors import require
from lm.mesh import current_mesh, laid_out, put
from lm.nn.attention import CrossAttention, read
from lm.nn.cache import begin, kind
from lm.nn.config import names
from lm.nn.dropout import dropout
from lm.nn.experts import Experts
from lm.nn.feedforward import FeedForward
from lm.nn.heads import Classifier, Detector, Embedding, Head, Pooler
from lm.nn.latent import make_attention
from lm.nn.matmul import matmul
from lm.nn.norms import Norm
from lm.nn.params import matrix_init, param, stacked
from lm.nn.positions import DistanceBuckets, Table, sinusoid

# Which sublayer norms a placement has: of the branch's input, of its output, of the residual sum.
PLACEMENTS = {
    "pre": ("input",),
    "post": ("residual",),
    "sandwich": ("input", "output"),
    "output": ("output",),
}


class Block(nnx.Module):
    """One layer: attention, if there is an encoder attention to its output, and feed-forward, each
    with its norms, added to the residual stream.

    layer: a config.Layer, which says what its attention sees and whether it has experts.
    """

    def __init__(self, config, layer):
        self.config = config
        self.attention = make_attention(config, layer.local)
        if layer.cross:
            self.cross_attention = CrossAttention(config)
        if layer.experts:
            self.experts = Experts(config)
        else:
            self.feedforward = FeedForward(config)
        sublayers = ["attention"] + ["cross_attention"] * layer.cross
        sublayers += [] if config.parallel_block else ["feedforward"]
        for place in PLACEMENTS[config.norm_placement]:
            suffix = "norm" if place == "input" else f"{place}_norm"
            for name in sublayers:
                if layer.first_norm or (name, place) != ("attention", "input"):
                    setattr(self, f"{name}_{suffix}", Norm(config))

    def __call__(self, x_BTD, context, cache=None, key=None, cross=None):
        """((B, T, D), the updated cache, what the router did or {}). cross: the Context of
        attention to an encoder's output.
        """
        keys = (None,) * 6 if key is None else jax.random.split(key, 6)
        norm = getattr(self, "attention_norm", None)
        a_BTD, cache = self.attention(x_BTD, context, cache, keys[0], norm)
        if self.config.parallel_block:
            h_BTD = read(x_BTD, norm)
            f_BTD, routed = self._feedforward(h_BTD, context, keys[3])
            x_BTD = x_BTD + self._drop(a_BTD, keys[1]) + self._drop(f_BTD, keys[2])
            return x_BTD, cache, routed
        x_BTD = self._add(x_BTD, a_BTD, "attention", keys[1])
        if cross is not None:
            norm = getattr(self, "cross_attention_norm", None)
            a_BTD, _ = self.cross_attention(x_BTD, cross, None, keys[4], norm)
            x_BTD = self._add(x_BTD, a_BTD, "cross_attention", keys[5])
        h_BTD = read(x_BTD, getattr(self, "feedforward_norm", None))
        f_BTD, routed = self._feedforward(h_BTD, context, keys[3])
        return self._add(x_BTD, f_BTD, "feedforward", keys[2]), cache, routed

    def _feedforward(self, x_BTD, context, key):
        if not hasattr(self, "experts"):
            return self.feedforward(x_BTD, key), {}
        segments_BT = context.visible.segments_BT
        real_BT = None if segments_BT is None else segments_BT > 0
        y_BTD, routed = self.experts(x_BTD, real_BT, key)
        return put(y_BTD, "residual"), routed

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

    def remember(self, memory_BSD):
        """{"key_LBKSH", "value_LBKSH"}: what all layers attend to of an encoder's output."""
        graph, params = nnx.split(vars(self)["cross_attention"])

        def of_layer(params):
            both = nnx.merge(graph, params).keys_values(memory_BSD)
            return [x_BSKH.swapaxes(1, 2) for x_BSKH in both]

        keys, values = jax.lax.map(of_layer, params)
        return {"key_LBKSH": put(keys, "layer_heads"), "value_LBKSH": put(values, "layer_heads")}

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
        last = stretch.first + stretch.period
        counts = {name: self._count(name, stretch.first, last) for name in parts}
        each = {name: iter(unstacked(part, counts[name])) for name, part in parts.items()}
        for place in range(stretch.first, last):
            alike = [other.local == layers[place].local for other in layers]
            in_cycle = sum(alike[stretch.first : last])
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
            cross = contexts.get("cross")
            cross = cross and dataclasses.replace(cross, layer=number)
            if loops and is_divided():
                # A factor of 1 that, for all the compiler knows, changes with the layer: else it
                # rounds all layers' weights before the loop and keeps them, half as large again.
                one = 1 + 0.0 * number
                params = jax.tree.map(lambda w: w * one.astype(w.dtype), params)
            x_BTD = checkpoint_name(laid_out(x_BTD), "layer_input")
            block, here = nnx.merge(graph, params), None if cache is None else cache[name]
            x_BTD, here, routed = block(x_BTD, context, here, layer_key, cross)
            return (x_BTD, None if cache is None else {**cache, name: here}), routed

        return rematerialised(run, self.config, loops)


class Mtp(nnx.Module):
    """Multi-token prediction: one more layer, which reads the next token beside what the head reads
    of this one (arXiv:2412.19437, section 2.2; in the order of the released weights).
    """

    def __init__(self, config):
        self.config = config
        D, window = config.d_model, config.window * config.layers()[-1].local
        self.embedding_norm, self.hidden_norm = Norm(config), Norm(config)
        init = matrix_init(config, 2 * D, D)
        self.projection_ID = param((2 * D, D), ("width", "model"), init, config.param_dtype)
        one = {"num_layers": 1, "dense_layers": 0, "experts_every": 1, "mtp_depth": 0}
        seen = {"attention_pattern": "local" if window else "full", "window": window}
        self.layers = Layers(dataclasses.replace(config, **one, **seen))
        self.final_norm = Norm(config)

    def __call__(self, next_BTD, hidden_BTD, positions, segments, key=None):
        """((B, T, D), what the router did). next_BTD: embeddings of the tokens that follow."""
        next_BTD, hidden_BTD = self.embedding_norm(next_BTD), self.hidden_norm(hidden_BTD)
        both_BTI = jnp.concatenate([put(next_BTD, "whole"), hidden_BTD], -1)
        x_BTD = matmul(both_BTI, self.projection_ID[...], "residual")
        rows = {"positions_BT": positions, "segments_BT": segments}
        contexts, _ = begin(self.layers.config, rows, None, x_BTD.dtype)
        x_BTD, _, routed = self.layers(x_BTD, contexts, key=key)
        return put(self.final_norm(x_BTD), "whole"), routed


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
    """A tree whose arrays (rows, ...) are (cycles, rows of one, ...), or (cycles, ...) of one row:
    untouched, such a slice is not kept a second time for the backward pass.
    """
    if jax.tree.leaves(tree)[0].shape[0] == cycles:
        return tree
    return jax.tree.map(lambda x: x.reshape(cycles, -1, *x.shape[1:]), tree)


def unstacked(tree, rows):
    """A tree for each row of one cycle of `in_cycles`."""
    if rows == 1:
        return [tree]
    return [jax.tree.map(lambda x: x.squeeze(0), row) for row in split(tree, [1] * rows)]


def rematerialised(layer, config, loops):
    """The layer with what its backward pass recomputes, by config.remat. loops: it runs in a loop.

    Weights gathered over fsdp are never kept, whatever it is.
    """
    policies = jax.checkpoint_policies
    policy = None
    if config.remat == "dots":
        policy = policies.dots_with_no_batch_dims_saveable
    elif config.remat == "none":
        if not is_divided():
            return layer
        policy = _is_computed
    elif config.remat != "full" or config.offload:
        away = names(config.offload)
        here = () if config.remat == "full" else names(config.remat)
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[name for name in here if name not in away],
            names_which_can_be_offloaded=list(away),
            offload_src="device",
            offload_dst="pinned_host",
        )
    # Unrolled, the compiler would merge the second computation with the first; in a loop it cannot.
    return jax.checkpoint(layer, prevent_cse=not loops, policy=policy)


def is_divided():
    """Whether weights are divided over fsdp, and gathered where they are used."""
    mesh = current_mesh()
    return mesh is not None and mesh.shape["fsdp"] > 1


def _is_computed(primitive, *_, **__):
    """Policy: keep all but what was only moved between devices, as a gathered weight is; a custom
    gradient that is still there is that of a gather.
    """
    return primitive.name not in ("reshard", "sharding_constraint", "custom_vjp_call")


class Stack(nnx.Module):
    """Layers and what is around them: positions, token types, norms."""

    def __init__(self, config):
        self.config = config
        if config.position == "learned":
            rows, offset = config.max_positions, config.position_offset
            self.positions = Table(config, "P", rows, "positions", offset)
        elif config.position == "buckets":
            self.positions = DistanceBuckets(config)
        if config.token_types:
            self.token_types = Table(config, "Y", config.token_types, "classes")
        if config.embedding_norm:
            self.embedding_norm = Norm(config)
        self.layers = Layers(config)
        if config.final_norm:
            self.final_norm = Norm(config)

    def run(self, x_BTD, rows, types_BT=None, cache=None, memory=None, key=None):
        """(the states after the last norm (B, T, D), the cache, what the routers did).

        x_BTD: embedded tokens. rows, cache, memory: as cache.begin takes them. types_BT: of the
        tokens; without them all are 0. key: for dropout and the routers' jitter.
        """
        config, positions_BT = self.config, rows["positions_BT"]
        if config.position == "learned":
            x_BTD = (x_BTD + put_rows(self.positions(positions_BT))).astype(x_BTD.dtype)
        elif config.position.startswith("sinusoid"):
            halves = config.position == "sinusoid_halves"
            waves_BTD = sinusoid(positions_BT, config.d_model, halves).astype(x_BTD.dtype)
            x_BTD = x_BTD + put_rows(waves_BTD)
        if config.token_types:
            types_BT = jnp.zeros((1, x_BTD.shape[1]), jnp.int32) if types_BT is None else types_BT
            x_BTD = (x_BTD + put_rows(self.token_types(types_BT))).astype(x_BTD.dtype)
        if config.embedding_norm:
            x_BTD = self.embedding_norm(x_BTD)
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x_BTD = dropout(x_BTD, keys[0], config.embedding_dropout)
        contexts, cache = begin(config, rows, cache, x_BTD.dtype, memory)
        if config.position == "buckets":
            contexts |= {
                name: dataclasses.replace(context, bias_BNTS=self.positions(context.visible))
                for name, context in contexts.items()
                if name != "cross"
            }
        x_BTD, cache, routed = self.layers(x_BTD, contexts, cache, keys[1])
        if config.final_norm:
            x_BTD = self.final_norm(x_BTD)
        return put(dropout(x_BTD, keys[2], config.final_dropout), "whole"), cache, routed


class Transformer(Stack):
    """Tokens (B, T) to logits (B, T, V): a decoder, an encoder, or a decoder with an encoder."""

    def __init__(self, config):
        for key in ("param_dtype", "compute_dtype"):  # jax would make it float32, with a warning
            dtype, told = getattr(config, key), f"model.{key}='float64' needs JAX_ENABLE_X64=1"
            known = jax.dtypes.canonicalize_dtype(dtype) == dtype
            require(known, f"{told} in the environment.")
        super().__init__(config)
        self.embed = Embedding(config)
        if config.stack == "encoder_decoder":
            self.encoder = Stack(config.encoder())
        if config.head != "none":
            self.head = Head(config)
        if config.pooler:
            self.pooler = Pooler(config)
        if config.next_sentence:
            self.next_sentence = Classifier(config, 2)
        if config.detector:
            self.detector = Detector(config)
        if config.mtp_depth:
            self.mtp = Mtp(config)

    def __call__(self, tokens_BT, target_BT=None, target_rows=None, **rows):
        """Logits (B, T, V), float32 or wider; see `states`."""
        return self.logits(self.states(tokens_BT, target_BT, target_rows, **rows))

    def states(self, tokens_BT, target_BT=None, target_rows=None, **rows):
        """What the head reads, (B, T, D).

        rows: as of `hidden`. With an encoder, tokens_BT and rows are what it reads, and target_BT
        (B, T) with target_rows what the decoder reads.
        """
        if self.config.stack == "encoder_decoder":
            memory, _ = self.encode(tokens_BT, **rows)
            tokens_BT, rows = target_BT, {**(target_rows or {}), "memory": memory}
        return self.hidden(tokens_BT, **rows)[0]

    def hidden(self, tokens_BT, *, cache=None, memory=None, key=None, **rows):
        """What the head reads, (B, T, D), the cache after these tokens, and what the routers did:
        as `Experts` says, stacked over the layers with experts; {} without.

        rows: int32 (B, T) or None. positions and segments of packed documents, 0 is padding;
        token_types; of Longformer global_mask, of what a decoder reads in both directions prefix:
        1 or true. cache: None, or what `empty_cache` makes; then positions and segments are
        required. memory: of `encode`, if cache has none. key: for dropout and the routers' jitter.
        """
        types_BT = rows.pop("token_types", None)
        seen = self._rows(tokens_BT, **rows)
        return self.run(self._embedded(tokens_BT), seen, types_BT, cache, memory, key)

    def encode(self, source_BS, *, positions=None, segments=None, key=None):
        """(the encoder's output, as `hidden` takes it for memory, and what its routers did)."""
        rows = self._rows(source_BS, positions, segments)
        hidden_BSD, _, routed = self.encoder.run(self._embedded(source_BS), rows, key=key)
        if segments is None:
            segments = put(jnp.ones(source_BS.shape, jnp.int32), "tokens")
        positions_BS = put(jnp.broadcast_to(rows["positions_BT"], source_BS.shape), "tokens")
        memory = {"positions_BS": positions_BS, "segments_BS": segments, "hidden_BSD": hidden_BSD}
        return memory, routed

    def remember(self, memory):
        """The memory with all layers' keys and values in place of states: cache["cross"]."""
        rows = {name: memory[name] for name in ("positions_BS", "segments_BS")}
        return {**rows, **self.layers.remember(memory["hidden_BSD"])}

    def ahead(self, hidden_BTD, next_BT, *, positions=None, segments=None, key=None):
        """What the head reads to predict the token after the next, (B, T, D), and what the routers
        did on the way; for models with mtp_depth.

        hidden_BTD: of `hidden`. next_BT: the token that follows each.
        """
        positions = self._rows(next_BT, positions, segments)["positions_BT"]
        return self.mtp(self._embedded(next_BT), hidden_BTD, positions, segments, key)

    def logits(self, hidden_BTD):
        """(B, T, V), float32 or wider. Raises UserError if the model has no head."""
        return self.logits_of(*self.before_logits(hidden_BTD))

    def before_logits(self, hidden_BTD):
        """What `logits_of` takes: states (B, T, D), and columns of the head, {name: (..., V)}."""
        told = "the model has no head, and so no logits; take its states."
        require(self.config.head != "none", told)
        return self.head.prepared(hidden_BTD), self.head.columns(self.embed.table_VD)

    def logits_of(self, states_BTD, columns):
        """Logits, float32 or wider, of those columns."""
        config, logits_BTV = self.config, self.head.logits(states_BTD, columns)
        if config.logit_scale != 1:
            logits_BTV = logits_BTV * config.logit_scale
        if config.logit_cap:
            logits_BTV = config.logit_cap * jnp.tanh(logits_BTV / config.logit_cap)
        return logits_BTV

    def _embedded(self, tokens_BT):
        x_BTD, scale = self.embed(tokens_BT), self.config.embedding_scale
        # Rounded to the precision of what it multiplies, as Gemma was trained.
        return x_BTD if scale == 1 else x_BTD * jnp.asarray(scale, x_BTD.dtype)

    def _rows(self, tokens_BT, positions=None, segments=None, global_mask=None, prefix=None):
        """What `begin` takes. Positions count from 0 in each row, which is one for all, (1, T), if
        nothing differs between rows.
        """
        config, (batch, length) = self.config, tokens_BT.shape
        if positions is None:
            require(
                length <= config.num_positions,
                f"{length} tokens are more than the model's {config.num_positions} positions.",
            )
            positions = jnp.arange(length)[None]
            if segments is not None and config.position_pad_aware:
                positions = jnp.maximum(jnp.cumsum(segments > 0, 1) - 1, 0)
            if any(x is not None for x in (segments, global_mask, prefix)):
                positions = put(jnp.broadcast_to(positions, (batch, length)), "tokens")
        rows = {"positions_BT": positions, "segments_BT": segments}
        if global_mask is not None:
            rows["global_BT"] = global_mask > 0
        if prefix is not None:
            read_BTS = jnp.where(prefix > 0, positions, 0)[:, None]
            if segments is not None:
                same_BTS = segments[:, :, None] == segments[:, None]
                read_BTS = jnp.where(same_BTS, read_BTS, 0)
            rows["until_BT"] = jnp.where(prefix > 0, read_BTS.max(-1), positions)
        return rows


def put_rows(x_BTD):
    """Position embeddings, laid out to be added to the residual.

    A single row, which serves the whole batch, stays whole on every device.
    """
    return x_BTD if x_BTD.shape[0] == 1 else put(x_BTD, "residual")
