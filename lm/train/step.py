"""The train step and the evaluation step: pure functions, compiled once, for any mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from lm.mesh import moved
from lm.nn.params import bind
from lm.objectives.loss import objective_loss
from lm.objectives.routing import expert_metrics
from lm.optim.balance import move_selection_bias
from lm.optim.optimizers import optimizer
from lm.optim.schedules import learning_rate
from lm.train.state import TrainState


def make_train_step(model, config, state_shardings):
    """step(state, batch, hosts=None) -> (state, metrics), compiled; the state given is consumed.

    batch: dict of (A, B/A, T); A parts run one after the other and their gradients are summed.
    metrics: scalars on the device: loss (mean cross-entropy in nats), grad_norm, lr, fingerprint
    (uint32, 2), the skip counts, with train.spike_threshold spike (how many median absolute
    deviations the loss is above the median of the last losses, NaN until there are enough), means
    of other losses that the objective has and, with experts, expert_counts (layers with experts,
    experts) and what `expert_metrics` gives. hosts, with a row for each device: see
    lm.cluster.hosts.
    """
    transform = optimizer(config.optim)
    # Where the update of each parameter is computed: where its moments are, on the device.
    moments = optax.tree.get(state_shardings.opt_state, "mu")
    on_device = jax.tree.map(_on_device, state_shardings.opt_state)

    def train_step(state, batch, hosts=None):
        (nll, others), grads = gradients(model, config, state, batch)
        routed = others.pop("routed")
        opt_state, params = state.opt_state, state.params
        if config.optim.offload_moments:
            opt_state = jax.device_put(opt_state, on_device)
        if config.optim.shard_moments:
            grads, params = moved(grads, moments), moved(params, moments)
        updates, new_opt_state = transform.update(grads, opt_state, params)
        lr = learning_rate(config.optim, state.step)
        params = jax.tree.map(lambda p, u: (p - lr * u).astype(p.dtype), params, updates)
        params = moved(params, state_shardings.params)
        if config.optim.router_bias_step and config.model.router_selection_bias:
            params = move_selection_bias(params, routed["count_E"], config.optim.router_bias_step)
        grad_norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))
        finite = jnp.isfinite(nll) & jnp.isfinite(grad_norm)
        # A step that is not finite leaves everything as it was but the step number and the count.
        keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
        skips = {
            "skipped_steps": state.variables["skipped_steps"] + ~finite,
            "skipped_in_a_row": jnp.where(finite, 0, state.variables["skipped_in_a_row"] + 1),
        }
        losses, loss = state.variables["recent_losses"], nll.astype(jnp.float32)
        last_losses = keep(jnp.append(losses[1:], loss), losses)
        new_state = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=keep(new_opt_state, opt_state),
            variables={**state.variables, **skips, "recent_losses": last_losses},
            key=state.key,
        )
        metrics = {"loss": nll, "grad_norm": grad_norm, "lr": lr, **skips}
        if config.train.spike_threshold:
            window = losses[-config.train.spike_window :]
            above = loss - jnp.median(window)
            metrics["spike"] = above / jnp.median(jnp.abs(window - jnp.median(window)))
        metrics |= {"fingerprint": fingerprint(batch), **others}
        if routed:
            metrics |= {"expert_counts": routed["count_E"], **expert_metrics(routed)}
        if hosts is not None:
            metrics["hosts"] = jax.sharding.reshard(hosts, P())
        return new_state, metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=(state_shardings, None))


def _on_device(sharding):
    """The same place in the memory of devices."""
    return sharding.with_memory_kind("device")


def gradients(model, config, state, batch):
    """((mean cross-entropy, {"routed": ..., "<name>_loss": mean of another loss}), gradients)."""
    is_random = config.model.has_dropout or config.model.router_jitter
    is_random = is_random or "replaced" in config.objective.kinds()
    total = batch["weights"].sum()
    rows = batch["weights"].shape[0] * batch["weights"].shape[1]
    step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

    def part_loss(params, part, number):
        key = jax.random.fold_in(step_key, number) if is_random else None
        found = objective_loss(bind(model, params), part, config.objective, key, total / rows)
        minimised, nll, others = found
        routed = others.pop("routed")
        others = {name: x / rows for name, x in others.items()}
        return minimised / total, (nll / total, {"routed": routed, **others})

    return accumulate(jax.value_and_grad(part_loss, has_aux=True), state.params, batch)


def accumulate(value_and_grad, params, batch):
    """(auxiliary values, grads) summed over the parts of a batch, the first dim of its arrays.

    One copy of the gradient is kept.
    """

    def of_part(part, number):
        (_, values), grads = value_and_grad(params, part, number)
        return values, grads

    parts = batch["tokens"].shape[0]
    first = of_part, jax.tree.map(lambda x: x[0], batch), 0
    if parts == 1:
        return of_part(*first[1:])

    def add(sums, xs):
        return jax.tree.map(jnp.add, sums, of_part(*xs)), None

    values, _ = jax.eval_shape(*first)
    values = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), values)
    start = values, jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, start, (batch, jnp.arange(parts)))[0]


def fingerprint(batch):
    """Two uint32 that identify a batch's contents and order, equal on every mesh.

    Each is a sum of all values, mixed with the number of their place among all arrays.
    """

    def mixed(x):
        x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
        x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
        return x ^ (x >> 16)

    def bits(x):
        if jnp.issubdtype(x.dtype, jnp.floating):
            x = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        return x.astype(jnp.uint32)

    sums = []
    for seed in (0x9E3779B9, 0x85EBCA6B):
        total, start = jnp.uint32(0), 0
        for name in sorted(batch):
            x = batch[name]
            place = jnp.arange(start, start + x.size, dtype=jnp.uint32).reshape(x.shape)
            salted = mixed(mixed(place + jnp.uint32(seed)) + bits(x))
            total, start = total + salted.sum(dtype=jnp.uint32), start + x.size
        sums.append(total)
    return jnp.stack(sums)


def make_eval_step(model, config):
    """step(params, batch) -> (nats, weight): sums over one validation batch, compiled."""
    # Two passes over a text are alike without dropout: to be told from others is then no test.
    key = jax.random.key(0) if config.objective.family == "text" else None

    def eval_step(params, batch):
        batch = jax.tree.map(lambda x: x[0], batch)
        objective = dataclasses.replace(
            config.objective, label_smoothing=0.0, z_loss=0.0, mtp_loss=0.0
        )
        _, nll, _ = objective_loss(bind(model, params), batch, objective, key)
        return nll, batch["weights"].sum()

    return jax.jit(eval_step)
