"""The feed-forward sublayer, plain (arXiv:1706.03762, section 3.3) or gated (arXiv:2002.05202)."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lm.mesh import current_mesh, piece, put
from lm.nn.dropout import dropout
from lm.nn.matmul import matmul
from lm.nn.params import biased, matrix_init, param, zeros

ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def branches(config):
    """Names of the products that the hidden layer is made of."""
    return ("gate", "up") if config.gated else ("up",)


def activate(config, up, gate=None):
    """The hidden layer from its branches."""
    if gate is None:
        return ACTIVATIONS[config.activation](up)
    if config.activation == "clamped_silu":  # arXiv:2508.10925, and OpenAI's code
        gate, up = jnp.minimum(gate, 7), jnp.clip(up, -7, 7)
        return gate * jax.nn.sigmoid(1.702 * gate) * (up + 1)
    return ACTIVATIONS[config.activation](gate) * up


class FeedForward(nnx.Module):
    def __init__(self, config, width=None):
        """width: of the hidden layer, config.d_ff if None."""
        self.config = config
        D, F, dtype = config.d_model, width or config.d_ff, config.param_dtype
        init, names = matrix_init(config, D, F), branches(config)
        for name in names:
            setattr(self, f"{name}_DF", param((D, F), ("model", "hidden"), init, dtype))
        init = matrix_init(config, F, D, residual=True)
        self.down_FD = param((F, D), ("hidden", "model"), init, dtype)
        if config.feedforward_bias:
            for name in names:
                setattr(self, f"{name}_bias_F", param((F,), ("hidden",), zeros, dtype))
            self.down_bias_D = param((D,), ("norm",), zeros, dtype)

    def __call__(self, x_BTD, key=None):
        """(B, T, D). key: for dropout, None: off.

        Where the backward pass computes the layer again, in config.feedforward_pieces: of so many
        parts of the hidden units one after the other, each computed again by itself.
        """
        pieces = self._pieces(key)
        if pieces == 1:
            y_BTD = self._sum(x_BTD, lambda array, dim: array, key)
        else:
            wide = jnp.promote_types(x_BTD.dtype, jnp.float32)

            def more(y_BTD, index):
                part_BTD = self._sum(x_BTD, lambda array, dim: piece(array, dim, index, pieces))
                return y_BTD + part_BTD.astype(wide), None

            y_BTD = put(jnp.zeros(x_BTD.shape, wide), "residual")
            again = jax.checkpoint(more, prevent_cse=False)
            y_BTD = jax.lax.scan(again, y_BTD, jnp.arange(pieces))[0].astype(x_BTD.dtype)
        return biased(y_BTD, self.down_bias_D) if self.config.feedforward_bias else y_BTD

    def _pieces(self, key):
        """How many there are; 1 where dropout would have to be drawn in pieces too."""
        config, mesh = self.config, current_mesh()
        if (
            config.remat != "full"
            or config.offload
            or (key is not None and config.activation_dropout)
        ):
            return 1
        width = self.down_FD[...].shape[0] // (mesh.shape["tensor"] if mesh else 1)
        return math.gcd(width, config.feedforward_pieces)

    def _sum(self, x_BTD, part, key=None):
        """What hidden units add to the residual stream, but for a bias; part: (array, dim of the
        hidden units) -> those of them that are meant.
        """
        config, branched = self.config, {}
        for name in branches(config):
            h_BTF = matmul(x_BTD, part(getattr(self, f"{name}_DF")[...], 1), "hidden")
            if config.feedforward_bias:
                h_BTF = biased(h_BTF, part(getattr(self, f"{name}_bias_F")[...], 0))
            branched[name] = checkpoint_name(h_BTF, name)
        hidden_BTF = dropout(activate(config, **branched), key, config.activation_dropout, "hidden")
        return matmul(hidden_BTF, part(self.down_FD[...], 0), "residual")
