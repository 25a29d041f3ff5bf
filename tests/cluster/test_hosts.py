"""What processes know of one another, with three that are made up on eight devices."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from lm.cluster.hosts import WINDOW, Hosts, peak_gib
from lm.cluster.processes import Processes
from lm.mesh import make_mesh

OF_DEVICE = [0, 0, 2, 2, 2, 1, 1, 1]  # the process of each device


@dataclasses.dataclass
class Table:
    """A step that gives what was handed in, with the rows of the processes set from outside."""

    rows: dict

    def __call__(self, state, batch, hosts):
        table = np.array(hosts)
        assert table.shape == (8, 4)
        assert (table == table[0]).all()
        self.own = table[0]
        for device, process in enumerate(OF_DEVICE):
            table[device] = self.rows.get(process, table[device])
        return state + 1, {"loss": batch, "hosts": table}


@pytest.fixture
def hosts():
    mesh = make_mesh(devices=jax.devices()[:8])
    clock = iter(range(1000))
    signals = types.SimpleNamespace(requested=None)
    made = Hosts(Table({}), mesh, signals, Processes(), clock=lambda: float(next(clock)))
    made.processes.hosts = ["a", "b", "c"]
    made.first_device = [OF_DEVICE.index(process) for process in range(3)]
    return made


def test_a_signal_is_seen_a_step_later_and_the_first_counts(hosts):
    hosts(0, "batch")
    hosts.train_step.rows = {1: [15, 0, 0, 0], 2: [2, 0, 0, 0]}
    state, metrics = hosts(1, "batch")
    assert (state, metrics) == (2, {"loss": "batch"})
    assert hosts.requested is None
    hosts.train_step.rows = {0: [15, 0, 0, 0]}
    hosts(2, "batch")
    assert hosts.requested == "SIGTERM to process 1 (b)"
    hosts(3, "batch")
    assert hosts.requested == "SIGTERM to process 1 (b)"


def test_our_signal_and_seconds_are_told(hosts):
    """The clock advances by 1 whenever it is read: twice a step."""
    for _ in range(3):
        hosts(0, "batch")
        assert hosts.train_step.own[:3].tolist() == [0, 0, 0]
    hosts.signals.requested = "SIGTERM"
    hosts(0, "batch")
    assert hosts.train_step.own[:3].tolist() == [15, 2, 1]
    assert hosts.train_step.own[3] == pytest.approx(peak_gib(), rel=0.2)


def test_who_waits_least_is_slow(hosts):
    """All take 10 s: a waits 9, b 2 and c 8.5; without one another they take 3, 10 and 3.5."""
    hosts.train_step.rows = {0: [0, 10, 9, 1], 1: [0, 10, 2, 7], 2: [0, 10, 8.5, 2]}
    for _ in range(WINDOW):
        hosts(0, "batch")
        assert hosts.metrics()[1] is None
    hosts(0, "batch")
    values, slow = hosts.metrics()
    assert values == {"hosts/step_seconds": "3 10 3.5", "hosts/slowest": 1, "hosts/peak_gib": 7}
    assert slow == (
        "process 1 (b) is slow: it needs 10 s for a step, the median 3.5 s; all wait for it."
    )
    assert hosts.metrics() == (values, None)
    hosts.train_step.rows |= {0: [0, 10, 0, 1], 1: [0, 10, 9, 7]}
    for _ in range(WINDOW):
        hosts(0, "batch")
    assert hosts.metrics()[1].startswith("process 0 (a) is slow: it needs 10 s")


def test_nobody_is_slow_where_all_are_alike(hosts):
    hosts.train_step.rows = {0: [0, 10, 1, 1], 1: [0, 10, 2, 1], 2: [0, 10, 1.5, 1]}
    for _ in range(WINDOW + 1):
        hosts(0, "batch")
    values, slow = hosts.metrics()
    assert (values["hosts/step_seconds"], slow) == ("10 9 9.5", None)
