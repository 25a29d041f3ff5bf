"""Training as a user meets it: one command trains, resumes, refuses; equal runs are bit-equal."""

import gzip
import json
import random
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from experiments.running import alone
from lm.config import Config, build
from lm.data.tokenizer import load
from lm.track.metrics import read_metrics
from tests.checkpoints import read

LOGGED = {
    *("step", "train/loss", "train/grad_norm", "train/lr", "train/skipped_steps"),
    *("train/tokens_per_second", "data/fingerprint", "time", "hosts/peak_gib"),
}
SAVED = {"save/blocked_seconds", "save/seconds"}
EVALUATED = {"eval/loss", "eval/bits_per_byte"}
CHECKPOINTS = [4, 8, 12, 16, 20, 24]
CUBE = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}


def steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def losses(workdir, first=0):
    rows = read_metrics(workdir / "metrics.jsonl")
    return np.array([row["train/loss"] for row in rows if row["step"] >= first])


def fingerprints(workdir):
    return [row["data/fingerprint"] for row in read_metrics(workdir / "metrics.jsonl")]


def resume(tiny, workdir, keys=(), devices=8):
    status, out, err = tiny.run(workdir, keys, devices)
    assert (status, err) == (0, ""), err
    return out


# What is left in the workdir


def test_a_workdir_holds_all_that_a_run_is(finished, tiny):
    rows = read_metrics(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [*range(24)]
    for row in rows:
        evaluated = EVALUATED if row["step"] in (7, 15, 23) else set()
        assert {*row} == LOGGED | evaluated | (SAVED if row["step"] + 1 in CHECKPOINTS else set())
    names = ("checkpoints", "config.json", "curve.png", "environment.json", "metrics.jsonl")
    assert sorted(path.name for path in finished.iterdir()) == [*names, "tokenizer.json"]
    assert steps(finished) == CHECKPOINTS
    saved = json.loads((finished / "config.json").read_text())
    assert len(saved.pop("data_key")) == 32
    config = build(Config, saved)
    assert (config.model.d_ff, config.optim.peak_lr, config.mesh.data) == (64, 3e-3, -1)
    assert load(finished).size == 257
    assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    (start,) = json.loads((finished / "environment.json").read_text())
    assert start["devices"] == {"cpu": 8}
    assert {"jax", "python", "lm"} <= {*start["versions"]}


def test_what_is_logged_is_true(finished, tiny):
    """Against the sums by hand: a unigram model of the same tokens, the schedule, bytes."""
    rows = read_metrics(finished / "metrics.jsonl")
    assert rows[0]["train/loss"] == pytest.approx(
        np.log(258), rel=0.01
    )  # a model that knows nothing
    assert rows[23]["train/loss"] < rows[0]["train/loss"] - 0.5
    rates = [row["train/lr"] for row in rows]
    assert rates[:3] == pytest.approx([1e-3, 2e-3, 3e-3])
    half_way = 2 + (24 - 2) // 2
    assert rates[half_way] == pytest.approx(3e-3 * (1 + 0.1) / 2)
    # One document of bytes: every byte of the validation part is a target of weight 1 once.
    last = rows[23]
    assert last["eval/bits_per_byte"] == pytest.approx(last["eval/loss"] / np.log(2), rel=1e-12)
    assert all(re.fullmatch("[0-9a-f]{16}", row["data/fingerprint"]) for row in rows)
    assert len({row["data/fingerprint"] for row in rows}) == 24


def test_a_finished_run_says_so_and_stays_as_it_is(stopped, tiny, exact, hashes):
    workdir = stopped(24)
    before, values = hashes(workdir / "checkpoints"), exact(workdir)
    out = resume(tiny, workdir)
    assert out.endswith("is trained to step 24 already; more steps: --config.train.num_steps.\n")
    assert (hashes(workdir / "checkpoints"), exact(workdir)) == (before, values)


def test_two_runs_of_one_command_are_equal(finished, tiny, tmp_path, exact):
    resume(tiny, tmp_path / "run")
    assert exact(tmp_path / "run") == exact(finished)


def test_a_moved_workdir_resumes(stopped, finished, tiny, exact):
    workdir = stopped(20, name="elsewhere")
    assert f"resumed from {workdir / 'checkpoints' / '20'}" in resume(tiny, workdir)
    assert exact(workdir) == exact(finished)


# Stopping


def test_a_signal_saves_and_ends_well_and_the_run_goes_on_bit_for_bit(
    finished, tiny, tmp_path, exact
):
    workdir, seen, many = tmp_path / "run", 0, {"train.num_steps": 10_000}
    for number in (signal.SIGTERM, signal.SIGINT):
        process = tiny.start(workdir, many)
        while logged(workdir) <= seen and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
        seen = logged(workdir) + 1
        assert (process.returncode, err) == (0, "")
        step = steps(workdir)[-1]
        line = f"{number.name}: saved at step {step} of 10000; the same command resumes.\n"
        assert out.endswith(line), out
    out = resume(tiny, workdir, {"train.num_steps": max(step + 1, 24)})
    assert f"resumed from {workdir / 'checkpoints' / str(step)}" in out
    values = exact(workdir)
    assert {key: values[key] for key in values if key[0] < 24} == exact(finished)


def logged(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_of_two_runs_in_a_workdir_the_second_is_refused(tiny, tmp_path, hashes):
    workdir = tmp_path / "run"
    with alone(workdir):
        status, _, err = tiny.run(workdir)
    assert (status, hashes(workdir)) == (2, {})
    assert (
        err
        == f"error: another process trains in {workdir}; wait for it, or give another --workdir.\n"
    )


def test_a_run_that_has_not_logged_a_step_binds_nobody(stopped, finished, tiny, exact):
    """One that met the end of a device's memory, say: the command may change and be tried again."""
    workdir = stopped(0)
    (workdir / "checkpoints").rmdir()
    saved = json.loads((workdir / "config.json").read_text())
    saved["data"]["batch_size"] = 4096
    (workdir / "config.json").write_text(json.dumps(saved))
    resume(tiny, workdir)
    assert exact(workdir) == exact(finished)


# What a resumed run may change, and what not


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"optim.peak_lr": 1e-3}, ["optim.peak_lr was 0.003, is 0.001"]),
        ({"model.d_model": 32}, ["model.d_ff", "model.d_model was 16, is 32", "model.head_width"]),
        ({"train.seed": 1}, ["train.seed was 0, is 1"]),
        ({"data.order": "contiguous", "data.separate_documents": False}, ["data.order was"]),
        ({"data.validation_fraction": 0.03}, ["data.validation_fraction was 0.02, is 0.03"]),
        ({"optim.decay_steps": None, "train.num_steps": 30}, ["optim.decay_steps was 24, is 30"]),
        (
            {"model.residual_dropout": 0.5, "train.accumulation_steps": 2},
            ["model.residual_dropout was 0.0, is 0.5", "train.accumulation_steps was 1, is 2"],
        ),
    ],
)
def test_what_changes_the_result_is_refused(keys, named, finished, tiny, hashes):
    before = hashes(finished)
    status, _, err = tiny.run(finished, keys)
    assert (status, err.count("\n"), hashes(finished)) == (2, 1, before)
    assert err.startswith(f"error: {finished} holds a run with another result: ")
    assert all(name in err for name in named), err
    remedy = dict(re.findall(r"--config\.(\S+)=([^\s,]+)", err))
    status, _, err = tiny.run(finished, {**keys, **remedy, "train.num_steps": 24})
    assert (status, err) == (0, "")


