"""A model in a process of its own that runs steps on request, so that two can be timed in turn.

The driver writes a number of steps to a worker's standard input and reads back the seconds they
took. A worker keeps to THREADS cores, and so do the thread pools of XLA and PyTorch.
"""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2
# layers, width, heads, context, batch: nanoGPT's CPU configuration, one 24 times as costly, and one
# for tests.
SIZES = {"small": (4, 128, 4, 64, 12), "large": (6, 384, 6, 256, 8), "tiny": (1, 16, 2, 8, 2)}
VOCAB = 65
WARMUP = 5  # steps


def keep_to_threads():
    """Call before importing what makes threads."""
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


def config_of(size):
    """configs/shakespeare.py, and in another size."""
    from configs.shakespeare import cpu
    from lm.config import resolve

    layers, width, heads, length, batch = SIZES[size]
    keys = cpu()
    keys.model.update(num_layers=layers, d_model=width, num_heads=heads)
    keys.data.update(sequence_length=length, batch_size=batch)
    return resolve(keys, VOCAB)


def serve(run, about):
    """Answer each line, a number of steps, with [wall, CPU] seconds of run(number), as JSON.

    The first answer, unasked and after a warm-up, is `about`: facts about model and versions.
    """
    run(WARMUP)
    about["python"] = platform.python_version()
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run(int(line))
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


class Worker:
    """A worker under a given interpreter; a context manager."""

    def __init__(self, python, module, *arguments):
        self._process = subprocess.Popen(
            [python, "-m", f"experiments.benchmarks.{module}", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin and self._process.stdout
        self._questions, self._answers = self._process.stdin, self._process.stdout
        self.about = self._read()

    def steps(self, number):
        """(wall, CPU) seconds per step."""
        print(number, file=self._questions, flush=True)
        return [seconds / number for seconds in self._read()]

    def _read(self):
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._questions.close()
        self._process.wait()
