"""A batch that ruins the loss: the run that meets it is the run that was told to leave it out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm.train.state
from experiments import running
from lm.data.loader import Batches
from lm.track.metrics import read_metrics
from tests.checkpoints import read

BAD = 18  # the number of the batch
KEYS = {"train.spike_threshold": 6, "train.spike_window": 8}


@pytest.fixture
def bad_batch(monkeypatch):
    """Batch BAD is of bytes that no text holds."""
    rows = Batches.rows

    def planted(self, step, numbers):
        batch = rows(self, step, numbers)
        return {**batch, "targets": np.full_like(batch["targets"], 254)} if step == BAD else batch

    monkeypatch.setattr(Batches, "rows", planted)


@pytest.fixture
def told(monkeypatch):
    """told(numbers): runs that begin from now on leave those batches out."""
    initial_state = lm.train.state.initial_state

    def told(numbers):
        def state_with(model, config, mesh):
            state = initial_state(model, config, mesh)
            former = state.variables["skipped_batches"]
            skipped = jnp.sort(former.at[: len(numbers)].set(jnp.array(numbers, jnp.int32)))
            placed = jax.device_put(skipped, former.sharding)
            return dataclasses.replace(
                state, variables={**state.variables, "skipped_batches": placed}
            )

        monkeypatch.setattr(running, "initial_state", state_with)

    return told


@pytest.mark.parametrize(("span", "numbers"), [(1, [18]), (2, [17, 18]), (3, [16, 17, 18])])
def test_a_spike_is_taken_back_and_left_out(
    span, numbers, bad_batch, told, tiny, tmp_path, exact, devices=2
):
    """The last checkpoint before it is 16's; a longer span ends there."""
    keys = {**KEYS, "train.spike_skip": span + (span == 3)}
    status, out, err = tiny.run(tmp_path / "met", keys, devices)
    assert (status, err) == (0, "")
    names = " ".join(map(str, numbers))
    (line,) = [line for line in out.splitlines() if "deviations" in line]
    assert line.startswith("the loss of step 18, ")
    assert line.endswith(f"back to step 16, without batches {names}")
    (row,) = [row for row in read_metrics(tmp_path / "met" / "metrics.jsonl") if row["step"] == 18]
    assert row["data/skipped_batches"] == names
    told(numbers)
    assert tiny.run(tmp_path / "told", keys, devices)[0] == 0
    assert exact(tmp_path / "met") == exact(tmp_path / "told")
    states = [read(tmp_path / name / "checkpoints", only=None)[1] for name in ("met", "told")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    kept = states[0]["variables"]["skipped_batches"]
    assert kept[: len(numbers) + 1].tolist() == [*numbers, np.iinfo(np.int32).max]


def test_a_bad_batch_after_a_bad_one_is_left_out_too(told, tiny, tmp_path, exact, monkeypatch):
    """Their checkpoint is the same, and knows of neither."""
    rows, bad = Batches.rows, (BAD, BAD + 1)

    def planted(self, step, numbers):
        batch = rows(self, step, numbers)
        return {**batch, "targets": np.full_like(batch["targets"], 254)} if step in bad else batch

    monkeypatch.setattr(Batches, "rows", planted)
    keys = {**KEYS, "train.spike_skip": 1}
    status, out, _ = tiny.run(tmp_path / "met", keys, 2)
    lines = [line for line in out.splitlines() if "deviations" in line]
    assert (status, [line.rsplit(" ", 1)[-1] for line in lines]) == (0, ["18", "19"])
    told(bad)
    assert tiny.run(tmp_path / "told", keys, 2)[0] == 0
    assert exact(tmp_path / "met") == exact(tmp_path / "told")


def test_a_run_that_is_resumed_before_its_spike_meets_it_too(bad_batch, tiny, tmp_path, exact):
    """The losses that it stands out from are part of the state."""
    for name, first in (("whole", 24), ("run", 17)):
        for steps in (first, 24):
            keys = {**KEYS, "train.num_steps": steps, "evaluate.every_steps": 0}
            assert tiny.run(tmp_path / name, keys, 2)[0] == 0
    assert exact(tmp_path / "run") == exact(tmp_path / "whole")


def test_without_a_threshold_a_spike_is_a_loss_as_others(bad_batch, tiny, tmp_path):
    status, out, _ = tiny.run(tmp_path / "run", {"train.spike_window": 8}, 2)
    assert (status, "deviations" in out) == (0, False)


def test_there_is_no_way_back(bad_batch, tiny, tmp_path, monkeypatch):
    status, _, err = tiny.run(tmp_path / "none", {**KEYS, "checkpoint.every_steps": 0}, 2)
    assert (status, not (tmp_path / "none").exists()) == (2, True)
    assert "train.spike_threshold=6.0 needs checkpoint.every_steps, and" in err
    status, _, err = tiny.run(tmp_path / "run", {**KEYS, "checkpoint.every_steps": 20}, 2)
    assert status == 1
    assert "the loss of step 18 stands out" in err
    assert "there is no checkpoint to go back to; make checkpoint.every_steps 18 or less" in err
    monkeypatch.setattr(lm.train.state, "MOST_SKIPPED", 1)
    status, _, err = tiny.run(tmp_path / "full", {**KEYS, "train.spike_skip": 2}, 2)
    assert status == 1
    assert "0 batches are left out already, of at most 1; make the threshold larger" in err
