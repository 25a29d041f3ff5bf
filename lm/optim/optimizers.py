"""AdamW with the decay masks of the field, from optax."""

import functools

import jax
import jax.numpy as jnp
import optax

from lm.optim.balance import is_buffer


def optimizer(config):
    """An optax transformation from gradients to updates of the size of a learning rate of 1, to be
    subtracted. config: an OptimConfig. The rate is multiplied in by the train step, by the step it
    is at. arXiv:1711.05101.
    """
    parts = [clip(config.clip_norm)] if config.clip_norm else []
    parts.append(optax.scale_by_adam(config.beta1, config.beta2, config.eps))
    if config.weight_decay:
        mask = functools.partial(decay_mask, kind=config.decay)
        parts.append(optax.add_decayed_weights(config.weight_decay, mask))
    return optax.chain(*parts)


def clip(max_norm):
    """Scales a gradient of a larger norm to max_norm (arXiv:1211.5063, section 3.2). By one factor,
    so that it fuses with Adam; optax divides and selects, each gradient in memory.
    """

    def update(updates, state, params=None):
        factor = max_norm / jnp.maximum(optax.tree.norm(updates), max_norm)
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def decay_mask(params, kind):
    """The tree of params with True where one decays. kind: "all"; "matrices": all but norms and
    biases; "kernels": nor the embeddings. Buffers never do.
    """

    def decays(path, _):
        names = [entry.key for entry in path]
        vector = names[-1].startswith(("scale", "sinks")) or "bias" in names[-1]
        matrix = not vector and (kind == "matrices" or not names[-1].startswith("table"))
        fixed = is_buffer(path) or names[-1].startswith("fixed")
        return not fixed and (kind == "all" or matrix)

    return jax.tree_util.tree_map_with_path(decays, params)
