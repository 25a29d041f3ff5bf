"""Runs of seconds: a tiny model on real text, in the tests' process or in one of its own."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import cli
from experiments.train import train
from lm.track.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "model.d_model": 16,
    "model.num_layers": 2,
    "model.num_heads": 4,
    "model.vocab_size": 258,  # of bytes and end of text, and even, for a mesh to divide
    "data.tokenizer": "bytes",
    "data.batch_size": 8,
    "data.sequence_length": 16,
    "data.validation_fraction": 0.02,
    "optim.peak_lr": 3e-3,
    "optim.warmup_steps": 2,
    "optim.decay_steps": 24,
    "train.num_steps": 24,
    "metrics.every_steps": 1,
    "evaluate.every_steps": 8,
    "checkpoint.every_steps": 4,
    "checkpoint.keep_last": 9,
}
# What a step logs that depends on nothing but the run; the rest of it is time.
EXACT = (
    *("train/loss", "train/grad_norm", "train/lr", "train/skipped_steps"),
    *("eval/loss", "eval/bits_per_byte", "data/fingerprint"),
)


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Tiny runs of the text in a file; `keys` are what differs from KEYS, None leaves one out."""

    text: Path
    cache: Path  # of token stores; not shared, as who waits for another builder says so

    def arguments(self, workdir, keys=()):
        keys = {"data.path": self.text, **KEYS, **dict(keys)}
        flags = [f"--config.{key}={value}" for key, value in keys.items() if value is not None]
        return ["--config=configs/base.py", f"--workdir={workdir}", *flags]

    def run(self, workdir, keys=(), devices=8):
        """(exit code, stdout, stderr) of the command, in this process on some of its devices."""
        out, err, all_devices = io.StringIO(), io.StringIO(), jax.devices()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            patch.setenv("LM_CACHE", str(self.cache))
            patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # put back what the command adds
            patch.setattr(jax, "devices", lambda: all_devices[:devices])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = cli._status(train, self.arguments(workdir, keys))
        return status, out.getvalue(), err.getvalue()

    def start(self, workdir, keys=(), devices=8, flags=(), code=None, **environment):
        """The command as a process of its own; code: Python to run in its place."""
        command = ["-m", "experiments.train"] if code is None else ["-c", code]
        arguments = [*flags, *self.arguments(workdir, keys)]
        flags = f"--xla_force_host_platform_device_count={devices}"
        return subprocess.Popen(
            [sys.executable, *command, *arguments],
            cwd=ROOT,
            env={**os.environ, "LM_CACHE": str(self.cache), "XLA_FLAGS": flags, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Tiny runs of real text that every machine has: chapters of Python's help."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "help.txt").write_text("\n".join(topics[name] for name in sorted(topics)[:12]))
    return Tiny(folder / "help.txt", folder / "cache")


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """The workdir of a whole run on mesh (8,1,1), with all its checkpoints; not to be changed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    status, out, err = tiny.run(workdir)
    assert (status, err) == (0, ""), err
    assert out.endswith(f"trained to step 24; curve: {workdir / 'curve.png'}\n"), out
    return workdir


@pytest.fixture
def stopped(finished, tmp_path):
    """stopped(step) -> a copy of the finished run as if it had been killed after saving `step`."""

    def stopped(step, name="run"):
        workdir = shutil.copytree(finished, tmp_path / name)
        for path in (workdir / "checkpoints").iterdir():
            if int(path.name) > step:
                shutil.rmtree(path)
        metrics = workdir / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text("".join(line for line in lines if json.loads(line)["step"] < step))
        return workdir

    return stopped


@pytest.fixture(scope="session")
def exact():
    """exact(workdir) -> {(step, name): value} of what is EXACT; numbers as hexadecimal floats."""

    def exact(workdir):
        rows = read_metrics(workdir / "metrics.jsonl")
        names = [(row, name) for row in rows for name in EXACT if name in row]
        return {
            (row["step"], name): float(row[name]).hex()
            if isinstance(row[name], int | float)
            else row[name]
            for row, name in names
        }

    return exact


@pytest.fixture(scope="session")
def hashes():
    """hashes(folder) -> {name: hash} of every file below it."""

    def hashes(folder):
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return hashes
