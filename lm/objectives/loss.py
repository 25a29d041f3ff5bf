"""What is minimised: of every objective the loss of a batch, which the loader has made."""

import functools

import jax
import jax.numpy as jnp

from lm.mesh import ACTIVATIONS, current_mesh, in_columns, put
from lm.objectives.routing import router_loss

ROWS = ("positions", "segments", "token_types", "prefix")


def objective_loss(model, batch, config, key=None, per_row=0.0):
    """(what is minimised, cross-entropy, {"routed": what the routers did, other losses}), in nats:
    sums over the batch, in float32 or wider.

    Divided by nothing, so that the parts of a batch add up to the whole. batch: as lm.data.loader
    says. config: an ObjectiveConfig. key: for dropout. per_row: what a mean over rows is multiplied
    with to be such a sum: the sum of weights over the rows of the whole batch. "routed" is as
    lm.nn.experts.routed says, stacked over all layers with experts; {} without. The other losses
    are sums over rows.
    """
    if config.family == "text":
        return _contrastive(model, batch, config, key)
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    rows = {name: batch[name] for name in ROWS if name in batch}
    memory, encoder_routed = None, {}
    if "source" in batch:
        segments = batch["source_segments"]
        memory, encoder_routed = model.encode(batch["source"], segments=segments, key=keys[3])
    hidden_BTD, _, routed = model.hidden(batch["tokens"], memory=memory, key=keys[0], **rows)
    minimised, nll = _scored(model, hidden_BTD, batch["targets"], batch["weights"], config)
    if config.mtp_loss:
        rows = {name: batch.get(name) for name in ("positions", "segments")}
        hidden_BTD, more = model.ahead(hidden_BTD, batch["targets"], key=keys[1], **rows)
        routed = _joined(routed, more)
        ahead, _ = _scored(model, hidden_BTD, *_after_next(batch), config)
        minimised = minimised + config.mtp_loss * ahead
    losses = {}
    if config.next_sentence:  # whether the second text follows: arXiv:1810.04805, section 3.1
        logits_B1C = model.next_sentence(model.pooler(hidden_BTD))
        chosen_B1C = batch["next_sentence"][..., None] == jnp.arange(2)
        loss = -jnp.where(chosen_B1C, jax.nn.log_softmax(logits_B1C), 0).sum()
        losses["next_sentence_loss"] = loss
        minimised += per_row * loss
    if "replaced" in config.kinds():
        losses["detection_loss"] = _detection(model, hidden_BTD, batch, keys[1], keys[2])
        minimised += per_row * config.detection_loss * losses["detection_loss"]
    for of_stack in filter(None, (encoder_routed, routed)):
        minimised += router_loss(of_stack, model.config, config) * batch["weights"].sum()
    return minimised, nll, {"routed": _joined(encoder_routed, routed), **losses}


def _joined(routed, more):
    """What the routers of both did, their layers one after the other."""
    if not (routed and more):
        return routed or more
    return jax.tree.map(lambda *each: jnp.concatenate(each), routed, more)


def _detection(model, hidden_BTD, batch, sample_key, key):
    """Binary cross-entropy of which tokens a model has replaced, the mean over each row, summed.
    arXiv:2003.10555, section 2, with generator and discriminator of the same weights, but for their
    heads (section 3.2: "all tied"). The generator's choice has no gradient.
    """
    logits_BTV = jax.lax.stop_gradient(model.logits(hidden_BTD))
    sample_key = jax.random.key(0) if sample_key is None else sample_key
    place = None if current_mesh() is None else ACTIVATIONS["logits"]
    bits = jax.random.bits(sample_key, logits_BTV.shape, jnp.uint32, out_sharding=place)
    uniform = ((bits >> 9).astype(logits_BTV.dtype) + 0.5) * 2.0**-23  # exact, and less than 1
    sampled_BT = put((logits_BTV - jnp.log(-jnp.log(uniform))).argmax(-1), "tokens")
    original_BT = batch["targets"]
    tokens_BT = jnp.where(batch["weights"] > 0, sampled_BT, original_BT).astype(original_BT.dtype)
    rows = {name: batch[name] for name in ROWS if name in batch}
    hidden_BTD, _, _ = model.hidden(tokens_BT, key=key, **rows)
    logits_BT = model.detector(hidden_BTD)[..., 0]
    sign_BT = jnp.where(tokens_BT == original_BT, 1.0, -1.0)
    real_BT = (batch["segments"] > 0).astype(logits_BT.dtype)
    nll_BT = jax.nn.softplus(sign_BT * logits_BT) * real_BT
    return (nll_BT.sum(1) / jnp.maximum(real_BT.sum(1), 1)).sum()


