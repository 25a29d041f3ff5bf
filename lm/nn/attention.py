"""Attention: projections, positions and cache here; the attention function itself is a backend
anyone can add.

A backend is plain `jnp` on local arrays: `local` runs it on every device's own part of the batch
and heads.

    @backend("mine")
    def mine(q_BTNH, k_BSKH, v_BSKH, visible, *, scale, keep_BNTS=None):
        ...
        return out_BTNH
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from lm.errors import did_you_mean, require
from lm.mesh import ACTIVATIONS, current_mesh, local, put
from lm.nn.matmul import matmul
from lm.nn.params import biased, matrix_init, param, weight, zeros
from lm.nn.positions import rotate

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
    """Which keys a query may see: those of its own segment at its own position or before.

    Positions (B or 1, T) and (B or 1, S); segments the same or None, where all is one segment.
    Segment 0 is padding.
    """

    positions_BT: jax.Array
    positions_BS: jax.Array
    segments_BT: jax.Array | None = None
    segments_BS: jax.Array | None = None

    def mask(self):
        """Boolean (B or 1, T, S)."""
        mask = self.positions_BT[:, :, None] >= self.positions_BS[:, None, :]
        if self.segments_BT is not None and self.segments_BS is not None:
            mask &= self.segments_BT[:, :, None] == self.segments_BS[:, None, :]
        return mask


@backend("plain")
def plain(q_BTNH, k_BSKH, v_BSKH, visible, *, scale, keep_BNTS=None):
    """softmax(q k / scale) v as it is written (arXiv:1706.03762, section 3.2.1), in O(T S) memory.

    keep_BNTS: dropout's mask of probabilities, already divided by the probability to keep.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    q_BTKGH = (q_BTNH * scale).reshape(B, T, K, N // K, H)
    wide = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=wide)
    lowest = jnp.finfo(scores_BKGTS.dtype).min
    scores_BKGTS = jnp.where(visible.mask()[:, None, None], scores_BKGTS, lowest)
    probs_BKGTS = jax.nn.softmax(scores_BKGTS, -1)
    if keep_BNTS is not None:
        probs_BKGTS = probs_BKGTS * keep_BNTS.reshape(B, K, N // K, T, S)
    out_BTKGH = jnp.einsum("BKGTS,BSKH->BTKGH", probs_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    return out_BTKGH.reshape(B, T, N, H)


class Attention(nnx.Module):
    """Multi-head, grouped-query (arXiv:2305.13245) or multi-query self-attention, by
    config.num_kv_heads.
    """

    def __init__(self, config):
        self.config = config
        D, N, K, H = config.d_model, config.num_heads, config.num_kv_heads, config.head_width
        require(
            config.attention_backend in BACKENDS,
            f"model.attention_backend={config.attention_backend!r} is not registered."
            + did_you_mean(config.attention_backend, BACKENDS),
        )

        def projection(heads, dim):
            return param(
                (D, heads, H),
                ("model", dim, "width"),
                matrix_init(config, D, heads * H),
                config.param_dtype,
            )

        self.query_DNH = projection(N, "heads")
        self.key_DKH = projection(K, "kv_heads")
        self.value_DKH = projection(K, "kv_heads")
        output = matrix_init(config, N * H, D, residual=True)
        self.output_NHD = param((N, H, D), ("heads", "width", "model"), output, config.param_dtype)
        if config.qkv_bias:
            self.query_bias_NH = param((N, H), ("heads", "width"), zeros, config.param_dtype)
            self.key_bias_KH = param((K, H), ("kv_heads", "width"), zeros, config.param_dtype)
            self.value_bias_KH = param((K, H), ("kv_heads", "width"), zeros, config.param_dtype)
        if config.attention_output_bias:
            self.output_bias_D = param((D,), ("norm",), zeros, config.param_dtype)

    def __call__(self, x_BTD, context, cache=None, key=None):
        """(B, T, D) and the updated cache, which is that of all layers.

        context: a transformer.Context; key: for dropout, None: off.
        """
        config, dtype = self.config, x_BTD.dtype
        q_BTNH, k_BTKH, v_BTKH = self._project(x_BTD)
        if context.rotation is not None:
            q_BTNH, k_BTKH = rotate(q_BTNH, context.rotation), rotate(k_BTKH, context.rotation)
        keep_BNTS = None
        if key is not None and config.attention_dropout:
            B, T, N, _ = q_BTNH.shape
            S = T if cache is None else cache["key_LBKSH"].shape[3]
            keep_BNTS = keep_mask(key, (B, N, T, S), config.attention_dropout, "scores")
        function, scale = BACKENDS[config.attention_backend], config.head_width**-0.5

        def attend(q, k, v, keep, visible, cache, place):
            if cache is not None:
                k, key_LBKSH = written(cache["key_LBKSH"], k, place)
                v, value_LBKSH = written(cache["value_LBKSH"], v, place)
                cache = {"key_LBKSH": key_LBKSH, "value_LBKSH": value_LBKSH}
            return function(q, k, v, visible, scale=scale, keep_BNTS=keep), cache

        rows = "tokens" if context.visible.positions_BT.shape[0] > 1 else None
        names = ("heads", "heads", "heads", "scores", rows, "layer_heads", None)
        run = local(attend, names, ("heads", "layer_heads"))
        place = context.layer, context.index
        out_BTNH, cache = run(q_BTNH, k_BTKH, v_BTKH, keep_BNTS, context.visible, cache, place)
        y_BTD = matmul(out_BTNH, weight(self.output_NHD, dtype), "residual", contract=2)
        if config.attention_output_bias:
            y_BTD = biased(y_BTD, self.output_bias_D)
        return y_BTD, cache

    def _project(self, x_BTD):
        config, dtype = self.config, x_BTD.dtype
        copies = kv_copies(config)
        kv_name = "heads" if copies == 1 else "copied_heads"
        q_BTNH = matmul(x_BTD, weight(self.query_DNH, dtype), "heads")
        k_BTKH = matmul(x_BTD, weight(self.key_DKH, dtype), kv_name)
        v_BTKH = matmul(x_BTD, weight(self.value_DKH, dtype), kv_name)
        if config.qkv_bias:
            q_BTNH = biased(q_BTNH, self.query_bias_NH)
            k_BTKH = biased(k_BTKH, self.key_bias_KH)
            v_BTKH = biased(v_BTKH, self.value_bias_KH)
        if copies > 1:
            k_BTKH, v_BTKH = (put(jnp.repeat(x, copies, 2), "heads") for x in (k_BTKH, v_BTKH))
        return q_BTNH, k_BTKH, v_BTKH


def written(cache_LBKSH, x_BTKH, place):
    """(all keys or values of a layer (B, S, K, H), the cache), with x written at (layer, index).

    The cache is written in place, and what is read of it is a view: S by H matrices, as products
    need them. A loop over layers that took and gave each layer's part would copy all of it.
    """
    layer, index = place
    x_LBKSH = x_BTKH.swapaxes(1, 2)[None]
    start = [jnp.asarray(n, jnp.int32) for n in (layer, 0, 0, index, 0)]
    cache_LBKSH = jax.lax.dynamic_update_slice(cache_LBKSH, x_LBKSH, start)
    return cache_LBKSH[layer].swapaxes(1, 2), cache_LBKSH


def kv_copies(config):
    """How often a key head is repeated so that every device of the tensor axis has one."""
    mesh = current_mesh()
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    return 1 if config.num_kv_heads % tensor == 0 else tensor // config.num_kv_heads


def keep_mask(key, shape, rate, name):
    """Dropout's multiplier: 0 with probability `rate`, else 1 / (1 - rate); equal on every mesh.

    float32, in whatever precision its factor is: in bfloat16 1 / 0.9 would be 1.109.
    """
    place = None if current_mesh() is None else ACTIVATIONS[name]
    bits = jax.random.bits(key, shape, jnp.uint32, out_sharding=place)
    return (bits >= jnp.uint32(rate * 2**32)).astype(float) / (1 - rate)
