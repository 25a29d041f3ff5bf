"""Many processes as one run: how they find one another, and how all end when one is gone.

jax.distributed has time-outs of its own, but they name nobody: a process that never comes or that
dies makes it abort all others with a page of C++. So the processes first meet by themselves, at the
coordinator's address, and keep those connections: process 0 has one to each of the others. A dead
process's is closed by its kernel, on a stopped one or a lost machine nothing comes for `timeout`
seconds; each of the others then prints one line that says so and exits with RESTART.
"""

import atexit
import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from threading import Event, Lock, Thread

from lm.errors import RunError, UserError, require

RESTART = 75  # EX_TEMPFAIL: the same command, started again, goes on from the last checkpoint
FLAGS = "--coordinator=HOST:PORT --num_processes=N --process_id=I"
# jax's own time-outs must not come before ours.
NEVER = 7 * 24 * 3600  # seconds
# A dead process makes the others' sums fail, maybe before the thread that names it has its turn.
GRACE = 5  # seconds


class Processes:
    """The processes of a run, as one of them sees them: `index` of len(hosts).

    sockets: {process: connection}: process 0's to all others, theirs to it; none if it is alone.
    """

    def __init__(self, index=0, hosts=None, sockets=None, timeout=0):
        self.index, self.hosts = index, hosts or [socket.gethostname()]
        self.sockets, self.timeout = sockets or {}, timeout
        self.workdir = None  # where stacks are written
        self._received = dict.fromkeys(self.sockets, b"")
        self._heard = dict.fromkeys(self.sockets, time.monotonic())
        self._done, self._failed = set(), None
        self._sending, self._passed, self._closed = Lock(), Event(), Event()
        if self.sockets:
            self._thread = Thread(target=self._watch, daemon=True, name="lm-processes")
            self._thread.start()

    @contextlib.contextmanager
    def first_process_first(self):
        """Process 0 runs the body before the others do; for once in a run."""
        if self.index:
            self._passed.wait()
        yield
        if self.index == 0:
            self._send({"passed": True})

    @contextlib.contextmanager
    def telling(self):
        """Tell the others of an error in the body: they may be waiting for this process."""
        try:
            yield
        except BaseException as error:
            self._tell(error)
            raise

    def stacks(self, why):
        """Write the stacks of all threads of all processes, and end them all with RESTART."""
        self._send({"stacks": why})
        self._end_with_stacks(why)

    def close(self):
        """Leave when all others do."""
        if not self.sockets:
            return
        import jax

        jax.distributed.shutdown()  # waits for all
        self._send({"done": True})
        self._closed.set()
        self._thread.join()
        for connection in self.sockets.values():
            connection.close()

    def _tell(self, error):
        if not self.sockets or self._failed:
            return
        if not isinstance(error, UserError | RunError | KeyboardInterrupt):
            time.sleep(GRACE)
        status = 2 if isinstance(error, UserError) else 1
        status = 130 if isinstance(error, KeyboardInterrupt) else status
        text = " ".join(str(error).split()) or type(error).__name__
        self._failed = time.monotonic(), status
        self._send({"end": f"{self._name(self.index)} ended: {text}", "status": status})
        # Before jax's own handler, which would wait for the others.
        atexit.register(_leave, status)

    def _name(self, process):
        return f"process {process} ({self.hosts[process]})"

    def _send(self, message, but=None):
        line = json.dumps(message).encode() + b"\n"
        for process, connection in self.sockets.items():
            # What cannot be sent to is found by reading.
            with contextlib.suppress(OSError), self._sending:
                if process != but:
                    connection.sendall(line)

    def _watch(self):
        beat, sent = self.timeout / 5, 0.0
        selector = selectors.DefaultSelector()
        for process, connection in self.sockets.items():
            selector.register(connection, selectors.EVENT_READ, process)
        while not self._closed.is_set():
            for key, _ in selector.select(min(beat, 0.2)):
                if not self._receive(key.data):
                    selector.unregister(key.fileobj)
                    self._lost(key.data, "has ended without a word")
            now = time.monotonic()
            for process, heard in list(self._heard.items()):
                if now - heard > self.timeout:
                    self._lost(process, f"has not been heard of for {self.timeout} s")
            if now - sent > beat:
                sent = now
                self._send({})
            if self._failed and now - self._failed[0] > self.timeout:
                _leave(self._failed[1])  # the error holds in a wait for processes that are gone

    def _receive(self, process):
        """Read what a process says; False if its connection has ended."""
        try:
            data = self.sockets[process].recv(1 << 16)
        except OSError:
            data = b""
        self._heard[process] = time.monotonic()
        *lines, self._received[process] = (self._received[process] + data).split(b"\n")
        for line in lines:
            self._act(process, json.loads(line))
        return bool(data)

    def _act(self, process, message):
        if "done" in message:
            self._done.add(process)
        if "passed" in message:
            self._passed.set()
        if "end" in message and not self._failed:
            self._end(message["end"], message["status"], process)
        if "stacks" in message:
            self._send(message, but=process)
            self._end_with_stacks(message["stacks"])

    def _lost(self, process, what):
        if process in self._done or self._failed:
            self._heard.pop(process, None)
            return
        self._end(f"{self._name(process)} {what}; the same command resumes.", RESTART, process)

    def _end(self, line, status, of=None):
        if self.index == 0:
            self._send({"end": line, "status": status}, but=of)
        print(f"error: {line}", file=sys.stderr)
        _leave(status)

    def _end_with_stacks(self, why):
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        text = "".join(
            f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}\n"
            for ident, frame in sys._current_frames().items()
        )
        print(f"stacks of {self._name(self.index)}:\n{text}error: {why}", file=sys.stderr)
        if self.workdir is not None:  # its disk may be what hangs
            path = self.workdir / f"stacks.{self.index}.txt"
            writer = Thread(target=path.write_text, args=[f"{why}\n\n{text}"])
            writer.daemon = True
            writer.start()
            writer.join(GRACE)
        _leave(RESTART)


