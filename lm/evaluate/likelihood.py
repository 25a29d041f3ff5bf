"""How well a model predicts the validation part: nats per token, bits per byte."""

import functools
import math

import jax

from lm.data.loader import place, prefetch
from lm.mesh import sharding

IN_FLIGHT = 8  # batches on the devices, or on their way


class Likelihood:
    """evaluate(params) -> {"eval/loss", "eval/bits_per_byte"} over the whole validation part.

    eval_step: (params, batch) -> (nats, weight), see lm.train.step. batches: ValidationBatches.
    num_bytes: of the validation text in UTF-8, by which bits are divided, so that tokenizers can
    be compared; None, without bits per byte, where only parts of it are predicted. ahead: batches
    prepared in advance.
    """

    def __init__(self, eval_step, batches, num_bytes, mesh, ahead):
        self.eval_step, self.batches, self.num_bytes = eval_step, batches, num_bytes
        spread, self.ahead = sharding(mesh, "microbatches"), ahead
        self.place = functools.partial(place, batches, sharding=spread, accumulation=1)

    def __call__(self, params):
        sums = []
        for batch in prefetch(self.place, range(len(self.batches)), self.ahead):
            sums.append(self.eval_step(params, batch))
            # Not all at once: batches would fill the memory, and XLA's CPU devices can deadlock.
            jax.block_until_ready(sums[-IN_FLIGHT:][0])
        # Summed on the host in float64: float32 loses digits over millions of tokens.
        columns = zip(*jax.device_get(sums), strict=True)
        nats, weights = (math.fsum(map(float, column)) for column in columns)
        found = {"eval/loss": nats / weights}
        if self.num_bytes is not None:
            found["eval/bits_per_byte"] = nats / math.log(2) / self.num_bytes
        return found
