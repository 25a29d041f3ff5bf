"""A configuration whose model compiles in a moment."""

from configs.base import base
from lm.config import resolve

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


def tiny(keys=()):
    """The resolved Config of TINY and these: {"section.key": value}."""
    config = base()
    for name, value in {**TINY, **dict(keys)}.items():
        section, key = name.split(".")
        config[section][key] = value
    return resolve(config)
