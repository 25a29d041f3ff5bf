"""Whether experts die: a router that never chooses an expert never trains it."""

import numpy as np

WINDOW = 20  # logged steps that are looked at together


class DeadExperts:
    """warning(step, counts): a line if some experts had no token in any of the last logged steps.
    counts: (layers with experts, experts), the choices of one step. The line comes once for each
    WINDOW of them, and is None else.
    """

    def __init__(self, window=WINDOW):
        self.window, self.seen, self.total = window, 0, 0

    def __call__(self, step, counts):
        self.seen, self.total = self.seen + 1, self.total + np.asarray(counts, np.float64)
        if self.seen < self.window:
            return None
        dead = np.argwhere(self.total == 0)
        size, self.seen, self.total = self.total.size, 0, 0
        if not len(dead):
            return None
        named = ", ".join(f"layer {layer} expert {expert}" for layer, expert in dead[:4])
        more = f" and {len(dead) - 4} more" if len(dead) > 4 else ""
        told = f"step {step}: {len(dead)} of {size} experts had no token in {self.window} logged "
        remedy = "A larger objective.router_aux_loss or optim.router_bias_step spreads tokens."
        return f"{told}steps: {named}{more} (layers with experts count from 0). {remedy}"
