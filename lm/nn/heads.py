"""From tokens to vectors and back: the embedding, the language-model head, and other heads."""

import jax
import jax.numpy as jnp
from flax import nnx

from lm.nn.feedforward import ACTIVATIONS as NONLINEARITIES
from lm.nn.matmul import matmul
from lm.nn.norms import Norm
from lm.nn.params import biased, matrix_init, normal, param, zeros
from lm.nn.positions import looked_up


class Embedding(nnx.Module):
    """One table that embeds tokens and, transposed, gives logits."""

    def __init__(self, config):
        self.config = config
        V, D = config.vocab_size, config.d_model
        init = normal(1.0) if config.initializer == "t5" else matrix_init(config, D, V)
        self.table_VD = param((V, D), ("vocab", "model"), init, config.param_dtype)

    def __call__(self, tokens_BT):
        """(B, T, D) in the compute dtype."""
        # Rounded after the look-up, so that the gradient of a frequent token is summed as precisely
        # as the table is kept.
        return looked_up(self.table_VD, tokens_BT, self.config.compute_dtype)


class Head(nnx.Module):
    """From hidden states to logits, with what config.head, tied_embedding and head_bias ask for."""

    def __init__(self, config):
        self.config = config
        D, V, dtype = config.d_model, config.vocab_size, config.param_dtype
        if config.head == "transform":
            make_dense(self, config)
            self.norm = Norm(config)
        if not config.tied_embedding:
            init = matrix_init(config, D, V)
            self.kernel_DV = param((D, V), ("model", "vocab"), init, dtype)
        if config.head_bias == "learned":
            self.bias_V = param((V,), ("vocab",), zeros, dtype)
        elif config.head_bias == "fixed":
            self.fixed_bias_V = param((V,), ("vocab",), zeros, dtype, buffer=True)

    def prepared(self, hidden_BTD):
        """What is multiplied with the matrix, (B, T, D)."""
        if self.config.head != "transform":
            return hidden_BTD
        return self.norm(dense(self, self.config, hidden_BTD))

    def columns(self, table_VD):
        """{name: (..., V)}: what the logits of each token of the vocabulary are made with, as it
        lies at rest. table_VD: the embedding's.
        """
        tied = self.config.tied_embedding
        found = {"kernel_DV": table_VD[...].T if tied else self.kernel_DV[...]}
        if self.config.head_bias == "learned":
            found["bias_V"] = self.bias_V[...]
        elif self.config.head_bias == "fixed":
            found["bias_V"] = jax.lax.stop_gradient(self.fixed_bias_V[...])
        return found

    def logits(self, x_BTD, columns):
        """(B, T, V), float32 or wider, of some or all columns."""
        logits_BTV = matmul(x_BTD, columns["kernel_DV"], "logits")
        logits_BTV = logits_BTV.astype(jnp.promote_types(x_BTD.dtype, jnp.float32))
        if "bias_V" in columns:
            logits_BTV = logits_BTV + columns["bias_V"].astype(logits_BTV.dtype)
        return logits_BTV


class Pooler(nnx.Module):
    """tanh of a dense layer on the first token's state (BERT): (B, 1, D)."""

    def __init__(self, config):
        self.config = config
        make_dense(self, config, "kernel", "bias", biased=True)

    def __call__(self, hidden_BTD):
        return dense(self, self.config, hidden_BTD[:, :1], "kernel", "bias", jnp.tanh)


class Classifier(nnx.Module):
    """A matrix and a bias from states to the logits of `classes`."""

    def __init__(self, config, classes):
        D, dtype = config.d_model, config.param_dtype
        init = matrix_init(config, D, classes)
        self.kernel_DC = param((D, classes), ("model", "classes"), init, dtype)
        self.bias_C = param((classes,), ("classes",), zeros, dtype)

    def __call__(self, x_BTD):
        """(B, T, C), float32 or wider."""
        y_BTC = matmul(x_BTD, self.kernel_DC[...], "whole")
        return y_BTC.astype(jnp.promote_types(y_BTC.dtype, jnp.float32)) + self.bias_C[...]


class Detector(nnx.Module):
    """Whether each token was replaced: a dense layer and a logit (arXiv:2003.10555, section 2)."""

    def __init__(self, config):
        self.config = config
        make_dense(self, config, biased=True)
        self.classifier = Classifier(config, 1)

    def __call__(self, hidden_BTD):
        """(B, T, 1), float32 or wider."""
        return self.classifier(dense(self, self.config, hidden_BTD))


def make_dense(module, config, name="transform", bias="transform_bias", biased=None):
    """Give a module a square matrix and, if `biased` or if the feed-forward has them, a bias."""
    D, init = config.d_model, matrix_init(config, config.d_model, config.d_model)
    setattr(module, f"{name}_DM", param((D, D), ("model", "width"), init, config.param_dtype))
    if config.feedforward_bias if biased is None else biased:
        setattr(module, f"{bias}_M", param((D,), ("norm",), zeros, config.param_dtype))


def dense(module, config, x_BTD, name="transform", bias="transform_bias", activation=None):
    """What `make_dense` made, with the config's activation if no other is given."""
    y_BTD = matmul(x_BTD, getattr(module, f"{name}_DM")[...], "whole")
    if hasattr(module, f"{bias}_M"):
        y_BTD = biased(y_BTD, getattr(module, f"{bias}_M"))
    return (activation or NONLINEARITIES[config.activation])(y_BTD)
