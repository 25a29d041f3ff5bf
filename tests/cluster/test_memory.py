"""keep_freed_memory: seen from outside, as the page faults of allocating and freeing an array."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs Linux and glibc"
)
ROUNDS = 10
# A block of 64 MiB, all its pages written; in processes, as malloc cannot be set back.
PROGRAM = f"""
import importlib.util, resource, sys, threading
import numpy as np
from lm.cluster.memory import keep_freed_memory

def write():
    np.empty(1 << 26, np.uint8)[::4096] = 1

def write_in_a_thread():
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()

call, plugin, where = sys.argv[1:]
importlib.util.find_spec = lambda name: "a plugin" if name == plugin else None
if call == "call":
    keep_freed_memory()
use = write_in_a_thread if where == "thread" else write
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call="call", plugin="none", where="main"):
    """Page faults of ROUNDS rounds, in a process of its own, with or without the call."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, call, plugin, where],
        env={**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ended.stdout)


@pytest.mark.parametrize("where", ["main", "thread"])
def test_freed_memory_is_kept(where):
    everything = ROUNDS * 2**26 // 2**21  # were all of it in huge pages, of 2 MiB
    assert faults(call="no call", where=where) >= everything
    assert faults(where=where) < everything / 10


@pytest.mark.parametrize("plugin", ["jax_plugins", "libtpu"])
def test_where_there_may_be_an_accelerator_nothing_changes(plugin):
    assert faults(plugin=plugin) == pytest.approx(faults(call="no call"), rel=0.1)
