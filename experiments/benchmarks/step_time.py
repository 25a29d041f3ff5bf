"""Seconds of a training step beside PyTorch's, for the same model, in turn."""

import statistics

from experiments.benchmarks.worker import SIZES, THREADS, Worker

TARGETS = {"small": 0.72, "large": 0.59}  # MaxText's
# Of a block of steps, long enough to time and short enough for the machine to stay as it is.
STEPS = {"small": 20, "large": 2}
PAIRS = 10


def step_time(arguments):
    print(f"  float32, AdamW, clipping, {THREADS} threads; ratio = PyTorch's time / lm's")
    for size, target in TARGETS.items():
        print(f"  {size}: layers, width, heads, context, batch {SIZES[size]}; target > {target}")
        for python in arguments.python:
            with (
                Worker(arguments.torch, "torch_worker", size) as torch,
                Worker(python, "lm_worker", size) as lm,
            ):
                # The models are of equal size and start from as good a guess.
                assert abs(torch.about["loss"] - lm.about["loss"]) < 0.1, (torch.about, lm.about)
                assert torch.about["parameters"] == lm.about["parameters"]
                print(f"    {_versions(lm)} beside {_versions(torch)}", flush=True)
                compare(torch, lm, STEPS[size], PAIRS)


def _versions(worker):
    shown = {key: worker.about[key] for key in ("python", "jax", "torch") if key in worker.about}
    return ", ".join(f"{key} {version}" for key, version in shown.items())


def compare(torch, lm, steps, pairs):
    """Print medians of wall and CPU time, and the pairs' ratios: median (smallest to largest)."""
    taken = [(torch.steps(steps), lm.steps(steps)) for _ in range(pairs)]
    for number, kind in enumerate(("wall", "CPU")):
        theirs, ours = ([block[number] for block in side] for side in zip(*taken, strict=True))
        ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
        least = f"{min(theirs) * 1e3:.1f} and {min(ours) * 1e3:.1f}"
        print(
            f"      {kind:4} ratio {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}), of fastest blocks "
            f"{min(theirs) / min(ours):.2f}; ms per step: PyTorch "
            f"{statistics.median(theirs) * 1e3:.1f}, lm {statistics.median(ours) * 1e3:.1f}, "
            f"fastest {least}",
            flush=True,
        )
