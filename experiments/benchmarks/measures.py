"""What is measured: lm beside PyTorch, how long one waits for it, and what must be installed."""

import dataclasses
import importlib.metadata
import os
import pydoc_data.topics
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from packaging.requirements import Requirement

from experiments.benchmarks.worker import ROOT, SIZES, THREADS, Worker, config_of, stepper

TARGETS = {"small": 0.72, "large": 0.59}  # MaxText's, of step_time
# Of a block of steps, long enough to time and short enough for the machine to stay as it is.
STEPS = {"small": 20, "large": 2}
PAIRS, RUNS, SAVES, BATCHES = 10, 3, 3, 300
LIMIT = 120  # seconds


def step_time(arguments):
    """Seconds of a training step beside PyTorch's, for the same model, in turn."""
    print(f"  float32, AdamW, clipping, {THREADS} threads; ratio = PyTorch's time / lm's")
    for size, target in TARGETS.items():
        print(f"  {size}: layers, width, heads, context, batch {SIZES[size]}; target > {target}")
        for python in arguments.python:
            with (
                Worker(arguments.torch, "torch_worker", size) as torch,
                Worker(python, "worker", size) as lm,
            ):
                # The models are of equal size and start from as good a guess.
                assert abs(torch.about["loss"] - lm.about["loss"]) < 0.1, (torch.about, lm.about)
                assert torch.about["parameters"] == lm.about["parameters"]
                print(f"    {lm.about} beside {torch.about}", flush=True)
                compare(torch, lm, STEPS[size], PAIRS)


def compare(torch, lm, steps, pairs):
    """Print medians of wall and CPU time, and the pairs' ratios: median (smallest to largest)."""
    taken = [(torch.steps(steps), lm.steps(steps)) for _ in range(pairs)]
    for number, kind in enumerate(("wall", "CPU")):
        theirs, ours = (
            [block[number] * 1e3 for block in side] for side in zip(*taken, strict=True)
        )
        ratios = sorted(their / our for their, our in zip(theirs, ours, strict=True))
        ratio, their, our = map(statistics.median, (ratios, theirs, ours))
        told = f"{kind:4} ratio {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        told += f", of fastest blocks {min(theirs) / min(ours):.2f}; ms per step: PyTorch "
        told += f"{their:.1f}, lm {our:.1f}, fastest {min(theirs):.1f} and {min(ours):.1f}"
        print(f"      {told}", flush=True)


def write_text(folder):
    """A file of some hundred thousand characters that every Python has."""
    path = Path(folder) / "text.txt"
    path.write_text("\n".join(pydoc_data.topics.topics.values()))
    return path


def first_step(arguments):
    """The train command on configs/shakespeare.py until its first metrics are on disk."""
    print("  process start to the end of the first step, nothing compiled; target < 5 s")
    for python in arguments.python:
        with tempfile.TemporaryDirectory() as folder:
            text = write_text(folder)
            cold, *runs = (until_first_step(python, folder, text, run) for run in range(1 + RUNS))
        wall, cpu = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
        told = f"{python}: {wall:.1f} s, fastest {min(runs)[0]:.1f}, CPU time {cpu:.1f}"
        print(f"    {told}; tokens not yet stored: {cold[0]:.1f} s", flush=True)


def until_first_step(python, folder, text, run):
    """(wall, CPU) seconds from the start of the process to its first line of metrics."""
    workdir = Path(folder) / f"run{run}"
    command = [python, "-m", "experiments.train", "--config=configs/shakespeare.py"]
    command += [f"--workdir={workdir}", f"--config.data.path={text}"]
    environment = {"LM_CACHE": str(folder), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    environment = {**os.environ, **environment, "XLA_FLAGS": ""}  # as many devices as there are
    start, metrics, null = time.perf_counter(), workdir / "metrics.jsonl", subprocess.DEVNULL
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=null, stderr=null) as process:
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                if process.poll() is not None or time.perf_counter() - start > LIMIT:
                    raise RuntimeError(f"{command} made no step; status {process.returncode}")
                time.sleep(0.01)
            wall = time.perf_counter() - start
        finally:
            process.kill()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime


