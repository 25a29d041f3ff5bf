"""A new attention, in one file: this is all there is to write.

It trains on any mesh: `model.attention_backend=sigmoid`, once this module is imported. The arrays
are one device's own rows and heads, so nothing here is about devices. B batch, T query position,
S key position, N query heads, K key heads (each serves N / K query heads in a row), H head width.
"""

import jax
import jax.numpy as jnp

from lm.nn.attention import backend


@backend("sigmoid")
def sigmoid_attention(q_BTNH, k_BSKH, v_BSKH, visible, *, scale, keep_BNTS=None):
    """sigmoid(q k scale - log n) v: no softmax, so a query may attend to nothing.

    n, the number of keys that the query sees, makes the weights start near 1 / n.
    arXiv:2409.04431, section 3.
    """
    queries_per_key = q_BTNH.shape[2] // k_BSKH.shape[2]
    k_BSNH, v_BSNH = (jnp.repeat(x, queries_per_key, 2) for x in (k_BSKH, v_BSKH))
    mask_BNTS = visible.mask()[:, None]
    scores_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH * scale, k_BSNH)
    weights_BNTS = jax.nn.sigmoid(scores_BNTS - jnp.log(mask_BNTS.sum(-1, keepdims=True)))
    weights_BNTS = jnp.where(mask_BNTS, weights_BNTS, 0)
    if keep_BNTS is not None:
        weights_BNTS = weights_BNTS * keep_BNTS
    return jnp.einsum("BNTS,BSNH->BTNH", weights_BNTS.astype(v_BSNH.dtype), v_BSNH)
