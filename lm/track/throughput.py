"""Tokens per second, and model FLOPs utilisation: the part of the chips' peak that a run uses."""

import time


class Throughput:
    """rate(step) -> metrics of the steps since the last call, by their wall time.

    first_step: the first that this process runs; time counts from here.
    flops_per_token: of forward and backward pass, nothing recomputed (PaLM, arXiv:2204.02311,
    appendix B). peak_flops: FLOP/s of all chips together; None if not known: no train/mfu.
    """

    def __init__(
        self, first_step, tokens_per_step, flops_per_token, peak_flops=None, clock=time.perf_counter
    ):
        self.tokens_per_step, self.clock = tokens_per_step, clock
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.last_step, self.last_time = first_step - 1, clock()

    def __call__(self, step):
        now = self.clock()
        rate = (step - self.last_step) * self.tokens_per_step / (now - self.last_time)
        self.last_step, self.last_time = step, now
        metrics = {"train/tokens_per_second": rate}
        if self.peak_flops is not None:
            metrics["train/mfu"] = rate * self.flops_per_token / self.peak_flops
        return metrics
