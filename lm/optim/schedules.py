"""Learning rates as functions of the step."""

import jax.numpy as jnp


def learning_rate(config, step):
    """The rate of update number `step` (0 is the first), float32. config: an OptimConfig.

    A linear warm-up reaches peak_lr at step warmup_steps; then constant, cosine (arXiv:1608.03983),
    linear, inverse_sqrt (arXiv:1706.03762, section 5.3) or wsd: stable, then a linear decay
    (arXiv:2404.06395, section 4). All but constant and inverse_sqrt end at final_lr_fraction *
    peak_lr, at step decay_steps, and stay there.
    """
    step = jnp.asarray(step, jnp.float32)
    warmup, end, floor = config.warmup_steps, config.decay_steps, config.final_lr_fraction
    start = warmup
    if config.schedule == "wsd":
        start = max(warmup, round(end * (1 - config.cooldown_fraction)))
    progress = jnp.clip((step - start) / max(1, end - start), 0, 1)
    if config.schedule == "cosine":
        factor = floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    elif config.schedule in ("linear", "wsd"):
        factor = 1 - (1 - floor) * progress
    elif config.schedule == "inverse_sqrt":
        factor = jnp.sqrt(max(warmup, 1) / jnp.maximum(step, max(warmup, 1)))
    else:
        factor = 1.0
    return config.peak_lr * factor * jnp.minimum(1.0, (step + 1) / (warmup + 1))
