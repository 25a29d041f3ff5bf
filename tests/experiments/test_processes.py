"""Real processes of one run on loopback, with two devices each; the oracle is the run of one.

LM_KILLS: see test_kills.py; here it is half as many, each of one process of two or four.
"""

import json
import os
import random
import signal
import socket
import time

import numpy as np
import pytest

from lm.track.metrics import read_metrics

HOST = socket.gethostname()
TIMEOUT = 10  # seconds
KILLS = max(2, int(os.environ.get("LM_KILLS", "0")) // 2)
SEED = int(os.environ.get("LM_KILLS_SEED", time.time_ns() % 10**6))
# Compiled programs; without a bound of its size, as several tests at once wait for its lock.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": os.path.expanduser("~/.cache/lm/tests-processes"),
    "JAX_COMPILATION_CACHE_MAX_SIZE": "-1",
}
# A process that is killed while it writes one leaves half of it, and who reads that says so.
READ_ONLY = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
STEPS = {"train.num_steps": 40, "optim.decay_steps": 40, "checkpoint.every_steps": 40}
NEVER = {"evaluate.every_steps": 0}
STEPS |= NEVER


@pytest.fixture
def start(tiny):
    """start(count, workdir, keys) -> as many processes as one run; none outlives the test."""
    started = []

    def start(count, workdir, keys=(), codes=(), **environment):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        keys = {"cluster.timeout_seconds": TIMEOUT, **dict(keys)}
        for index in range(count):
            flags = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}"]
            flags = [*flags, f"--process_id={index}"] if count > 1 else []
            code = dict(codes).get(index)
            environment = {**CACHE, **environment}
            started.append(tiny.start(workdir, keys, 2, flags, code, **environment))
        return started[-count:]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def end(processes):
    """[(exit code, stdout, stderr)]; gloo, which tells whom it is connected with, is not heard."""
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert "peer ranks" not in out + err
        ended.append((process.returncode, out, err))
    return ended


def succeed(processes):
    outs = end(processes)
    for code, _, err in outs:
        assert code == 0, err
        assert err == "" or " is slow: " in err
    return outs[0][1]


def logged(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"train/loss") if path.exists() else 0


def wait(workdir, lines, processes):
    while logged(workdir) < lines and all(process.poll() is None for process in processes):
        time.sleep(0.01)


def column(workdir, name):
    rows = read_metrics(workdir / "metrics.jsonl")
    return {row["step"]: row[name] for row in rows if name in row}


def are_alike(workdir, whole):
    assert column(workdir, "data/fingerprint") == column(whole, "data/fingerprint")
    ours, theirs = (column(path, "train/loss") for path in (workdir, whole))
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)


