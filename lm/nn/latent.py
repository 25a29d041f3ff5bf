"""Multi-head latent attention (DeepSeek V2, arXiv:2405.04434, section 2.1.2).

U unrotated and R rotated width of queries and keys, W width of values, C of the latent that keys
and values come from, Q of that which queries come from.
"""

import dataclasses

import jax.numpy as jnp

from lm.mesh import ACTIVATIONS, current_mesh, put
from lm.nn.attention import Attention, output_matrix, read, written
from lm.nn.matmul import matmul
from lm.nn.norms import Norm
from lm.nn.params import matrix_init, param, weight
from lm.nn.positions import rotate

LATENT_EPS = 1e-6  # of the norms of latents, whatever the model's


def make_attention(config, local=False):
    """The attention of a layer: what core calls."""
    return (LatentAttention if config.kv_latent else Attention)(config, local)


class LatentAttention(Attention):
    """Keys and values are matrices of one narrow latent, beside one rotated key for all heads.

    Without a cache both are computed for each head, and attended to as in Attention. A cache holds
    latent and rotated key alone: the matrices are then taken to the queries and to the output, and
    what is attended to is one key head, whose values are the latent (section 2.1.2, "absorbed").
    """

    def _make_projections(self):
        config = self.config
        D, N, C, Q = config.d_model, config.num_heads, config.kv_latent, config.query_latent
        R, W = config.rope_width, config.value_width
        U = config.head_width - R
        norm = dataclasses.replace(config, norm="rms_norm", norm_eps=LATENT_EPS, norm_bias=False)

        def down(width, dim="latent"):
            return param((D, width), ("model", dim), matrix_init(config, D, width), dtype)

        def heads(source, width, dim="latent"):
            init = matrix_init(config, source, N * width)
            return param((source, N, width), (dim, "heads", "width"), init, dtype)

        dtype = config.param_dtype
        if Q:
            self.query_down_DQ = down(Q)
            self.query_latent_norm = Norm(norm, "Q", (Q,))
            self.query_QNU, self.query_rope_QNR = heads(Q, U), heads(Q, R)
        else:
            self.query_DNU, self.query_rope_DNR = heads(D, U, "model"), heads(D, R, "model")
        self.latent_down_DC = down(C)
        self.latent_norm = Norm(norm, "C", (C,))
        self.key_rope_DR = down(R, "width")
        self.key_CNU, self.value_CNW = heads(C, U), heads(C, W)
        self.output_NWD = output_matrix(config)

    def __call__(self, x_BTD, context, cache=None, key=None, norm=None):
        """(B, T, D) and the updated cache, which is that of all layers; see Attention."""
        x_BTD = read(x_BTD, norm)
        q_BTNU, q_BTNR = self._query_parts(x_BTD)
        latent_BTC, k_BT1R = self._latent(x_BTD)
        if context.rotation is not None:
            q_BTNR, k_BT1R = (rotate(x, context.rotation) for x in (q_BTNR, k_BT1R))
        if cache is None:
            kernels = self.key_CNU, self.value_CNW
            k_BTNU, v_BTNW = (matmul(latent_BTC, w[...], "heads") for w in kernels)
            k_BTNR = put(jnp.broadcast_to(k_BT1R, q_BTNR.shape), "heads")
            q_BTNH = jnp.concatenate([q_BTNU, q_BTNR], -1)
            k_BTNH = jnp.concatenate([k_BTNU, k_BTNR], -1)
            out_BTNW, _ = self._attend(q_BTNH, k_BTNH, v_BTNW, context, None, key)
        else:
            q_BTNC = by_head("BTNU,CNU->BTNC", q_BTNU, self.key_CNU)
            q_BTNH = jnp.concatenate([q_BTNC, q_BTNR], -1)
            k_BT1H = jnp.concatenate([latent_BTC[:, :, None], k_BT1R], -1)
            ours = q_BTNH, k_BT1H, None, context, cache
            out_BTNC, cache = self._attend(*ours, kv_name="copied_heads")
            out_BTNW = by_head("BTNC,CNW->BTNW", out_BTNC, self.value_CNW)
        return self._output(out_BTNW, self.output_NWD), cache

    def _query_parts(self, x_BTD):
        """(B, T, N, U) and, not yet rotated, (B, T, N, R)."""
        if not self.config.query_latent:
            kernels = self.query_DNU, self.query_rope_DNR
        else:
            x_BTD = self.query_latent_norm(matmul(x_BTD, self.query_down_DQ[...], "latent"))
            kernels = self.query_QNU, self.query_rope_QNR
        return (matmul(x_BTD, kernel[...], "heads") for kernel in kernels)

    def _latent(self, x_BTD):
        """(B, T, C) and the key for all heads, not yet rotated, (B, T, 1, R)."""
        latent_BTC = matmul(x_BTD, self.latent_down_DC[...], "latent")
        k_BTR = matmul(x_BTD, self.key_rope_DR[...], "latent")
        return self.latent_norm(latent_BTC), k_BTR[:, :, None]

    def _cached(self, k_BTKH, v_BTKH, cache, place):
        """As in Attention, of one key head, whose values are a part of its keys."""
        k_BSKH, latent = written(cache["latent_LBKSH"], k_BTKH, place)
        return k_BSKH, k_BSKH[..., : self.config.kv_latent], {"latent_LBKSH": latent}


def by_head(equation, x, kernel):
    """An einsum with a parameter of what is divided by heads."""
    place = None if current_mesh() is None else ACTIVATIONS["heads"]
    return jnp.einsum(equation, x, weight(kernel, x.dtype), out_sharding=place)
