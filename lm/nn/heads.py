"""From tokens to vectors and back: the embedding and the language-model head."""

import jax.numpy as jnp
from flax import nnx

from lm.mesh import ACTIVATIONS, current_mesh
from lm.nn.matmul import matmul
from lm.nn.params import matrix_init, param, weight


class Embedding(nnx.Module):
    """One table that embeds tokens and, transposed, gives logits."""

    def __init__(self, config):
        self.config = config
        V, D = config.vocab_size, config.d_model
        self.table_VD = param(
            (V, D), ("vocab", "model"), matrix_init(config, D, V), config.param_dtype
        )

    def __call__(self, tokens_BT):
        """(B, T, D) in the compute dtype."""
        # Rounded after the look-up, so that the gradient of a frequent token is summed as precisely
        # as the table is kept.
        table_VD = weight(self.table_VD, self.config.param_dtype)
        if current_mesh() is None:
            x_BTD = table_VD[tokens_BT]
        else:
            x_BTD = table_VD.at[tokens_BT].get(out_sharding=ACTIVATIONS["residual"])
        return x_BTD.astype(self.config.compute_dtype)

    def logits(self, hidden_BTD):
        return _logits(hidden_BTD, weight(self.table_VD, hidden_BTD.dtype).T)


class Head(nnx.Module):
    """A matrix of its own from hidden states to logits."""

    def __init__(self, config):
        D, V = config.d_model, config.vocab_size
        self.kernel_DV = param(
            (D, V), ("model", "vocab"), matrix_init(config, D, V), config.param_dtype
        )

    def __call__(self, hidden_BTD):
        return _logits(hidden_BTD, weight(self.kernel_DV, hidden_BTD.dtype))


def _logits(hidden_BTD, kernel_DV):
    logits_BTV = matmul(hidden_BTD, kernel_DV, "logits")
    return logits_BTV.astype(jnp.promote_types(logits_BTV.dtype, jnp.float32))