def import_time(arguments):
    """What importing all that `lm` names costs over importing jax."""
    codes = ("import jax", "import jax, lm; [getattr(lm, name) for name in lm.__all__]")

    def seconds(code):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        return time.perf_counter() - start

    taken = [[seconds(code) for code in codes] for _ in range(2 * RUNS)]
    jax = statistics.median(jax for jax, _ in taken)
    extra = statistics.median(lm - jax for jax, lm in taken)
    told = f"import lm and all its names, over import jax ({jax:.2f} s)"
    print(f"  {told}: {extra:.2f} s more; target <= 0.6 s")


def loader(arguments):
    """Tokens per second that the loader makes ready, beside what the step consumes."""
    for size in TARGETS:
        with Worker(sys.executable, "worker", size) as lm:
            step_seconds = min(lm.steps(5)[0] for _ in range(5))
        config = config_of(size)
        consumed = config.data.batch_size * config.data.sequence_length / step_seconds
        loaded = tokens_per_second(config, BATCHES)
        times = f"{loaded / consumed:.0f} times what the step consumes ({consumed:.0f}/s)"
        print(f"  {size}: {loaded / 1e6:.2f} million tokens/s, {times}; target >= 20", flush=True)


def tokens_per_second(config, batches):
    """Of the thread that reads windows and puts them on the device, in shuffled order."""
    import jax

    from lm.data.loader import Batches, place
    from lm.data.store import open_data
    from lm.mesh import make_mesh, sharding

    with tempfile.TemporaryDirectory() as folder:
        path = str(write_text(folder))
        data = open_data(dataclasses.replace(config.data, path=path, cache=folder))
        source = Batches(data.train, config.data, seed=0)
        where = sharding(make_mesh(devices=jax.devices()[:1]), "microbatches")
        place(source, 0, where, 1)
        start = time.perf_counter()
        for step in range(1, batches + 1):
            place(source, step, where, 1)
        seconds = time.perf_counter() - start
    return batches * config.data.batch_size * config.data.sequence_length / seconds


def saves(arguments):
    """Seconds of a step while a checkpoint is written in the background, and without."""
    with tempfile.TemporaryDirectory() as folder:
        taken = during_saves(*stepper(config_of("large")), folder, SAVES)
    without, during, blocked = (statistics.median(seconds) * 1e3 for seconds in taken)
    steps = f"{during:.0f} ms a step while saving, {without:.0f} ms without"
    keeps = f"a save keeps the loop for {blocked:.0f} ms"
    print(f"  large: {steps}; {keeps} and is done after {len(taken[1]) / SAVES:.1f} steps")


def during_saves(state, train_step, batch, folder, saves):
    """Seconds of steps without a save, of steps during one, and of calls of save."""
    import jax

    from lm.checkpoint import Checkpoints
    from lm.config import CheckpointConfig

    without, during, blocked = [], [], []

    def timed(seconds, function, *arguments):
        start = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
        return result

    kept = {"keep_last": 1, "keep_best": 0, "keep_every_steps": 0}
    config = CheckpointConfig(every_steps=1, host_gb=0.0, **kept)
    state, _ = train_step(state, batch)
    with Checkpoints(folder, config) as checkpoints:
        # The first save, not counted, also imports and compiles.
        checkpoints.save(0, state, wait=True)
        for number in range(1, saves + 1):
            for _ in range(3):
                state, _ = timed(without, train_step, state, batch)
            timed(blocked, checkpoints.save, number, state)
            while number not in checkpoints.steps():
                state, _ = timed(during, train_step, state, batch)
    return without, during, blocked


def installed(arguments):
    """Packages and megabytes that lm requires, without extras."""
    names = required("lm")
    size = sum(size_of(name) for name in names) / 1e6
    print(f"  {len(names)} packages, {size:.0f} MB without extras; target <= 60 and <= 900 MB")


def required(name):
    """The names of what a distribution requires on this machine, and of what that requires."""
    waiting, seen = [(name, "")], {(name, "")}
    while waiting:
        name, extra = waiting.pop()
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed = re.sub(r"[-_.]+", "-", requirement.name).lower()
                new = {(needed, part) for part in ("", *requirement.extras)} - seen
                seen |= new
                waiting += new
    return {name for name, _ in seen} - {"lm"}


def size_of(name):
    """Bytes on disk of what pip installed."""
    paths = {Path(file.locate()).resolve() for file in importlib.metadata.files(name) or ()}
    return sum(path.stat().st_size for path in paths if path.is_file())
