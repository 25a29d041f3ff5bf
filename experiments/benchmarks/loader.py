"""Tokens per second that the loader makes ready, beside what the step consumes."""

import dataclasses
import sys
import tempfile
import time

from experiments.benchmarks.startup import write_text
from experiments.benchmarks.worker import Worker, config_of

TARGET = 20
BATCHES = 300


def measure(arguments):
    for size in ("small", "large"):
        with Worker(sys.executable, "lm_worker", size) as lm:
            step_seconds = min(lm.steps(5)[0] for _ in range(5))
        config = config_of(size)
        tokens = config.data.batch_size * config.data.sequence_length
        consumed, loaded = tokens / step_seconds, tokens_per_second(config, BATCHES)
        print(
            f"  {size}: {loaded / 1e6:.2f} million tokens/s, {loaded / consumed:.0f} times what "
            f"the step consumes ({consumed:.0f}/s); target >= {TARGET}",
            flush=True,
        )


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