@pytest.mark.kills
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_are_one_run(count, start, tiny, tmp_path, exact):
    """On a mesh that divides weights over processes; two runs of two are equal to the bit."""
    keys = {**STEPS, "mesh.fsdp": 2 if count == 2 else 4}
    whole = tmp_path / "whole"
    assert tiny.run(whole, keys, 2 * count)[0] == 0
    runs = [tmp_path / f"run-{number}" for number in range(4 // count)]
    for workdir in runs:
        out = succeed(start(count, workdir, keys))
        assert "trained to step 40" in out
        are_alike(workdir, whole)
        names = {path.name for path in workdir.iterdir()}
        assert names == {path.name for path in whole.iterdir()}
    assert exact(runs[0]) == exact(runs[-1])
    rows = read_metrics(runs[0] / "metrics.jsonl")
    assert {len(row["hosts/step_seconds"].split()) for row in rows[5:19]} == {count}
    (of_start,) = json.loads((runs[0] / "environment.json").read_text())
    assert (of_start["processes"], of_start["hosts"]) == (count, [HOST] * count)


@pytest.mark.kills
def test_the_others_end_with_one_that_is_killed(start, finished, tmp_path):
    """And what is started again, of as many processes or fewer, goes on where they were."""
    generator = random.Random(SEED)
    for number in range(0, KILLS, 2):
        workdir, seconds = tmp_path / f"run-{number}", []
        for count in (4, 4):
            processes = start(count, workdir, NEVER, **READ_ONLY)
            wait(workdir, logged(workdir) + generator.randint(1, 8), processes)
            time.sleep(generator.uniform(0, 0.2))
            victim, began = generator.randrange(count), time.monotonic()
            processes[victim].kill()
            ended = end(processes)
            seconds.append(time.monotonic() - began)
            line = f"error: process {victim} ({HOST}) has ended without a word"
            for index, (code, _, err) in enumerate(ended):
                assert index == victim or code == 75, err
                assert index == victim or err == f"{line}; the same command resumes.\n"
        assert max(seconds) < TIMEOUT
        processes = start(2, workdir, NEVER)
        wait(workdir, logged(workdir) + 3, processes)
        processes[1].terminate()
        assert "SIGTERM to process 1" in succeed(processes) or logged(workdir) >= 24
        succeed(start(1, workdir, NEVER))
        are_alike(workdir, finished)
    print(f"LM_KILLS_SEED={SEED}: {KILLS} kills, the others ended in {max(seconds):.1f} s")


def test_a_signal_to_one_saves_on_all(start, finished, tmp_path):
    processes = start(2, tmp_path / "run", {"checkpoint.every_steps": 0})
    wait(tmp_path / "run", 3, processes)
    processes[1].terminate()
    out = succeed(processes)
    last = out.splitlines()[-1]
    assert last.startswith(f"SIGTERM to process 1 ({HOST}): saved at step "), out
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert f"saved at step {saved.name} of 24; the same command resumes." in last
    assert logged(tmp_path / "run") == int(saved.name)
    succeed(start(1, tmp_path / "run"))
    are_alike(tmp_path / "run", finished)


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_stops_is_named(stopped, start, tmp_path):
    processes = start(2, tmp_path / "run", {"cluster.timeout_seconds": 5})
    wait(tmp_path / "run", 3, processes)
    processes[stopped].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    ((code, _, err),) = end([processes[1 - stopped]])
    assert time.monotonic() - began < TIMEOUT
    assert (code, err) == (
        75,
        f"error: process {stopped} ({HOST}) has not been heard of for 5 s; the same command "
        "resumes.\n",
    )


# Process 1 reads each batch slowly, and that of step 18 never.
SLOW = """
import time
import lm.data.loader as loader
place = loader.place
def slow_place(batches, step, **keys):
    time.sleep(1000 if step == 18 and "accumulation" in keys and keys["accumulation"] else 0.8)
    return place(batches, step, **keys)
loader.place = slow_place
from experiments import cli
from experiments.train import train
cli.main(train)
"""


def test_a_slow_process_is_named_and_one_that_hangs_writes_stacks(start, tmp_path):
    workdir = tmp_path / "run"
    keys = {"cluster.watchdog_seconds": 6, "data.prefetch": 1, "evaluate.every_steps": 0}
    ended = end(start(2, workdir, keys, {1: SLOW}))
    assert [code for code, _, _ in ended] == [75, 75]
    assert f"process 1 ({HOST}) is slow: it needs " in ended[0][2]
    assert [*column(workdir, "data/fingerprint")] == [*range(18)]
    slowest = column(workdir, "hosts/slowest")
    assert [slowest[step] for step in range(5, 17)] == [1] * 12
    for index, (_, _, err) in enumerate(ended):
        written = (workdir / f"stacks.{index}.txt").read_text()
        assert written in err
        assert "thread MainThread:" in written
        assert ("slow_place" in written) == (index == 1)
        assert "no step has finished for cluster.watchdog_seconds=6" in err.splitlines()[-1]


def test_an_error_of_one_ends_all(start, tmp_path):
    """Process 1's data are gone; it alone sees that."""
    missing = SLOW.replace("time.sleep(1000 if", "1 / (0 if").replace(" else 0.3)", " else 1)")
    ended = end(start(2, tmp_path / "run", {"evaluate.every_steps": 0}, {1: missing}))
    assert [code for code, _, _ in ended] == [1, 1]
    assert ended[0][2] == f"error: process 1 ({HOST}) ended: division by zero\n"
    assert "ZeroDivisionError" in ended[1][2]


OTHER = """
import sys
sys.argv = [{flag!r} if a.split("=")[0] == {flag!r}.split("=")[0] else a for a in sys.argv]
from experiments import cli
from experiments.train import train
cli.main(train)
"""


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.optim.peak_lr=0.5", "process [1] has another configuration or text than"),
        ("--workdir={elsewhere}", "process [1] does not see what process 0 writes"),
    ],
)
def test_processes_that_are_of_two_runs_do_not_train(flag, said, start, tmp_path):
    """Each would for itself, and what they save would be of no run."""
    flag = flag.format(elsewhere=tmp_path / "elsewhere")
    ended = end(start(2, tmp_path / "run", NEVER, {1: OTHER.format(flag=flag)}))
    assert [status for status, _, _ in ended] == [2, 2], ended
    assert all(said in err for _, _, err in ended), ended
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_mesh_that_does_not_fit_is_a_line_of_process_0(start, tmp_path):
    ended = end(start(2, tmp_path / "run", {**NEVER, "mesh.fsdp": 3}))
    line = "needs a multiple of 3 devices, but there are 4; make one of them -1 and let the others"
    assert [(status, out) for status, out, _ in ended] == [(2, ""), (2, "")]
    assert [err.count("\n") for _, _, err in ended] == [1, 1]
    assert ended[0][2].startswith("error: mesh.data=-1 mesh.fsdp=3 mesh.tensor=1 ")
    assert ended[1][2].startswith(f"error: process 0 ({HOST}) ended: mesh.data=-1 mesh.fsdp=3 ")
    assert all(line in err and "--config.mesh.fsdp=2" in err for _, _, err in ended)
    assert not (tmp_path / "run").exists()
