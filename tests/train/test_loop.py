"""The loop by what its hooks see: no model, no device; the order of events is the contract."""

import dataclasses
import itertools

import numpy as np
import pytest

from configs.base import base
from lm.config import resolve
from lm.errors import RunError
from lm.train.loop import Hooks, Spike, due, train


@dataclasses.dataclass(frozen=True)
class State:
    step: int
    params: str


def config_of(num_steps, log=1, evaluate=0, save=0, skipped=2, spike=0.0):
    config = base()
    config.train.update(num_steps=num_steps, max_skipped_steps=skipped, spike_threshold=spike)
    config.optim.schedule = "constant"
    config.metrics.every_steps, config.evaluate.every_steps = log, evaluate
    config.checkpoint.every_steps = save
    return resolve(config.to_dict(), 300)


def events_of(config, first=0, broken=(), signal_at=None):
    """(what train returns or raises; the events in order), of a step that only counts.

    broken: steps that are not finite. signal_at: the step during which SIGTERM comes.
    """
    events, in_a_row = [], 0

    def step(state, batch):
        nonlocal in_a_row
        assert batch == f"batch {state.step}"
        events.append(("step", state.step))
        finite = state.step not in broken
        in_a_row = 0 if finite else in_a_row + 1
        loss = float(state.step) if finite else np.nan
        metrics = {"loss": np.float32(loss), "skipped_in_a_row": np.int32(in_a_row)}
        metrics["spike"] = np.float32(state.step if state.step > 4 else np.nan)
        return State(state.step + 1, f"params {state.step + 1}"), metrics

    def evaluate(params):
        events.append(("evaluate", params))
        return {"eval/loss": 1.0}

    def log(step, values):
        events.append(("evaluated" if "eval/loss" in values else "log", step))

    def profile(step, metrics):
        assert metrics is None if step == first else "loss" in metrics

    def interrupted():
        return "SIGTERM" if events.count(("step", signal_at)) else None

    hooks = Hooks(
        log, evaluate, lambda *saved: events.append(("save", *saved)), profile, interrupted
    )
    batches = (f"batch {number}" for number in itertools.count(first))
    try:
        ended = train(State(first, f"params {first}"), step, batches, config, hooks)
    except (RunError, Spike) as error:
        ended = error
    return ended, events


def steps(kind, events):
    return [event[1] for event in events if event[0] == kind]


@pytest.mark.parametrize("first", [0, 3, 9])
@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_what_is_due_is_done_wherever_the_run_begins(every, first):
    """Every 3 steps are steps 2, 5, 8; besides them the last, and step 0 is logged."""
    ended, events = events_of(config_of(10, every, every, every), first)
    assert ended == (State(10, "params 10"), None)
    multiples = {step for step in range(first, 10) if (step + 1) % every == 0}
    assert steps("step", events) == [*range(first, 10)]
    assert steps("log", events) == sorted(multiples | {9} | ({0} & {first}))
    assert steps("evaluated", events) == sorted(multiples | {9})
    saved = [event for event in events if event[0] == "save"]
    assert saved == [
        ("save", step + 1, State(step + 1, f"params {step + 1}"), {"eval/loss": 1.0}, step == 9)
        for step in sorted(multiples | {9})
    ]


def test_never_is_never_but_for_the_last_save():
    _, events = events_of(config_of(5, log=100))
    assert steps("log", events) == [0, 4]
    assert steps("evaluate", events) == []
    assert events[-1] == ("save", 5, State(5, "params 5"), {}, True)


def test_the_device_is_at_work_when_a_step_is_logged():
    """A step is fetched once the next one has been dispatched; before it is evaluated or saved."""
    _, events = events_of(config_of(5, evaluate=4, save=3))
    names = [event[:2] for event in events]
    assert names == [
        *(("step", 0), ("step", 1), ("log", 0), ("step", 2), ("log", 1), ("log", 2), ("save", 3)),
        *(("step", 3), ("log", 3), ("evaluate", "params 4"), ("evaluated", 3), ("step", 4)),
        *(("log", 4), ("evaluate", "params 5"), ("evaluated", 4), ("save", 5)),
    ]


@pytest.mark.parametrize("signal_at", [0, 3, 5])
def test_a_signal_ends_the_step_it_comes_in_with_a_save(signal_at):
    (state, why), events = events_of(config_of(6, evaluate=100, save=100), signal_at=signal_at)
    assert (state.step, why) == (signal_at + 1, "SIGTERM")
    assert events[-1] == ("save", signal_at + 1, state, events[-1][3], True)
    assert steps("log", events) == [*range(signal_at + 1)]
    assert steps("evaluate", events) == (["params 6"] if signal_at == 5 else [])


def test_a_run_that_is_done_does_nothing():
    state = State(5, "params 5")
    assert events_of(config_of(5), first=5) == ((state, None), [])


def test_a_run_that_diverges_stops_before_it_saves():
    config = config_of(20, log=100, save=1, skipped=3)
    error, events = events_of(config, broken={4, 7, 8, 9, 10})
    assert "3 steps in a row, up to step 9 (loss nan)" in str(error)
    assert steps("log", events) == [0, 4, 7, 8, 9]  # each of them, whatever metrics.every_steps
    assert steps("save", events) == [*range(1, 10)]
    # Without saves, one step later: step 10 was dispatched before step 9 was fetched.
    error, events = events_of(config_of(20, log=100, skipped=3), broken={4, 7, 8, 9, 10})
    assert "up to step 9" in str(error)
    assert (steps("step", events)[-1], steps("save", events)) == (10, [])


def test_steps_that_are_not_finite_but_few_are_survived():
    ended, _ = events_of(config_of(12, skipped=3), broken={0, 3, 4, 9, 10})
    assert ended == (State(12, "params 12"), None)


@pytest.mark.parametrize(("every", "steps_due"), [(0, []), (1, [0, 1, 2, 3]), (3, [2]), (4, [3])])
def test_due(every, steps_due):
    assert [step for step in range(4) if due(every, step, False)] == steps_due
    assert due(every, 1, True)


def test_a_spike_is_raised_before_it_is_saved():
    """Steps 5 and on are as many deviations off as their number."""
    spike, events = events_of(config_of(12, log=100, save=1, spike=7.5))
    assert (spike.step, steps("save", events)) == (8, [*range(1, 9)])
    assert steps("log", events) == [0]
    spike, events = events_of(config_of(12, save=20, spike=7.5))
    assert (spike.step, steps("step", events)[-1], steps("save", events)) == (8, 9, [])
    ended, _ = events_of(config_of(12, save=20, spike=11.5))
    assert ended == (State(12, "params 12"), None)
