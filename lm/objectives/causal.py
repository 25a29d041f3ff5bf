"""Predict the next token."""

import functools

import jax
import jax.numpy as jnp

from lm.objectives.routing import router_loss


def causal_loss(model, batch, config, key=None):
    """(what is minimised, cross-entropy, what the routers did), in nats: sums over the batch, in
    float32 or wider.

    Divided by nothing, so that the parts of a batch add up to the whole. batch: tokens, targets,
    weights (B, T), perhaps segments and positions. config: an ObjectiveConfig. key: for dropout.
    The third is as lm.nn.experts.routed says, stacked over all layers with experts; {} without.
    """
    rows = {"positions": batch.get("positions"), "segments": batch.get("segments")}
    keys = (None, None) if key is None else jax.random.split(key)
    hidden_BTD, _, routed = model.hidden(batch["tokens"], key=keys[0], **rows)
    minimised, nll = _scored(model, hidden_BTD, batch["targets"], batch["weights"], config)
    if config.mtp_loss:
        hidden_BTD, more = model.ahead(hidden_BTD, batch["targets"], key=keys[1], **rows)
        routed = jax.tree.map(lambda *each: jnp.concatenate(each), routed, more)
        ahead, _ = _scored(model, hidden_BTD, *_after_next(batch), config)
        minimised = minimised + config.mtp_loss * ahead
    if routed:
        minimised += router_loss(routed, model.config, config) * batch["weights"].sum()
    return minimised, nll, routed


def _after_next(batch):
    """(targets, weights) of the token after the next, in the same document."""
    targets_BT, weights_BT = (_shifted(batch[name]) for name in ("targets", "weights"))
    if "segments" in batch:
        weights_BT = weights_BT * (batch["segments"] == _shifted(batch["segments"]))
    return targets_BT, weights_BT * batch["weights"]


def _shifted(x_BT):
    """Of each token, that of the one after it; 0 of the last."""
    return jnp.concatenate([x_BT[:, 1:], jnp.zeros_like(x_BT[:, :1])], 1)


def _scored(model, hidden_BTD, targets_BT, weights_BT, config):
    """(minimised, cross-entropy) of what the head makes of hidden states: sums."""
    score = functools.partial(_score, config=config)
    chunk, length = config.logits_chunk, hidden_BTD.shape[1]
    if not chunk or chunk >= length:
        return score(model.logits(hidden_BTD), targets_BT, weights_BT)

    # The logits of one chunk of positions at a time, computed again in the backward pass: (B, T, V)
    # never exists.
    def scan_chunk(sums, start):
        part = [
            jax.lax.dynamic_slice_in_dim(x, start, chunk, 1)
            for x in (hidden_BTD, targets_BT, weights_BT)
        ]
        return jax.tree.map(jnp.add, sums, score(model.logits(part[0]), *part[1:])), None

    zero = jnp.zeros((), jnp.promote_types(hidden_BTD.dtype, jnp.float32))
    sums, _ = jax.lax.scan(
        jax.checkpoint(scan_chunk, prevent_cse=False), (zero, zero), jnp.arange(0, length, chunk)
    )
    return sums


def _score(logits_BTV, targets_BT, weights_BT, config):
    """(minimised, cross-entropy) of given logits, both summed over weighted positions."""
    log_z_BT = jax.nn.logsumexp(logits_BTV, -1)
    # A masked sum and not a gather: the vocabulary may be divided over devices.
    vocab_V = jnp.arange(logits_BTV.shape[-1])
    target_BT = jnp.where(vocab_V == targets_BT[..., None], logits_BTV, 0).sum(-1)
    nll_BT = log_z_BT - target_BT
    loss_BT = nll_BT
    if config.label_smoothing:
        # The target's share goes from 1 to 1 - s, and s is spread evenly over the vocabulary.
        # arXiv:1512.00567, 7.
        smoothing = config.label_smoothing
        loss_BT = log_z_BT - (1 - smoothing) * target_BT - smoothing * logits_BTV.mean(-1)
    if config.z_loss:
        loss_BT = loss_BT + config.z_loss * jnp.square(log_z_BT)
    return (loss_BT * weights_BT).sum(), (nll_BT * weights_BT).sum()
