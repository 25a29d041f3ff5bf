"""The only loop: steps, and when to log, evaluate, save and stop."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from lm.errors import RunError


class Spike(Exception):
    """A loss stands out from those before it, see train.spike_threshold; no state is saved."""

    def __init__(self, step, loss, deviations):
        super().__init__(
            f"the loss of step {step}, {loss:.4g}, is {deviations:.3g} deviations above the median"
        )
        self.step = step


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What a run does besides training.

    log(step, values): host numbers of a logged step, or of an evaluation. evaluate(params) ->
    values. save(step, state, values, wait). profile(step, results): before each step.
    interrupted(): the name of the signal that asks to stop, or None.
    """

    log: Callable[[int, dict], Any]
    evaluate: Callable[[Any], dict]
    save: Callable[[int, Any, dict, bool], Any]
    profile: Callable[[int, Any], Any]
    interrupted: Callable[[], str | None]


def train(state, train_step, batches, config, hooks):
    """(state, why): runs steps until train.num_steps, or until a signal asks to stop.

    state: a TrainState, consumed. batches: an iterator of batches from state.step on. why: None
    or the signal's name; either way the last state is saved. Raises RunError after
    train.max_skipped_steps steps in a row that were not finite; the last checkpoint then stands,
    as it does when Spike is raised.
    """
    first, last = int(state.step), config.train.num_steps - 1
    pending, metrics, why = None, None, None
    for step in range(first, last + 1):
        hooks.profile(step, metrics)
        state, metrics = train_step(state, next(batches))
        # What the step before gave: the device is at work on this one and never waits.
        _report(pending, config, hooks)
        pending = step, metrics
        why = hooks.interrupted()
        ends = step == last or why is not None
        values = {}
        if config.evaluate.every_steps and due(config.evaluate.every_steps, step, step == last):
            pending = _report(pending, config, hooks)
            values = hooks.evaluate(state.params)
            hooks.log(step, values)
        if due(config.checkpoint.every_steps, step, ends):
            pending = _report(pending, config, hooks)
            hooks.save(step + 1, state, values, ends)
        if ends:
            break
    return state, why


def due(every, step, last):
    """Whether something done every n steps is due after `step`, counted from 0; n=0: at the end."""
    return last or bool(every and (step + 1) % every == 0)


def _report(pending, config, hooks):
    """Fetch a step's metrics, log them if they are due, and stop a run that has diverged."""
    if pending is None:
        return
    step, metrics = pending
    metrics = jax.device_get(metrics)
    in_a_row = int(metrics["skipped_in_a_row"])
    last = step in (0, config.train.num_steps - 1)
    if due(config.metrics.every_steps, step, last or in_a_row > 0):
        hooks.log(step, metrics)
    if in_a_row >= config.train.max_skipped_steps:
        raise RunError(
            f"the loss or gradient was not finite in {in_a_row} steps in a row, up to step {step} "
            f"(loss {float(metrics['loss'])}); none was applied and the last checkpoint stands. "
            "A new run with a smaller optim.peak_lr or optim.clip_norm, or a longer warm-up, helps."
        )
    threshold = config.train.spike_threshold
    if threshold and metrics["spike"] > threshold:
        raise Spike(step, float(metrics["loss"]), float(metrics["spike"]))
