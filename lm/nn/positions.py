"""How a model knows where a token stands: a table, sinusoids, or rotated queries and keys."""

import jax.numpy as jnp
from flax import nnx

from lm.mesh import ACTIVATIONS, current_mesh
from lm.nn.params import matrix_init, param, weight


class LearnedPositions(nnx.Module):
    """A table with a row for each position (GPT-1, BERT)."""

    def __init__(self, config):
        self.config = config
        rows, width = config.max_positions, config.d_model
        init = matrix_init(config, width, rows)
        self.table_PD = param((rows, width), ("positions", "model"), init, config.param_dtype)

    def __call__(self, positions_BT):
        """(B or 1, T, D) in the parameters' precision, in which gradients are summed."""
        table_PD = weight(self.table_PD, self.config.param_dtype)
        if current_mesh() is None or positions_BT.shape[0] == 1:  # one row serves the whole batch
            return table_PD[positions_BT]
        return table_PD.at[positions_BT].get(out_sharding=ACTIVATIONS["residual"])


def sinusoid(positions_BT, d_model):
    """(B, T, D): sine and cosine interleaved, wavelengths from 2 pi to 10000 * 2 pi.

    arXiv:1706.03762, section 3.5.
    """
    rate_I = 10_000.0 ** (-2 * jnp.arange(d_model // 2) / d_model)
    angle_BTI = positions_BT[..., None] * rate_I
    return jnp.stack([jnp.sin(angle_BTI), jnp.cos(angle_BTI)], -1).reshape(
        *positions_BT.shape, d_model
    )


def rotation(positions_BT, head_width, theta, dtype):
    """(cos, sin), each (B, T, 1, H/2), of the angles of rotary positions.

    arXiv:2104.09864, section 3.4.2.
    """
    dtype = jnp.promote_types(dtype, jnp.float32)
    rate_I = theta ** (-jnp.arange(0, head_width, 2, dtype=dtype) / head_width)
    angle_BTI = positions_BT[:, :, None, None].astype(dtype) * rate_I
    return jnp.cos(angle_BTI), jnp.sin(angle_BTI)


def rotate(x_BTNH, cos_sin):
    """Turn the pairs (i, i + H/2) of each head by the angle of its position.

    It is the half-split layout of Llama in Hugging Face's format.
    """
    cos, sin = cos_sin
    a, b = jnp.split(x_BTNH.astype(cos.dtype), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BTNH.dtype)