def _contrastive(model, batch, config, key):
    """Of two passes over the same texts, with different dropout, which two are of one text: the
    cross-entropy among all texts of the batch, on every device (arXiv:2104.08821, section 3).
    """
    keys = (None, None) if key is None else jax.random.split(key)
    (one_BD, routed), (two_BD, more) = (_text_vectors(model, batch, config, key) for key in keys)
    place = None if current_mesh() is None else ACTIVATIONS["tokens"]
    logits_BC = jnp.einsum("BD,CD->BC", one_BD, put(two_BD, "texts"), out_sharding=place)
    # A row of weight 0 is no text, and none to be told from.
    texts_C = put(batch["weights"], "texts")[:, 0] > 0
    lowest = jnp.finfo(logits_BC.dtype).min
    logits_BC = jnp.where(texts_C, logits_BC / config.temperature, lowest)
    own_BC = jnp.eye(logits_BC.shape[0], dtype=bool)
    own_B = jnp.where(own_BC, logits_BC, 0).sum(-1)
    nll = ((jax.nn.logsumexp(logits_BC, -1) - own_B) * batch["weights"][:, 0]).sum()
    minimised = nll
    for of_pass in filter(None, (routed, more)):
        minimised += router_loss(of_pass, model.config, config) * batch["weights"].sum() / 2
    return minimised, nll, {"routed": routed}


def _text_vectors(model, batch, config, key):
    """((B, D), of length 1, float32 or wider: by config.pooling; what the routers did)."""
    segments_BT = batch["segments"]
    hidden_BTD, _, routed = model.hidden(batch["tokens"], segments=segments_BT, key=key)
    if config.pooling == "mean":
        real_BT1 = (segments_BT > 0).astype(hidden_BTD.dtype)[..., None]
        text_BD = (hidden_BTD * real_BT1).sum(1) / jnp.maximum(real_BT1.sum(1), 1)
    else:
        states_BTD = model.pooler(hidden_BTD) if config.pooling == "pooler" else hidden_BTD
        text_BD = states_BTD[:, 0]
    text_BD = text_BD.astype(jnp.promote_types(text_BD.dtype, jnp.float32))
    square_B1 = jnp.square(text_BD).sum(-1, keepdims=True)
    return text_BD * jax.lax.rsqrt(jnp.maximum(square_B1, 1e-30)), routed  # padding alone has none


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
    """(minimised, cross-entropy) of what the head makes of hidden states: both summed over weighted
    positions. By config.logits_chunk columns of the vocabulary at a time, computed again in the
    backward pass: logits (B, T, V) never exist, nor a head gathered whole, and where the vocabulary
    is divided over devices each has its part of every chunk.
    """
    states_BTD, columns = model.before_logits(hidden_BTD)
    vocab_size = columns["kernel_DV"].shape[-1]
    columns["number_V"] = put(jnp.arange(vocab_size), "vocab")
    chunk, dtype = config.logits_chunk, states_BTD.dtype
    if not chunk or chunk >= vocab_size:
        sums = _column_sums(model, states_BTD, columns, targets_BT)
    else:
        # Kept wide, in which the gradients of all chunks are added up.
        states_BTD = states_BTD.astype(jnp.promote_types(dtype, jnp.float32))

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def more(sums, piece):
            found = _column_sums(model, states_BTD.astype(dtype), piece, targets_BT)
            return (jnp.logaddexp(sums[0], found[0]), *map(jnp.add, sums[1:], found[1:])), None

        chunks, rest = in_columns(columns, chunk)
        zero_BT = put(jnp.zeros(targets_BT.shape, states_BTD.dtype), "tokens")
        sums = zero_BT + jnp.finfo(zero_BT.dtype).min, zero_BT, zero_BT
        sums, _ = jax.lax.scan(more, sums, chunks)
        sums = sums if rest is None else more(sums, rest)[0]
    log_z_BT, target_BT, sum_BT = sums
    nll_BT = loss_BT = log_z_BT - target_BT
    if config.label_smoothing:
        # The target's share goes from 1 to 1 - s, and s is spread evenly over the vocabulary.
        # arXiv:1512.00567, 7.
        smoothing = config.label_smoothing
        loss_BT = log_z_BT - (1 - smoothing) * target_BT - smoothing * sum_BT / vocab_size
    if config.z_loss:
        loss_BT = loss_BT + config.z_loss * jnp.square(log_z_BT)
    return (loss_BT * weights_BT).sum(), (nll_BT * weights_BT).sum()


def _column_sums(model, states_BTD, columns, targets_BT):
    """Of the logits of these columns, (B, T): log sum exp, the target's if it is there or 0, and
    their sum.
    """
    logits_BTV = model.logits_of(states_BTD, columns)
    # A masked sum and not a gather: the vocabulary may be divided over devices.
    is_target_BTV = columns["number_V"] == targets_BT[..., None]
    target_BT = jnp.where(is_target_BTV, logits_BTV, 0).sum(-1)
    return jax.nn.logsumexp(logits_BTV, -1), target_BT, logits_BTV.sum(-1)
