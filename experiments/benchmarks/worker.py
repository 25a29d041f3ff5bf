"""A model in a process of its own that runs steps on request, so that two can be timed in turn.

    python -m experiments.benchmarks.worker small       # lm's train step; torch_worker is PyTorch's

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

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2
# layers, width, heads, context, batch: nanoGPT's CPU configuration, one 24 times as costly, and one
# for tests.
SIZES = {"small": (4, 128, 4, 64, 12), "large": (6, 384, 6, 256, 8), "tiny": (1, 16, 2, 8, 2)}
VOCAB = 65
WARMUP = 5  # steps


def config_of(size):
    """configs/shakespeare.py, and in another size."""
    from configs.shakespeare import cpu
    from lm.config import resolve

    layers, width, heads, length, batch = SIZES[size]
    keys = cpu()
    keys.model.update(num_layers=layers, d_model=width, num_heads=heads)
    keys.data.update(sequence_length=length, batch_size=batch)
    return resolve(keys, VOCAB)


def stepper(config):
    """(state, train_step, batch) of a run on one device, on random tokens."""
    import jax

    from lm.mesh import make_mesh, sharding
    from lm.nn.transformer import Transformer
    from lm.train.state import abstract_state, initial_state
    from lm.train.step import make_train_step

    mesh, model = make_mesh(devices=jax.devices()[:1]), Transformer(config.model)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, config, mesh))
    shape = (1, config.data.batch_size, config.data.sequence_length + 1)
    tokens = np.random.default_rng(0).integers(0, VOCAB, shape, np.int32)
    weights = np.ones((*shape[:2], shape[2] - 1), np.float32)
    batch = {"tokens": tokens[..., :-1], "targets": tokens[..., 1:], "weights": weights}
    batch = jax.device_put(batch, sharding(mesh, "microbatches"))
    state = initial_state(model, config, mesh)
    return state, make_train_step(model, config, shardings), batch


def serve(run, about):
    """Answer each line, a number of steps, with [wall, CPU] seconds of run(number), as JSON.

    The first answer, unasked and after a warm-up, is `about`: facts about model and versions.
    """
    run(WARMUP)
    print(json.dumps({**about, "python": platform.python_version()}), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run(int(line))
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


class Worker:
    """A worker under a given interpreter; a context manager."""

    def __init__(self, python, module, size):
        command = [python, "-m", f"experiments.benchmarks.{module}", size]
        pipes: dict = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
        assert self._process.stdin and self._process.stdout
        self._questions, self._answers = self._process.stdin, self._process.stdout
        if hasattr(os, "sched_setaffinity"):  # Linux; before it makes threads, which inherit it
            cores = sorted(os.sched_getaffinity(0))[:THREADS]
            os.sched_setaffinity(self._process.pid, cores)
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


def main(size):
    from lm.cluster.memory import keep_freed_memory

    keep_freed_memory()
    import jax

    state, train_step, batch = stepper(config_of(size))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))

    def run(steps):
        """As the loop runs them: a step's loss is read when the next one is under way."""
        nonlocal state
        state, metrics = train_step(state, batch)
        for _ in range(steps - 1):
            last = metrics
            state, metrics = train_step(state, batch)
            float(last["loss"])
        return float(metrics["loss"])

    serve(run, {"loss": run(1), "parameters": parameters, "jax": jax.__version__})


if __name__ == "__main__":
    main(sys.argv[1])
