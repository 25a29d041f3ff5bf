"""What a router is trained and watched by: losses that spread tokens over experts, and metrics.

`routed` is everywhere what lm.nn.experts.routed gives, stacked over the layers with experts: sums
over the real tokens of a batch.
"""

import jax.numpy as jnp


def router_loss(routed, model_config, objective_config):
    """The losses of the router, each a mean and weighed by its coefficient; a scalar.

    Those of mean values do not add up over the parts of a batch: each part is balanced by itself.
    """
    return (
        objective_config.router_aux_loss * balance_loss(routed, model_config.num_experts)
        + objective_config.router_sequence_loss * sequence_loss(routed)
        + objective_config.router_z_loss * z_loss(routed)
    )


def balance_loss(routed, num_experts):
    """E * sum over experts of (choices per token * mean probability), all layers together.

    That is the number of a token's choices when all experts have the same. arXiv:2101.03961,
    equations 4 to 6; layers are pooled before the product, as Hugging Face's Mixtral does.
    """
    tokens = _at_least_1(routed["tokens"].sum())
    share_E = routed["count_E"].sum(0) / tokens
    probability_E = routed["probability_E"].sum(0) / tokens
    return num_experts * (share_E * probability_E).sum()


def sequence_loss(routed):
    """The same of each sequence and layer, over the number of choices: 1 when all have the same.

    arXiv:2412.19437, equations 17 to 20.
    """
    return (routed["sequence"] / _at_least_1(routed["sequences"])).mean()


def z_loss(routed):
    """Mean squared log Z of the router, in nats squared (arXiv:2202.08906, equation 5)."""
    return routed["z"].sum() / _at_least_1(routed["tokens"].sum())


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
