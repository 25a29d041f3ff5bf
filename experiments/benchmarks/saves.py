"""Seconds of a step while a checkpoint is written in the background, and without."""

import statistics
import tempfile
import time

from experiments.benchmarks.worker import config_of

SAVES = 3


def measure(arguments):
    from experiments.benchmarks.lm_worker import stepper

    with tempfile.TemporaryDirectory() as folder:
        without, during, blocked = during_saves(*stepper(config_of("large")), folder, SAVES)
    print(
        f"  large: {statistics.median(during) * 1e3:.0f} ms a step while saving, "
        f"{statistics.median(without) * 1e3:.0f} ms without; a save keeps the loop for "
        f"{statistics.median(blocked) * 1e3:.0f} ms and is done after {len(during) / SAVES:.1f} "
        "steps"
    )


def during_saves(state, train_step, batch, folder, saves):
    """Seconds of steps without a save, of steps during one, and of calls of save."""
    import jax

    from lm.checkpoint import Checkpoints
    from lm.config import CheckpointConfig

    without, during, blocked = [], [], []

    def timed(seconds, run):
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
        return result

    config = CheckpointConfig(
        every_steps=1, keep_last=1, keep_best=0, keep_every_steps=0, host_gb=0.0
    )
    state, _ = train_step(state, batch)
    with Checkpoints(folder, config) as checkpoints:
        # The first save, not counted, also imports and compiles.
        checkpoints.save(0, state, wait=True)
        for number in range(1, saves + 1):
            for _ in range(3):
                state, _ = timed(without, lambda state=state: train_step(state, batch))
            timed(blocked, lambda state=state, step=number: checkpoints.save(step, state))
            while number not in checkpoints.steps():
                state, _ = timed(during, lambda state=state: train_step(state, batch))
    return without, during, blocked
