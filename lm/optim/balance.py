"""Experts balanced without a loss: a bias that takes part in their choice alone, and is moved by
how much they were chosen (arXiv:2408.15664).
"""

import jax
import jax.numpy as jnp

BUFFERS = ("selection_bias_E",)


def is_buffer(path):
    """Whether a parameter, by its path in a jax tree, is one that no gradient moves."""
    return path[-1].key in BUFFERS


def move_selection_bias(params, count_LE, step_size):
    """The params with every selection bias moved by step_size, up for an expert with fewer choices
    than its layer's mean, down for one with more.

    count_LE: choices in the whole batch, of the layers with experts and then of mtp's, whose bias
    stays where it is if that did not run. arXiv:2412.19437, section 2.1.2.
    """
    moves_LE = step_size * jnp.sign(count_LE.mean(-1, keepdims=True) - count_LE)
    used = 0

    def moved(path, value):
        nonlocal used
        if not is_buffer(path) or used == len(moves_LE):
            return value
        used += len(value)
        return value + moves_LE[used - len(value) : used].astype(value.dtype)

    # Sorted as trees are, "layers" comes before "mtp".
    params = jax.tree_util.tree_map_with_path(moved, params)
    assert used == len(moves_LE), f"counts of {len(moves_LE)} layers for biases of {used}"
    return params
