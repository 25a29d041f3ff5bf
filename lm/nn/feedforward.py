"""The feed-forward sublayer, plain (arXiv:1706.03762, section 3.3) or gated (arXiv:2002.05202)."""

import functools

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


def letters(name):
    """The dims of a parameter, which end its name."""
    return name.rpartition("_")[2]


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

        Where the backward pass computes the layer again, in config.feedforward_pieces, or fewer so
        that they are equal: parts of the hidden units one after the other, each computed again by
        itself.
        """
        pieces, weights = self._pieces(key), self._weights(x_BTD.dtype)
        if pieces == 1:
            y_BTD = self._sum(x_BTD, weights, key)
        else:
            wide = jnp.promote_types(x_BTD.dtype, jnp.float32)

            def more(y_BTD, index):
                parts = {
                    name: piece(array, letters(name).index("F"), index, pieces)
                    for name, array in weights.items()
                }
                part_BTD = self._sum(x_BTD, parts, in_order=False)
                return y_BTD + part_BTD.astype(wide), None

            y_BTD = put(jnp.zeros(x_BTD.shape, wide), "residual")
            again = jax.checkpoint(more, prevent_cse=False)
            y_BTD = jax.lax.scan(again, y_BTD, jnp.arange(pieces))[0].astype(x_BTD.dtype)
        return biased(y_BTD, self.down_bias_D) if self.config.feedforward_bias else y_BTD

    def _pieces(self, key):
        """How many there are; 1 where dropout would have to be drawn in pieces too, or what each
        gives summed over devices.
        """
        config, mesh = self.config, current_mesh()
        if (
            config.remat != "full"
            or config.offload
            or (key is not None and config.activation_dropout)
            or (mesh is not None and mesh.shape["tensor"] > 1)
        ):
            return 1
        width = self.down_FD[...].shape[0]
        # A narrower one, as a shared expert, has fewer, of the same size.
        most = max(1, min(1, width / config.d_ff) * config.feedforward_pieces)
        return next(n for n in range(int(most), 0, -1) if width % n == 0)

    def _weights(self, dtype):
        """{name: array} of what has hidden units; matrices rounded, and so their gradients too."""
        found = {name: getattr(self, name)[...] for name in vars(self) if "F" in letters(name)}
        return {name: x.astype(dtype) if x.ndim == 2 else x for name, x in found.items()}

    def _sum(self, x_BTD, weights, key=None, in_order=True):
        """What hidden units add to the residual stream, but for a bias, by their weights."""
        config, branched = self.config, {}
        for name in branches(config):
            h_BTF = matmul(x_BTD, weights[f"{name}_DF"], "hidden", in_order=in_order)
            if config.feedforward_bias:
                h_BTF = biased(h_BTF, weights[f"{name}_bias_F"])
            branched[name] = checkpoint_name(h_BTF, name)
        hidden_BTF = dropout(activate(config, **branched), key, config.activation_dropout, "hidden")
        return matmul(hidden_BTF, weights["down_FD"], "residual", in_order=in_order)
