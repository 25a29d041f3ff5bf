"""What every process of a run knows of all others, through the train step itself: no other program
runs between steps, and all know the same at the same step.
"""

import collections
import resource
import signal
import statistics
import time

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

WINDOW = 10  # steps whose median counts: a save or an evaluation in one of them does not
SLOW = 1.5  # times the median of all processes


class Hosts:
    """A train step of many processes: each tells of itself and learns, a step later, of all.

    train_step: (state, batch, hosts) -> (state, metrics); hosts: float32 (devices, 4), of each
    device its process's signal, seconds of the step, seconds of it that were waiting, and peak
    memory in GiB; metrics["hosts"] holds all of it on every device.
    requested: as of lm.cluster.signals; every process sees it at the same step.
    """

    def __init__(self, train_step, mesh, signals, processes, clock=time.perf_counter):
        self.train_step, self.signals, self.clock = train_step, signals, clock
        self.processes, self.requested = processes, None
        self.sharding = NamedSharding(mesh, P(mesh.axis_names))
        of_device = [device.process_index for device in mesh.devices.flat]
        self.first_device = [of_device.index(process) for process in range(len(processes.hosts))]
        self.steps, self.last, self.own, self.former = 0, 0.0, (0.0, 0.0), None
        self.seconds, self.peak, self.named = collections.deque(maxlen=WINDOW), 0.0, None

    def __call__(self, state, batch):
        name = self.signals.requested
        row = [signal.Signals[name] if name else 0, *self.own, peak_gib()]
        table = np.tile(np.asarray(row, np.float32), (self.sharding.mesh.size, 1))
        hosts = jax.make_array_from_callback(table.shape, self.sharding, lambda part: table[part])
        before = self.clock()  # some backends wait for the step before when the next is called
        state, metrics = self.train_step(state, batch, hosts)
        former, self.former = self.former, metrics.pop("hosts")
        if former is not None:
            self._read(np.asarray(former)[self.first_device])
        now = self.clock()
        if self.steps > 1:  # before that steps are compiled
            self.own = now - self.last, now - before
        self.steps, self.last = self.steps + 1, now
        return state, metrics

    def _read(self, table):
        number, step, waited, peak = table.T
        if number.any() and not self.requested:
            process = int(np.flatnonzero(number)[0])
            name = signal.Signals(int(number[process])).name
            self.requested = f"{name} to process {process} ({self.processes.hosts[process]})"
        # What a process needed for itself: the slowest waits least, for its own devices only.
        if step.all():
            self.seconds.append(step - (waited - waited.min()))
        self.peak = float(peak.max())

    def metrics(self):
        """(metrics of the last steps, a line if another process than before is slow, or None)"""
        values: dict[str, object] = {"hosts/peak_gib": self.peak}
        line = None
        if self.seconds:
            each = np.median(self.seconds, 0)
            slowest, median = int(each.argmax()), statistics.median_low(each)
            values["hosts/step_seconds"] = " ".join(f"{seconds:.4g}" for seconds in each)
            values["hosts/slowest"] = slowest
            slow = len(self.seconds) == WINDOW and each[slowest] > SLOW * median
            if slow and self.named != slowest:
                needs = f"{each[slowest]:.3g} s for a step, the median {median:.3g} s"
                name = f"process {slowest} ({self.processes.hosts[slowest]})"
                line = f"{name} is slow: it needs {needs}; all wait for it."
            self.named = slowest if slow else None
        return values, line


def peak_gib():
    """The most memory that this process has had, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
