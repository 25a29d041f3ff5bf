"""How processes meet: each a thread here, without jax, on loopback; runs of them are in
tests/experiments/test_processes.py.
"""

import concurrent.futures
import socket
import subprocess
import sys
import time

import pytest

from lm.cluster.processes import Processes, together
from lm.errors import RunError, UserError

HOST = socket.gethostname()


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def meet(port, members, timeout=2):
    """What each of the (index, count) got: its Processes, or the error."""

    def one(member):
        processes = Processes(*member, timeout)
        try:
            processes.meet(("127.0.0.1", port))
        except (RunError, UserError) as error:
            return error
        processes._leaving = True  # nobody here dies; the test does not end either
        return processes

    with concurrent.futures.ThreadPoolExecutor(len(members)) as threads:
        return list(threads.map(one, members))


def test_all_know_all_hosts_in_order(port):
    found = meet(port, [(2, 4), (0, 4), (3, 4), (1, 4)])
    assert [processes.hosts for processes in found] == [[HOST] * 4] * 4


def test_process_0_is_first(port):
    order, found = [], meet(port, [(0, 3), (1, 3), (2, 3)])

    def one(processes):
        with processes.first_process_first():
            if processes.index == 0:
                time.sleep(0.3)
            order.append(processes.index)

    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        list(threads.map(one, reversed(found)))
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_who_did_not_come_is_named_by_all(port):
    start = time.monotonic()
    errors = meet(port, [(0, 5), (1, 5), (3, 5)])
    assert time.monotonic() - start < 4
    for error in errors:
        assert isinstance(error, RunError)
        assert "process 2, 4 did not come within cluster.timeout_seconds=2" in str(error)


def test_nobody_is_there(port):
    (error,) = meet(port, [(1, 2)])
    assert isinstance(error, RunError)
    assert f"process 1 cannot reach process 0 at 127.0.0.1:{port}" in str(error)
    assert "Connection refused" in str(error)


def test_something_else_is_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        (error,) = meet(server.getsockname()[1], [(1, 2)])
    assert "something is there, but does not begin the run" in str(error)


def test_the_port_is_taken():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        (error,) = meet(port, [(0, 2)])
    assert isinstance(error, RunError)
    assert f"cannot listen on port {port} of {HOST}: Address already in use" in str(error)


def test_one_number_twice_and_two_counts(port):
    """Who is wrong is told at once; the others go on."""
    first = concurrent.futures.ThreadPoolExecutor(1).submit(meet, port, [(0, 3), (1, 3)], 5)
    time.sleep(0.5)
    twice, other = meet(port, [(1, 3), (2, 4)])
    assert isinstance(twice, UserError)
    assert f"--process_id=1 is another's, on {HOST}" in str(twice)
    assert isinstance(other, UserError)
    assert "--num_processes=4 is 3 in process 0" in str(other)
    (last,) = meet(port, [(2, 3)])
    assert [processes.hosts for processes in (*first.result(), last)] == [[HOST] * 3] * 3


def test_strangers_are_let_go(port):
    first = concurrent.futures.ThreadPoolExecutor(1).submit(meet, port, [(0, 2)], 5)
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b"{}\n", b"\x00\x01\n"):
        for _ in range(50):
            try:
                stranger = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                time.sleep(0.1)
        stranger.sendall(words)
    (second,) = meet(port, [(1, 2)])
    assert second.hosts == first.result()[0].hosts == [HOST] * 2


ENDING = """
import sys, time
from lm.cluster.processes import Processes
from lm.errors import UserError
processes = Processes(int(sys.argv[2]), 3, 2)
processes.meet(("127.0.0.1", int(sys.argv[1])))
print("met", flush=True)
with processes.telling():
    if sys.argv[3] == "fails":
        raise UserError("this is wrong")
    if sys.argv[3] == "stuck":
        processes.stacks("it hangs")
    time.sleep(30)
"""


@pytest.mark.parametrize(("who", "how"), [(0, "fails"), (1, "fails"), (0, "stuck"), (2, "stuck")])
def test_all_end_with_one(who, how, port):
    """By an error, with its status and text; or all with their stacks and 75."""
    roles = [how if index == who else "waits" for index in range(3)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", ENDING, str(port), str(index), role],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index, role in enumerate(roles)
    ]
    for index, process in enumerate(started):
        _, err = process.communicate(timeout=60)
        if how == "stuck":
            assert process.returncode == 75
            assert err.startswith(f"stacks of process {index} ({HOST}):\n")
            assert "thread MainThread:" in err
            assert err.endswith("error: it hangs\n")
        else:
            assert process.returncode == 2
            if index != who:
                assert err == f"error: process {who} ({HOST}) ended: this is wrong\n"


FLAGS = [
    (("h:1", None, None), "give all three, or none"),
    ((None, "2", "0"), "give all three, or none"),
    (("h:1", "two", "0"), "--num_processes=two must be a whole number, 1 or more"),
    (("h:1", "0", "0"), "--num_processes=0 must be a whole number, 1 or more"),
    (("h:1", "2", "-1"), "--process_id=-1 must be a whole number, 0 or more"),
    (("h:1", "2", "2"), "--process_id=2 must be less than --num_processes=2"),
    (("h", "2", "0"), "--coordinator=h must be HOST:PORT"),
    (("h:", "2", "0"), "--coordinator=h: must be HOST:PORT"),
    ((":1", "2", "0"), "--coordinator=:1 must be HOST:PORT"),
    (("h:65536", "2", "0"), "--coordinator=h:65536 must be HOST:PORT"),
]


@pytest.mark.parametrize(("flags", "line"), FLAGS)
def test_flags_that_cannot_be(flags, line):
    with pytest.raises(UserError) as found, together(*flags, 1):
        pass
    assert line in str(found.value)


def test_one_process_is_alone():
    for flags in (("h:1", "1", "0"), (None, None, None)):
        with together(*flags, 1) as processes, processes.first_process_first():
            assert (processes.index, processes.hosts) == (0, [HOST])
            processes.close()


def test_slurm_says_who_we_are(monkeypatch):
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "127.0.0.1", "NTASKS": "2", "PROCID": "1"}
    for name, value in {**slurm, "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(RunError) as found, together(None, None, None, 1):
        pass
    # jax: the job's number in the last 4096 ports
    assert "process 1 cannot reach process 0 at 127.0.0.1:61447" in str(found.value)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with together(None, None, None, 1) as processes:
        assert processes.count == 1
