"""Attention: projections, positions and cache here; the attention function itself is a backend
anyone can add.

A backend is plain `jnp` on local arrays: `local` runs it on every device's own part of the batch
and heads.

    @backend("mine")
    def mine(q_BTNH, k_BSKH, v_BSKH, visible, *, scale, keep_BNTS=None):
        ...
        return out_BTNH

What else `plain` takes is given only where the model needs it; without it that model is refused.
"""

import dataclasses
import functools
import inspect
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lm.errors import did_you_mean, require
from lm.mesh import current_mesh, local, put
from lm.nn.dropout import keep_mask
from lm.nn.matmul import anew, matmul
from lm.nn.norms import Norm
from lm.nn.params import biased, matrix_init, normal, param, weight, zeros
from lm.nn.positions import alibi_bias, alibi_slopes, relative_bias, rotate

BACKENDS = {}


def backend(name):
    """Decorator: make an attention function available as model.attention_backend=name."""

    def register(function):
        BACKENDS[name] = function
        return function

    return register


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visible:
    """Which keys a query may see: those of its own segment, and of those, if causal, the ones at
    its own position or before.

    Positions (B or 1, T) and (B or 1, S); segments the same or None, where all is one segment.
    Segment 0 is padding. until_BT: what a query sees up to, instead of its own position. window (0:
    all): only the last so many of them; if not causal, those within half of it on either side, and
    all that global_BS marks.
    """

    positions_BT: jax.Array
    positions_BS: jax.Array
    segments_BT: jax.Array | None = None
    segments_BS: jax.Array | None = None
    until_BT: jax.Array | None = None
    global_BS: jax.Array | None = None
    window: int = dataclasses.field(default=0, metadata={"static": True})
    causal: bool = dataclasses.field(default=True, metadata={"static": True})

    def mask(self):
        """Boolean (B or 1, T, S)."""
        query_BT1, key_B1S = self.positions_BT[:, :, None], self.positions_BS[:, None, :]
        until_BT1 = query_BT1 if self.until_BT is None else self.until_BT[:, :, None]
        mask = until_BT1 >= key_B1S if self.causal else jnp.ones_like(query_BT1 + key_B1S, bool)
        if self.window and self.causal:
            mask &= query_BT1 - key_B1S < self.window
        elif self.window:
            mask &= abs(query_BT1 - key_B1S) <= self.window // 2
        if self.global_BS is not None:
            mask |= self.global_BS[:, None, :]
        if self.segments_BT is not None and self.segments_BS is not None:
            mask &= self.segments_BT[:, :, None] == self.segments_BS[:, None, :]
        return mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a layer is given besides its input, made by cache.begin.

    visible: who sees whom. rotation: of this batch's queries and keys, or None. index: the number
    of tokens in the cache, or None without one. layer: its number among the layers of the cache.
    bias_BNTS: (B or 1, N, T, S), added to scores. memory: of cross-attention what it attends to,
    "hidden_BSD", or all layers' keys and values of it, "key_LBKSH" and "value_LBKSH". global_BT:
    which queries have the projections of global tokens.
    """

    visible: Visible
    rotation: tuple | None = None
    index: jax.Array | None = None
    layer: jax.Array | None = None
    bias_BNTS: jax.Array | None = None
    memory: dict | None = None
    global_BT: jax.Array | None = None


@backend("plain")
def plain(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    visible,
    *,
    scale,
    keep_BNTS=None,
    cap=None,
    sinks_N=None,
    bias_BNTS=None,
):
    """softmax(q k scale) v as it is written (arXiv:1706.03762, section 3.2.1), in O(T S) memory.

    keep_BNTS: dropout's mask of probabilities, already divided by the probability to keep.
    bias_BNTS: (B or 1, N, T, S), added to scores. cap: scores become cap * tanh(score / cap).
    sinks_N: a score for each head that takes part in the softmax and has no value. Values may have
    a width of their own.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BTKGH = (q_BTNH * scale).reshape(B, T, K, N // K, H)
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=wide)
    if bias_BNTS is not None:
        scores_BKGTS = scores_BKGTS + bias_BNTS.reshape(-1, K, N // K, T, S)
    if cap is not None:
        scores_BKGTS = cap * jnp.tanh(scores_BKGTS / cap)
    lowest = jnp.finfo(scores_BKGTS.dtype).min
    scores_BKGTS = jnp.where(visible.mask()[:, None, None], scores_BKGTS, lowest)
    if sinks_N is not None:
        sinks_KG11 = sinks_N.astype(scores_BKGTS.dtype).reshape(K, N // K, 1, 1)
        sinks_BKGT1 = jnp.broadcast_to(sinks_KG11, (B, K, N // K, T, 1))
        scores_BKGTS = jnp.concatenate([scores_BKGTS, sinks_BKGT1], -1)
    probs_BKGTS = jax.nn.softmax(scores_BKGTS, -1)[..., :S]
    if keep_BNTS is not None:
        probs_BKGTS = probs_BKGTS * keep_BNTS.reshape(B, K, N // K, T, S)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", probs_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    return out_BTKGH.reshape(B, T, N, -1)


QUERIES = 128  # of a chunk, at most
SCORES = 2**24  # of a chunk; beyond that it has half as many queries


@backend("chunked")
@functools.wraps(plain, ["__module__"])  # for its signature
def chunked(q_BTNH, k_BSKH, v_BSKH, visible, *, keep_BNTS=None, bias_BNTS=None, **others):
    """`plain` for a chunk of queries at a time, computed again in the backward pass: O(S) memory
    (arXiv:2112.05682, section 3).
    """
    per_query = {
        "q": q_BTNH.swapaxes(0, 1),
        "visible": {
            name: getattr(visible, name).T
            for name in ("positions_BT", "segments_BT", "until_BT")
            if getattr(visible, name) is not None
        },
        "keep": None if keep_BNTS is None else jnp.moveaxis(keep_BNTS, 2, 0),
        "bias": None if bias_BNTS is None else jnp.moveaxis(bias_BNTS, 2, 0),
    }
    # Kept wide, in which the gradients of all chunks are added up.
    wide = jnp.promote_types(k_BSKH.dtype, jnp.float32)
    k_BSKH, v_BSKH = k_BSKH.astype(wide), v_BSKH.astype(wide)

    scores_of_one = k_BSKH.shape[0] * k_BSKH.shape[1] * q_BTNH.shape[2]
    # Not fewer than half, which would leave the units for products of matrices idle.
    size = QUERIES if scores_of_one * QUERIES <= SCORES else QUERIES // 2

    def of_query(x):
        seen = {name: array_B[:, None] for name, array_B in x["visible"].items()}
        return plain(
            x["q"][:, None],
            k_BSKH.astype(q_BTNH.dtype),
            v_BSKH.astype(q_BTNH.dtype),
            dataclasses.replace(visible, **seen),
            keep_BNTS=None if x["keep"] is None else x["keep"][:, :, None],
            bias_BNTS=None if x["bias"] is None else x["bias"][:, :, None],
            **others,
        )[:, 0]

    return jax.lax.map(jax.checkpoint(of_query), per_query, batch_size=size).swapaxes(0, 1)


NAMES = "query", "key", "value"


class Attention(nnx.Module):
    """Multi-head, grouped-query (arXiv:2305.13245) or multi-query attention, by
    config.num_kv_heads.

    local: it sees config.window tokens, and its cache is a ring of them.
    """

    def __init__(self, config, local=False):
        self.config, self.local = config, local
        check_backend(config)
        self._make_projections()
        if config.attention_output_bias:
            self.output_bias_D = param((config.d_model,), ("norm",), zeros, config.param_dtype)
        if config.attention_sinks:
            small = normal(config.initializer_std)
            self.sinks_N = param((config.num_heads,), ("heads",), small, config.param_dtype)

    def _make_projections(self):
        config, dtype = self.config, self.config.param_dtype
        D, N, K, H = config.d_model, config.num_heads, config.num_kv_heads, config.head_width
        of_query, of_key = ("heads", "width"), ("kv_heads", "width")

        def projection(heads, dims, query=False):
            init = matrix_init(config, D, heads * H, query=query)
            return param((D, heads, H), ("model", *dims), init, dtype)

        for start in ("", "global_") if config.global_attention else ("",):
            setattr(self, f"{start}query_DNH", projection(N, of_query, query=True))
            setattr(self, f"{start}key_DKH", projection(K, of_key))
            setattr(self, f"{start}value_DKH", projection(K, of_key))
            if config.qkv_bias:
                setattr(self, f"{start}query_bias_NH", param((N, H), of_query, zeros, dtype))
                setattr(self, f"{start}key_bias_KH", param((K, H), of_key, zeros, dtype))
                setattr(self, f"{start}value_bias_KH", param((K, H), of_key, zeros, dtype))
        self.output_NHD = output_matrix(config)
        without_bias = dataclasses.replace(config, norm_bias=False)
        if config.query_key_norm == "head":
            self.query_norm = Norm(without_bias, "H", (H,))
            self.key_norm = Norm(without_bias, "H", (H,))
        elif config.query_key_norm == "full":
            self.query_norm = Norm(without_bias, "NH", (N, H), of_query)
            self.key_norm = Norm(without_bias, "KH", (K, H), of_key)
        if config.position == "relative":
            small = normal(config.initializer_std)
            self.position_DNH = projection(N, of_query)
            self.content_bias_NH = param((N, H), of_query, small, dtype)
            self.position_bias_NH = param((N, H), of_query, small, dtype)

    def __call__(self, x_BTD, context, cache=None, key=None, norm=None):
        """(B, T, D) and the updated cache, which is that of all layers that see as much.

        context: of those layers, with this one's number; key: for dropout, None: off. norm: of what
        is read, or None.
        """
        graph, weights = nnx.split((self, norm))

        def project(x_BTD, weights):
            attention, norm = nnx.merge(graph, weights)
            return attention._products(read(x_BTD, norm))

        # The norm's result would else be kept while the feed-forward is gone back through.
        products = anew(project, x_BTD, weights, self.config.remat != "none")
        q_BTNH, k_BTKH, v_BTKH = map(self._finished, NAMES, products)
        if context.rotation is not None:
            q_BTNH, k_BTKH = rotate(q_BTNH, context.rotation), rotate(k_BTKH, context.rotation)
        parts = zip((q_BTNH, k_BTKH, v_BTKH), NAMES, strict=True)
        parts = (checkpoint_name(*part) for part in parts)
        out_BTNH, cache = self._attend(*parts, context, cache, key)
        if context.global_BT is not None:
            out_BTNH = self._globally(read(x_BTD, norm), out_BTNH, context, key)
        return self._output(out_BTNH, self.output_NHD), cache

    def _globally(self, x_BTD, out_BTNH, context, key):
        """out_BTNH, of global tokens by matrices of their own (arXiv:2004.05150, section 3.1)."""
        everything = dataclasses.replace(context.visible, window=0, global_BS=None)
        context = dataclasses.replace(context, visible=everything)
        projected = map(self._finished, NAMES, self._products(x_BTD, start="global_"))
        global_BTNH, _ = self._attend(*projected, context, None, key)
        return jnp.where(context.global_BT[:, :, None, None], global_BTNH, out_BTNH)

    def _products(self, x_BTD, names=NAMES, start=""):
        """Queries, keys or values, (B, T, N or K, H), as the matrices give them."""
        return [self._product(x_BTD, name, start) for name in names]

    def _product(self, x_BTD, name, start):
        copied = name != "query" and kv_copies(self.config) > 1
        place, dims = "copied_heads" if copied else "heads", "NH" if name == "query" else "KH"
        y = matmul(x_BTD, getattr(self, f"{start}{name}_D{dims}")[...], place)
        return biased(y, getattr(self, f"{start}{name}_bias_{dims}")) if self.config.qkv_bias else y

    def _finished(self, name, x_BTNH):
        """One of `_products`, normalised, with heads as often as devices need them; not rotated."""
        if self.config.query_key_norm != "none" and name != "value":
            x_BTNH = getattr(self, f"{name}_norm")(x_BTNH)
        copies = 1 if name == "query" else kv_copies(self.config)
        return x_BTNH if copies == 1 else put(jnp.repeat(x_BTNH, copies, 2), "heads")

    def keys_values(self, x_BTD):
        """Keys, not yet rotated, and values, (B, T, K, H)."""
        return list(map(self._finished, NAMES[1:], self._products(x_BTD, NAMES[1:])))

    def _attend(self, q_BTNH, k_BTKH, v_BTKH, context, cache, key=None, kv_name="heads"):
        """(B, T, N, width of values) and the cache, by the backend on each device's rows and heads.

        kv_name: in ACTIVATIONS, of keys and values. v_BTKH may be None where `_cached` makes it.
        """
        config, visible, scale = self.config, context.visible, score_scale(self.config)
        function, keep_BNTS, position = BACKENDS[config.attention_backend], None, (None, None)
        if key is not None and config.attention_dropout:
            (B, T, N), S = q_BTNH.shape[:3], visible.positions_BS.shape[1]
            keep_BNTS = keep_mask(key, (B, N, T, S), config.attention_dropout, "scores")
        if config.position == "relative":
            kernel_DNH = weight(self.position_DNH, q_BTNH.dtype)
            position = biased(q_BTNH, self.position_bias_NH), kernel_DNH
            q_BTNH = biased(q_BTNH, self.content_bias_NH)

        def attend(q, k, v, keep, position_q, kernel, of_head, visible, bias, cache, place):
            given = {} if not config.attention_cap else {"cap": config.attention_cap}
            if config.attention_sinks:
                given["sinks_N"] = of_head["sinks_N"]
            if config.position == "alibi":
                given["bias_BNTS"] = alibi_bias(of_head["slopes_N"], visible)
            elif bias is not None:
                given["bias_BNTS"] = bias
            elif config.position == "relative":
                given["bias_BNTS"] = scale * relative_bias(position_q, kernel, visible)
            if cache is not None:
                k, v, cache = self._cached(k, v, cache, place)
            return function(q, k, v, visible, scale=scale, keep_BNTS=keep, **given), cache

        stacks = None if cache is None else {name: cache[name] for name in STACKS if name in cache}
        stack_name = "layer_heads" if kv_name == "heads" else "layer_copied_heads"
        rows = "tokens" if visible.positions_BT.shape[0] > 1 else None
        names = ("heads", kv_name, kv_name, "scores", "heads", "head_matrices", "head_vectors")
        names = (*names, rows, bias_place(context.bias_BNTS), stack_name, None)
        run = local(attend, names, ("heads", stack_name))
        place = context.layer, context.index
        out_BTNH, stacks = run(
            *(q_BTNH, k_BTKH, v_BTKH, keep_BNTS, *position, self._of_head()),
            *(visible, context.bias_BNTS, stacks, place),
        )
        return out_BTNH, None if cache is None else {**cache, **stacks}

    def _of_head(self):
        """{name: (N,)} of what each head has."""
        config, found = self.config, {}
        if config.attention_sinks:
            found["sinks_N"] = self.sinks_N[...]
        if config.position == "alibi":
            slopes_N = jnp.asarray(alibi_slopes(config.num_heads), float)
            found["slopes_N"] = put(slopes_N, "head_vectors")
        return found

    def _cached(self, k_BTKH, v_BTKH, cache, place):
        """(keys, values, the cache) with these in it; on one device's part."""
        k_BSKH, keys = written(cache["key_LBKSH"], k_BTKH, place, self.local)
        v_BSKH, values = written(cache["value_LBKSH"], v_BTKH, place, self.local)
        return k_BSKH, v_BSKH, {"key_LBKSH": keys, "value_LBKSH": values}

    def _output(self, out_BTNH, kernel):
        out_BTNH = checkpoint_name(out_BTNH, "attention")
        product = functools.partial(matmul, name="residual", contract=2)
        y_BTD = anew(product, out_BTNH, kernel[...], self.config.remat != "none")
        return biased(y_BTD, self.output_bias_D) if self.config.attention_output_bias else y_BTD


class CrossAttention(Attention):
    """Attention to an encoder's output (arXiv:1706.03762, section 3.2.3), without positions."""

    def __call__(self, x_BTD, context, cache=None, key=None, norm=None):
        """As Attention's. The cache stays as it is: keys and values are in context.memory."""
        memory = context.memory
        if "hidden_BSD" in memory:
            k_BSKH, v_BSKH = self.keys_values(memory["hidden_BSD"])
        else:
            k_BSKH, v_BSKH = (
                jax.lax.dynamic_index_in_dim(memory[name], context.layer, 0, False).swapaxes(1, 2)
                for name in ("key_LBKSH", "value_LBKSH")
            )
        q_BTNH = self._finished("query", *self._products(read(x_BTD, norm), ["query"]))
        out_BTNH, _ = self._attend(q_BTNH, k_BSKH, v_BSKH, context, None, key)
        return self._output(out_BTNH, self.output_NHD), cache


def read(x_BTD, norm):
    """What a branch reads: all positions, of which the norm had a part on each device."""
    return put(x_BTD if norm is None else norm(x_BTD), "whole")


def bias_place(bias_BNTS):
    """Where what is added to scores lies: a key of mesh.ACTIVATIONS, or None."""
    if bias_BNTS is None:
        return None
    return "row_scores" if bias_BNTS.shape[0] == 1 else "scores"


def output_matrix(config):
    """The description of the matrix (N, width of values, D) that writes to the residual stream."""
    N, W, D = config.num_heads, config.value_width, config.d_model
    init = matrix_init(config, N * W, D, residual=True)
    return param((N, W, D), ("heads", "width", "model"), init, config.param_dtype)


def check_backend(config):
    """Raise UserError unless the backend is registered and takes what this model needs."""
    name = config.attention_backend
    told = f"model.attention_backend={name!r} is not registered."
    require(name in BACKENDS, told + did_you_mean(name, BACKENDS))
    needed = {
        "cap": ("attention_cap", config.attention_cap > 0),
        "sinks_N": ("attention_sinks", config.attention_sinks),
        "bias_BNTS": ("position", config.position in ("alibi", "relative", "buckets")),
    }
    taken = inspect.signature(BACKENDS[name]).parameters
    for argument, (key, is_needed) in needed.items():
        told = f"model.attention_backend={name!r} takes no {argument}, which model.{key}="
        told += f"{getattr(config, key)!r} needs; add it to the function, or set"
        require(argument in taken or not is_needed, f"{told} model.attention_backend='plain'.")


def score_scale(config):
    """What scores are multiplied with. What yarn adds is as DeepSeek's code has it."""
    if config.rope_scaling != "yarn":
        return config.attention_scale
    mscale = 0.1 * config.rope_mscale * math.log(config.rope_factor) + 1
    return config.attention_scale * mscale**2


# The arrays of a cache, stacked over layers; the latent is that of lm/nn/latent.py.
STACKS = ("key_LBKSH", "value_LBKSH", "latent_LBKSH")


def written(cache_LBKSH, x_BTKH, place, ring=False):
    """(what a layer attends to (B, S, K, H), the cache), with x written at (layer, index).

    The cache is written in place, and what is read of it is a view: S by H matrices, as products
    need them. A loop over layers that took and gave each layer's part would copy all of it.

    A ring holds the last S tokens, token n in slot n mod S. One token replaces the oldest, which
    it does not see; more, of which the first still see old ones, are read after the whole ring:
    the keys are then S + T.
    """
    layer, index = place
    length, size = x_BTKH.shape[1], cache_LBKSH.shape[3]
    x_BKTH = x_BTKH.swapaxes(1, 2)
    if ring and length > 1:
        seen_BKSH = jnp.concatenate([cache_LBKSH[layer], x_BKTH], 2)
        x_BKTH, index = seen_BKSH[:, :, ring_slots(index, length, size)], 0
    elif ring:
        index = index % size
    start = [jnp.asarray(n, jnp.int32) for n in (layer, 0, 0, index, 0)]
    cache_LBKSH = jax.lax.dynamic_update_slice(cache_LBKSH, x_BKTH[None], start)
    if not ring or length == 1:
        seen_BKSH = cache_LBKSH[layer]
    return seen_BKSH.swapaxes(1, 2), cache_LBKSH


def ring_slots(index, length, size):
    """int32 (S,): where in [a ring ; `length` new tokens] each slot of the new ring is found."""
    slot_S, last = jnp.arange(size), index + length - 1
    token_S = last - (last - slot_S) % size  # the newest that belongs there
    return jnp.where(token_S < index, slot_S, size + token_S - index)


def kv_copies(config):
    """How often a key head is repeated so that every device of the tensor axis has one."""
    mesh = current_mesh()
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    return 1 if config.num_kv_heads % tensor == 0 else tensor // config.num_kv_heads