def test_another_text_is_refused(finished, tiny, tmp_path, hashes):
    before, other = hashes(finished), tmp_path / "other.txt"
    other.write_text(tiny.text.read_text().replace("assert", "assent"))
    status, _, err = tiny.run(finished, {"data.path": other})
    assert (status, hashes(finished)) == (2, before)
    text = "the text and tokenizer.json it was trained with"
    assert f"another result: {text} have changed. Resume it with {text}, or" in err


def test_what_does_not_change_the_result_may_change(stopped, finished, tiny, exact, tmp_path):
    workdir, moved = stopped(12), shutil.copy(tiny.text, tmp_path / "moved.txt")
    keys = {"data.path": moved, "data.prefetch": 1, "data.cache": tmp_path / "cache"}
    keys |= {"metrics.every_steps": 2, "evaluate.every_steps": 0, "checkpoint.keep_last": 1}
    keys |= {"checkpoint.every_steps": 5, "train.max_skipped_steps": 3}
    resume(tiny, workdir, keys)
    assert steps(workdir) == [8, 24]  # 8 is the best of those that were evaluated
    values, reference = exact(workdir), exact(finished)
    assert {step for step, _ in values if step >= 12} == {13, 15, 17, 19, 21, 23}
    assert all(reference[key] == value for key, value in values.items())


def test_a_constant_schedule_may_be_lengthened(tiny, tmp_path, exact):
    endless = {"optim.schedule": "constant", "optim.decay_steps": None}
    resume(tiny, tmp_path / "whole", endless)
    resume(tiny, tmp_path / "parts", {**endless, "train.num_steps": 8})
    resume(tiny, tmp_path / "parts", endless)
    assert exact(tmp_path / "parts") == exact(tmp_path / "whole")