def _leave(status):
    """End this process at once: at exit jax, and threads of ours, would wait for the others."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


@contextlib.contextmanager
def together(coordinator, num_processes, process_id, timeout):
    """The Processes of this run, by the flags (texts, all or none given), or by the environment:
    Slurm, Kubernetes, TPU pods, Open MPI; one process where neither says anything.

    timeout: seconds, of the start, and of silence from then on. Raises UserError for flags that
    cannot be, RunError if processes do not find one another. Call before jax takes its devices.
    """
    given = [coordinator, num_processes, process_id]
    require(
        None not in given or given == [None] * 3,
        f"{FLAGS} belong together; give all three, or none.",
    )
    local_devices = None
    if coordinator is None:
        coordinator, count, index, local_devices = _from_environment(timeout)
    else:
        count = _whole("--num_processes", num_processes, 1)
        index = _whole("--process_id", process_id, 0)
        require(
            index < count,
            f"--process_id={index} must be less than --num_processes={count}; they count from 0.",
        )
    if count == 1:
        yield Processes()
        return
    address = _address(coordinator)
    deadline = time.monotonic() + timeout
    hosts, sockets = (_gather if index == 0 else _join)(address, count, index, deadline)
    processes = Processes(index, hosts, sockets, timeout)
    with processes.telling():
        _start_jax(address, count, index, local_devices)
        yield processes
        processes.close()


def _whole(flag, text, least):
    valid = text.isdecimal() and int(text) >= least
    require(valid, f"{flag}={text} must be a whole number, {least} or more.")
    return int(text)


def _address(text):
    host, _, port = text.rpartition(":")
    valid = host and port.isdecimal() and 0 < int(port) < 1 << 16
    require(valid, f"--coordinator={text} must be HOST:PORT, of process 0.")
    return host.strip("[]"), int(port)


def _from_environment(timeout):
    """(coordinator, count, index, local devices) as jax finds them; count 1 if it finds none."""
    from jax._src.clusters import ClusterEnv  # jax.distributed.initialize's own way

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(*[None] * 5, timeout)
    except (RuntimeError, LookupError, OSError, ValueError) as error:
        raise RunError(
            f"the environment names processes that cannot be found ({error}); give {FLAGS}."
        ) from error
    return found if found[0] is not None else (None, 1, 0, None)


def _gather(address, count, index, deadline):
    """(hosts, sockets) of process 0, once all others have come."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        listener = socket.create_server(
            ("", address[1]), family=family, dualstack_ipv6=both, backlog=count
        )
    except OSError as error:
        raise RunError(
            f"process 0 cannot listen on port {address[1]} of {socket.gethostname()}: "
            f"{os.strerror(error.errno or 0)}; end what uses it, or give another in --coordinator."
        ) from error
    hosts, sockets = {index: socket.gethostname()}, {}
    with listener:
        while missing := set(range(count)) - {*hosts}:
            try:
                listener.settimeout(max(0.01, deadline - time.monotonic()))
                connection, _ = listener.accept()
            except TimeoutError:
                _give_up(missing, sockets)
            hello = _read_line(connection, min(deadline, time.monotonic() + GRACE))
            if not isinstance(hello, dict) or "process" not in hello:
                connection.close()  # none of ours
                continue
            process, wrong = hello["process"], None
            if hello["count"] != count:
                wrong = (
                    f"--num_processes={hello['count']} is {count} in process 0; give all the same."
                )
            elif process not in missing:
                wrong = f"--process_id={process} is that of another on {hosts[process]}."
            if wrong:
                _say(connection, {"end": wrong, "status": 2})
            else:
                hosts[process], sockets[process] = hello["host"], connection
    names = [hosts[process] for process in range(count)]
    for connection in sockets.values():
        _say(connection, {"hosts": names})
    return names, sockets


