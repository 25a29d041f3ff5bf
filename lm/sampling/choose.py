"""Which token comes next: temperature, top-k (arXiv:1805.04833) and top-p (arXiv:1904.09751).

All of it works on whole rows of logits, and a row's choice depends on that row and its key alone.
"""

import jax
import jax.numpy as jnp

# top-p alone sorts this many logits, and all of them only where these do not reach its mass: a
# sort of 50,000 takes longer on a CPU than the rest of a small model.
FEW = 512


def choose(logits_BV, keys_B, temperature, top_k, top_p):
    """One token for each row, int32 (B, 1): the largest logit plus Gumbel noise. temperature: None
    is greedy, without noise. top_k: 0 is off. top_p: None is off. Temperature comes first; top_p is
    a part of what top_k has left. The noise belongs to the key and the token.
    """
    if temperature is None:
        return jnp.argmax(logits_BV, -1, keepdims=True).astype(jnp.int32)
    V = logits_BV.shape[-1]
    # The largest logit becomes 0, so that a tiny temperature gives no infinity.
    logits_BV = (logits_BV - logits_BV.max(-1, keepdims=True)) / temperature
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, (V,), jnp.float32))(keys_B)
    if not top_k and top_p is None:
        return jnp.argmax(logits_BV + noise_BV, -1, keepdims=True).astype(jnp.int32)

    def among(count, log_z_B1=None):
        scores_BC, tokens_BC = candidates(logits_BV, count, top_p, log_z_B1)
        noise_BC = jnp.take_along_axis(noise_BV, tokens_BC, -1)
        best_B1 = jnp.argmax(scores_BC + noise_BC, -1, keepdims=True)
        return jnp.take_along_axis(tokens_BC, best_B1, -1)

    if top_k or V <= FEW:
        return among(min(top_k or V, V))
    log_z_B1 = jax.nn.logsumexp(logits_BV, -1, keepdims=True)
    mass_B = jnp.exp(jax.lax.top_k(logits_BV, FEW)[0] - log_z_B1).sum(-1)
    enough = (mass_B >= top_p).all()
    return jax.lax.cond(enough, lambda: among(FEW, log_z_B1), lambda: among(V, log_z_B1))


def candidates(logits_BV, count, top_p=None, log_z_B1=None):
    """The `count` largest logits of each row, descending, and their tokens: both (B, C). top_p:
    -inf is put for those outside the smallest set, from the largest down, whose mass reaches it.
    log_z_B1: what makes logits probabilities; None is of these `count`.
    """
    scores_BC, tokens_BC = jax.lax.top_k(logits_BV, count)
    if top_p is not None:
        if log_z_B1 is None:
            log_z_B1 = jax.nn.logsumexp(scores_BC, -1, keepdims=True)
        probs_BC = jnp.exp(scores_BC - log_z_B1)
        before_BC = jnp.cumsum(probs_BC, -1) - probs_BC
        scores_BC = jnp.where(before_BC < top_p, scores_BC, -jnp.inf)
    return scores_BC, tokens_BC