@pytest.mark.parametrize(
    ("keys", "devices"),
    [(CUBE, 8), ({}, 1), ({"train.accumulation_steps": 4}, 1)],
    ids=["(2,2,2)", "1 device", "1 device, 4 parts"],
)
def test_a_run_goes_on_on_other_devices(keys, devices, stopped, finished, tiny):
    """Saved on mesh (8,1,1): the same batches, and losses that differ by rounding."""
    workdir = stopped(4)
    assert "resumed from" in resume(tiny, workdir, keys, devices)
    assert fingerprints(workdir) == fingerprints(finished)
    difference = np.abs(losses(workdir, 4) / losses(finished, 4) - 1)
    assert len(difference) == 20
    assert difference[0] < 1e-6
    assert difference.max() < 1e-5


# Damage and divergence


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    stopped, finished, tiny, exact
):
    workdir, generator = stopped(20), random.Random(0)
    damaged = workdir / "checkpoints" / "20"
    path = max(damaged.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)
    status, out, err = tiny.run(workdir)
    assert status == 0
    assert (
        err.startswith(f"Checkpoint {damaged} is damaged and not used: ") and err.count("\n") == 1
    )
    assert f"resumed from {workdir / 'checkpoints' / '16'}" in out
    assert exact(workdir) == exact(finished)
    assert steps(workdir) == CHECKPOINTS


def test_a_loss_that_is_not_finite_stops_the_run_and_spoils_nothing(
    stopped, tiny, hashes, tmp_path
):
    """A learning rate of 1e30 is finite, and so is the loss of the first step; no later one is."""
    keys = {"optim.peak_lr": 1e30, "optim.warmup_steps": 0, "train.max_skipped_steps": 3}
    keys |= {"checkpoint.every_steps": 1}
    workdir = tmp_path / "run"
    status, _, err = tiny.run(workdir, keys)
    said = (
        r"not finite in 3 steps in a row, up to step 3 \(loss nan\); none was applied and the last"
    )
    assert status == 1
    assert re.fullmatch(rf"error: [^\n]*{said} checkpoint stands\. [^\n]*peak_lr[^\n]*\n", err), err
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [row["train/skipped_steps"] for row in rows] == [0, 1, 2, 3]
    assert [row["train/loss"] is None for row in rows] == [False, True, True, True]
    assert steps(workdir) == [1, 2, 3]
    arrays = [read(workdir / "checkpoints", step=step)[1] for step in steps(workdir)]
    first, *others = [jax.tree.map(np.ndarray.tobytes, each) for each in arrays]
    assert others == [first, first]


def test_a_profile_is_written(stopped, finished, tiny, exact):
    workdir = stopped(20)
    resume(tiny, workdir, {"metrics.profile_start": 21, "metrics.profile_stop": 22})
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    assert exact(workdir) == exact(finished)


# What it reads


def test_accumulation_changes_rounding_only(finished, tiny, tmp_path):
    resume(tiny, tmp_path / "run", {"train.accumulation_steps": 4}, devices=1)
    assert fingerprints(tmp_path / "run") == fingerprints(finished)
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(finished), rtol=1e-5)


def documents(tiny):
    text = tiny.text.read_text()
    return [text[start : start + 3000] for start in range(0, len(text), 3000)]


def test_a_folder_and_compressed_json_lines_train(tiny, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        for number, text in enumerate(documents(tiny)):
            (folder / f"{number:04}.txt").write_text(text)
            file.write(json.dumps({"body": text}) + "\n")
    keys = {"data.validation_fraction": 0.2, "train.num_steps": 4, "evaluate.every_steps": 4}
    resume(tiny, tmp_path / "a", {**keys, "data.path": folder})
    rows = {"data.path": tmp_path / "rows.jsonl.gz", "data.text_key": "body"}
    resume(tiny, tmp_path / "b", {**keys, **rows})
    for workdir in (tmp_path / "a", tmp_path / "b"):
        assert len(losses(workdir)) == 4
        assert {*read_metrics(workdir / "metrics.jsonl")[-1]} >= EVALUATED


def test_the_contiguous_order_trains_and_resumes(tiny, tmp_path, exact):
    keys = {"data.order": "contiguous", "data.separate_documents": False}
    resume(tiny, tmp_path / "whole", keys)
    resume(tiny, tmp_path / "parts", {**keys, "train.num_steps": 8})
    resume(tiny, tmp_path / "parts", keys)
    assert exact(tmp_path / "parts") == exact(tmp_path / "whole")
