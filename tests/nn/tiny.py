"""A configuration whose model compiles in a moment, and parameters for it."""

import jax
import jax.numpy as jnp
import numpy as np

from configs.base import base
from lm.config import resolve
from lm.nn.params import abstract_parameters
from lm.nn.transformer import Transformer

TINY = {
    "model.vocab_size": 40,
    "model.d_model": 16,
    "model.num_layers": 2,
    "model.num_heads": 4,
    "model.head_width": 4,
    "model.d_ff": 24,
    "data.batch_size": 8,
    "data.sequence_length": 8,
}

# What a stack needs that is no decoder: an objective that it can learn by.
STACKS = {
    "encoder": {"objective.kind": "masked", "data.separate_documents": False},
    "encoder_decoder": {"objective.kind": "span_corruption", "data.separate_documents": False},
}


def tiny(keys=()):
    """The resolved Config of TINY and these: {"section.key": value}."""
    config, keys = base(), dict(keys)
    for name, value in {**TINY, **STACKS.get(keys.get("model.stack"), {}), **keys}.items():
        section, key = name.split(".")
        config[section][key] = value
    return resolve(config)


def parameters(config, seed=0):
    """Random values for every parameter, biases and scales too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype),
        abstract_parameters(Transformer(config.model)),
    )
