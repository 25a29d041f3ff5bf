"""What a router is trained and watched by: losses that spread tokens over experts, and metrics.

`routed` is everywhere what lm.nn.experts.routed gives, stacked over the layers with experts: sums
over the real tokens of a batch.
"""

import jax.numpy as jnp


def router_loss(routed, model_config, objective_config):
    """The losses of the router, each a mean and weighed by its coefficient; a scalar. Those of mean
    values do not add up over the parts of a batch: each part is balanced by itself.
    """
    tokens = _at_least_1(routed["tokens"].sum())
    # E * sum over experts of (choices per token * mean probability), which is the number of a
    # token's choices when all experts have the same: arXiv:2101.03961, equations 4 to 6. All layers
    # are pooled before the product, as Hugging Face's Mixtral does.
    share_E, probability_E = (routed[name].sum(0) / tokens for name in ("count_E", "probability_E"))
    balance = model_config.num_experts * (share_E * probability_E).sum()
    # The same of each sequence and layer, over the number of choices: arXiv:2412.19437, equations
    # 17 to 20. And the mean squared log Z, in nats squared: arXiv:2202.08906, equation 5.
    of_sequences = (routed["sequence"] / _at_least_1(routed["sequences"])).mean()
    return (
        objective_config.router_aux_loss * balance
        + objective_config.router_sequence_loss * of_sequences
        + objective_config.router_z_loss * routed["z"].sum() / tokens
    )


def expert_metrics(routed):
    """Scalars to log. max_load: the most choices that an expert had, over its layer's mean. idle:
    the share of all experts that had none.
    """
    count_LE = routed["count_E"]
    mean_L1 = count_LE.mean(-1, keepdims=True)
    return {
        "experts/max_load": (count_LE / jnp.where(mean_L1 > 0, mean_L1, 1)).max(),
        "experts/idle": (count_LE == 0).mean(dtype=count_LE.dtype),
    }


def _at_least_1(number):
    """A batch of padding alone has no tokens, and its sums are 0."""
    return jnp.maximum(number, 1)