def _give_up(missing, sockets):
    names = ", ".join(map(str, sorted(missing)[:8])) + (", ..." if len(missing) > 8 else "")
    line = (
        f"process {names} did not come within cluster.timeout_seconds; see why it was not started, "
        "or did not reach process 0, or give more time."
    )
    for connection in sockets.values():
        _say(connection, {"end": line, "status": 1})
    raise RunError(line)


def _join(address, count, index, deadline):
    """(hosts, sockets) of a process other than 0."""
    hello = {"process": index, "count": count, "host": socket.gethostname()}
    reason = ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection(address, timeout=min(left, GRACE))
            _say(connection, hello)
            # Process 0 may have begun to wait for the others a little later.
            answer = _read_line(connection, deadline + 1)
            if answer is not None:
                break
            reason = "something is there, but does not begin the run"
        except OSError as error:
            reason = error.strerror or str(error)
        time.sleep(0.2)
    else:
        raise RunError(
            f"process {index} cannot reach process 0 at {address[0]}:{address[1]} within "
            f"cluster.timeout_seconds: {reason}. Is it started there, and is the port open?"
        )
    if "end" in answer:
        raise (UserError if answer["status"] == 2 else RunError)(answer["end"])
    return answer["hosts"], {0: connection}


def _say(connection, message):
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _read_line(connection, deadline):
    """A message of the start; None if there is none in time, or something else."""
    line = b""
    try:
        while not line.endswith(b"\n"):
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            byte = connection.recv(1)
            if not byte:
                return None
            line += byte
        connection.settimeout(None)
        return json.loads(line)
    except (OSError, ValueError):
        return None


def _start_jax(address, count, index, local_devices):
    import jax

    # It waits for SIGTERM, as lm.cluster.signals does, and would take it from there.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        f"127.0.0.1:{address[1] if index == 0 else _tunnel(address)}",
        *(count, index, local_devices),
        cluster_detection_method="deactivate",
        initialization_timeout=NEVER,
        heartbeat_timeout_seconds=NEVER,
        shutdown_timeout_seconds=NEVER,
    )


def _tunnel(address):
    """A port of this machine that leads to the address, and stays open when that closes.

    jax's client aborts its process, with a page of C++, once its connection to process 0 closes.
    """
    listener, kept = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        while True:
            near, _ = listener.accept()
            try:
                far = socket.create_connection(address)
            except OSError:  # not yet there: jax tries again
                near.close()
                continue
            kept.append(near)
            for ends in ((near, far), (far, near)):
                Thread(target=_pump, args=ends, daemon=True).start()

    Thread(target=serve, daemon=True, name="lm-tunnel").start()
    return listener.getsockname()[1]


def _pump(source, sink):
    for end in (source, sink):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
