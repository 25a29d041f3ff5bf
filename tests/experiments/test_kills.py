"""SIGKILL at random moments: a run that is started again until it ends is the run without kills.

LM_KILLS: how many, half of them on one device and half on eight. LM_KILLS_SEED: of the moments.
"""

import dataclasses
import functools
import os
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from tests.checkpoints import read

KILLS = int(os.environ.get("LM_KILLS", "5"))
SEED = int(os.environ.get("LM_KILLS_SEED", time.time_ns() % 10**6))
# What is killed, in turn: a save, what comes before the first step, the building of the token
# store, a save, a step or an evaluation.
MOMENTS = ("save", "start", "tokens", "save", "step")
LAYOUTS = {1: {}, 8: {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}}
KEYS = {"checkpoint.keep_last": 2, "data.validation_fraction": 0.003}
# A process killed while jax writes to its cache leaves half an entry, and whoever reads that says
# so: those that are killed read what the run without kills has written, and write nothing.
READ_ONLY = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
POLL = 0.002  # seconds


@pytest.mark.kills
@pytest.mark.parametrize("devices", [1, 8])
def test_a_run_that_is_killed_is_the_run_that_is_not(devices, help_run, tmp_path, exact):
    generator, cache = random.Random(f"{SEED} {devices}"), tmp_path / "cache"
    moments = [MOMENTS[n % len(MOMENTS)] for n in range(devices // 8, KILLS, 2)]
    planned, made = list(moments), 0

    def start(workdir, **environment):
        keys = {**KEYS, **LAYOUTS[devices]}
        return help_run.start(workdir, keys, devices, LM_CACHE=str(cache), **environment)

    whole, workdir = tmp_path / "whole", tmp_path / "run"
    began, process = time.monotonic(), start(whole)
    wait(process, lambda: logged(whole))
    start_seconds = min(5, time.monotonic() - began)
    assert end(process) == 0

    def check():
        assert exact(workdir) == exact(whole)
        assert names(workdir) == names(whole)
        assert names(workdir / "checkpoints") == names(whole / "checkpoints")
        states = [read(folder / "checkpoints", only=None)[1] for folder in (workdir, whole)]
        jax.tree.map(np.testing.assert_array_equal, *states)

    while moments:
        arrived, seconds, hit = when(moments[0], workdir, cache, start_seconds, generator)
        process = start(workdir, **READ_ONLY)
        wait(process, arrived)
        time.sleep(generator.uniform(0, seconds))
        process.kill()
        if end(process) == 0:  # before its moment came
            check()
            workdir = tmp_path / f"run-{made}"
            continue
        made += 1
        if hit():
            moments.pop(0)
        assert made <= 3 * len(planned) + 10, f"kills miss their moment: {moments[0]}"
    assert end(start(workdir, **READ_ONLY)) == 0
    check()
    print(f"{devices} devices, LM_KILLS_SEED={SEED}: {made} kills, of which as planned", end=" ")
    print(", ".join(f"{planned.count(moment)} {moment}" for moment in dict.fromkeys(planned)))


def wait(process, arrived):
    while process.poll() is None and not arrived():
        time.sleep(POLL)


def end(process):
    """0, or -SIGKILL, once it has ended; either way it has complained of nothing."""
    _, err = process.communicate(timeout=300)
    assert (process.returncode in (0, -signal.SIGKILL), err) == (True, "")
    return process.returncode


def logged(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def names(folder, pattern="*"):
    return sorted(path.name for path in folder.glob(pattern))


def when(moment, workdir, cache, start_seconds, generator):
    """(arrived, seconds, hit) of the next kill: it comes up to some seconds after arrived().

    hit(): whether it then was the moment.
    """
    lines, checkpoints = logged(workdir), workdir / "checkpoints"

    def new_lines(least=1):
        return logged(workdir) - lines >= least

    def store():
        return names(cache / "tokens", "*.*.*")

    if moment == "save":
        newest = max((int(name) for name in names(checkpoints) if name.isdecimal()), default=0)
        half = checkpoints / f"{min(24, newest + 4 * generator.randint(1, 3))}.partial"
        return half.exists, 0.05, lambda: names(checkpoints, "*.partial")
    if moment == "start":
        until = time.monotonic() + generator.uniform(0, start_seconds)
        return lambda: new_lines() or time.monotonic() > until, 0, lambda: not new_lines()
    if moment == "tokens":
        shutil.rmtree(cache)
        return store, 0.01, store
    return functools.partial(new_lines, generator.randint(1, 10)), 0.1, lambda: True


@pytest.fixture
def help_run(tiny, tmp_path):
    """tiny, with a longer text, so that its token store is not built in no time."""
    from pydoc_data.topics import topics

    path = tmp_path / "help.txt"
    path.write_text("\n".join(topics[name] for name in sorted(topics)))
    return dataclasses.replace(tiny, text=path)
