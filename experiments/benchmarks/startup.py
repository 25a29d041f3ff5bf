"""How long one waits: for the first step of a new run, and for `import lm`."""

import os
import pydoc_data.topics
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.benchmarks.worker import ROOT

FIRST_STEP_SECONDS, IMPORT_SECONDS = 5, 0.6
RUNS = 3
LIMIT = 120  # seconds


def write_text(folder):
    """A file of some hundred thousand characters that every Python has."""
    path = Path(folder) / "text.txt"
    path.write_text("\n".join(pydoc_data.topics.topics.values()))
    return path


def first_step(arguments):
    """The train command on configs/shakespeare.py until its first metrics are on disk."""
    print(
        f"  process start to the end of the first step, nothing compiled; target < "
        f"{FIRST_STEP_SECONDS} s"
    )
    for python in arguments.python:
        with tempfile.TemporaryDirectory() as folder:
            text = write_text(folder)
            cold, *runs = (until_first_step(python, folder, text, run) for run in range(1 + RUNS))
        wall, cpu = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
        least = min(seconds for seconds, _ in runs)
        print(
            f"    {python}: {wall:.1f} s, fastest {least:.1f}, CPU time {cpu:.1f}; tokens not yet "
            f"stored: {cold[0]:.1f} s",
            flush=True,
        )


def until_first_step(python, folder, text, run):
    """(wall, CPU) seconds from the start of the process to its first line of metrics."""
    workdir = Path(folder) / f"run{run}"
    command = [python, "-m", "experiments.train", "--config=configs/shakespeare.py"]
    environment = {**os.environ, "LM_CACHE": folder, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    start, used = time.perf_counter(), _children_seconds()
    process = subprocess.Popen(
        [*command, f"--workdir={workdir}", f"--config.data.path={text}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    metrics = workdir / "metrics.jsonl"
    try:
        while not (metrics.exists() and metrics.stat().st_size):
            if process.poll() is not None or time.perf_counter() - start > LIMIT:
                raise RuntimeError(f"{process.args} made no step; status {process.returncode}")
            time.sleep(0.01)
        wall = time.perf_counter() - start
    finally:
        process.kill()
        process.wait()
    return wall, _children_seconds() - used


def _children_seconds():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def import_time(arguments):
    """What importing all that `lm` names costs over importing jax."""
    jax, lm = [], []
    everything = "import lm; [getattr(lm, name) for name in lm.__all__]"
    for _ in range(2 * RUNS):
        jax.append(_python_seconds("import jax"))
        lm.append(_python_seconds(f"import jax; {everything}"))
    extra = statistics.median(after - before for before, after in zip(jax, lm, strict=True))
    print(
        f"  import lm and all its names, over import jax ({statistics.median(jax):.2f} s): "
        f"{extra:.2f} s more; target <= {IMPORT_SECONDS} s"
    )


def _python_seconds(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    return time.perf_counter() - start
