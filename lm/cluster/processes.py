"""Many processes as one run: how they find one another, and how all end when one is gone.

jax.distributed names nobody: when a process never comes, or dies, it aborts all others with a page
of C++. So the processes first meet by themselves, at the coordinator's address, and keep those
connections, of process 0 to each of the others. The kernel closes a dead process's; on that of a
stopped one, or of a lost machine, nothing comes for `timeout` seconds. All others then print one
line that says so and exit with RESTART.
"""

import asyncio
import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback

from lm.errors import RunError, UserError, require

RESTART = 75  # EX_TEMPFAIL: the same command, started again, goes on from the last checkpoint
FLAGS = "--coordinator=HOST:PORT --num_processes=N --process_id=I"
NEVER = 7 * 24 * 3600  # seconds: jax's own time-outs must not come before ours
# A dead process makes the others' sums fail, maybe before the thread that names it has its turn.
GRACE = 5  # seconds


class Processes:
    """The processes of a run, as one of them sees them: `index` of `count`, on `hosts`.

    A thread beats, listens and ends this process if another is gone; alone there is none.
    """

    def __init__(self, index=0, count=1, timeout=0):
        self.index, self.count, self.timeout = index, count, timeout
        self.hosts, self.workdir = [socket.gethostname()], None  # workdir: where stacks are written
        self._streams = {}  # {process: (reader, writer)}: of process 0 all others, of those it
        self._passed, self._leaving = threading.Event(), False
        if count > 1:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True, name="lm-link").start()

    @contextlib.contextmanager
    def first_process_first(self):
        """Process 0 runs the body before the others do; for once in a run."""
        if self.index:
            self._passed.wait()
        yield
        if self.index == 0:
            self._run(self._send({"passed": True}))

    @contextlib.contextmanager
    def telling(self):
        """Tell the others of an error in the body: they may be waiting for this process."""
        try:
            yield
        except BaseException as error:
            if self.count > 1 and not self._leaving:
                self._tell(error)
            raise

    def stacks(self, why):
        """Write the stacks of all threads of all processes, and end them all with RESTART."""
        self._run(self._send({"stacks": why}))
        self._end_with_stacks(why)

    def start_jax(self, address, local_devices):
        import jax
        from jax.experimental import multihost_utils

        # It waits for SIGTERM, as lm.cluster.signals does, and would take it from there.
        jax.config.update("jax_enable_preemption_service", False)
        # Python alone writes to stdout: gloo, in C++, tells there whom it is connected with.
        sys.stdout.flush()
        sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        port = self._run(_tunnel(address)) if self.index else address[1]
        jax.distributed.initialize(
            *(f"127.0.0.1:{port}", self.count, self.index, local_devices),
            cluster_detection_method="deactivate",
            initialization_timeout=NEVER,
            heartbeat_timeout_seconds=NEVER,
            shutdown_timeout_seconds=NEVER,
        )
        # CPUs talk through gloo, which gives the processes half a minute, from the first that moves
        # anything to the last: now they have just met.
        multihost_utils.sync_global_devices("met")

    def close(self):
        """Leave when all others do."""
        if self.count > 1:
            import jax

            jax.distributed.shutdown()  # waits for all
            self._leaving = True
            self._run(self._stop())

    def meet(self, address):
        """Connect to the others. Raises RunError or UserError if that cannot be."""
        self._run((self._join if self.index else self._gather)(*address))
        for process, (reader, _) in self._streams.items():
            asyncio.run_coroutine_threadsafe(self._listen(process, reader), self._loop)
        asyncio.run_coroutine_threadsafe(self._beat(), self._loop)

    def _run(self, coroutine):
        if self.count > 1:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
        return coroutine.close()

    async def _gather(self, _, port):
        """Process 0 waits for all others."""
        hosts, complete = {0: self.hosts[0]}, asyncio.Event()

        async def welcome(reader, writer):
            hello = await _read(reader) or {}
            process, wrong = hello.get("process"), None
            if process is None:  # none of ours
                return writer.close()
            if hello["count"] != self.count:
                wrong = f"--num_processes={hello['count']} is {self.count} in process 0; mend one."
            elif process in hosts and not (process and self._streams[process][0].at_eof()):
                wrong = f"--process_id={process} is another's, on {hosts[process]}; "
                wrong += "give each its own."
            if wrong:
                return writer.write(_line({"end": wrong, "status": 2}))
            hosts[process], self._streams[process] = hello["host"], (reader, writer)
            return complete.set() if len(hosts) == self.count else None

        try:
            server = await asyncio.start_server(welcome, port=port)
        except OSError as error:
            why = f"{os.strerror(error.errno or 0)}; end what uses it, or give another."
            told = f"process 0 cannot listen on port {port} of {self.hosts[0]}: {why}"
            raise RunError(told) from error
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.timeout):
                await complete.wait()
        server.close()
        if missing := [str(process) for process in range(self.count) if process not in hosts]:
            names = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
            line = f"process {names} did not come within cluster.timeout_seconds={self.timeout}; "
            line += "see why it did not start or did not reach process 0, or give more time."
            await self._send({"end": line, "status": 1})
            raise RunError(line)
        self.hosts = [hosts[process] for process in range(self.count)]
        await self._send({"hosts": self.hosts})

    async def _join(self, host, port):
        """A process other than 0 comes to it."""
        hello = {"process": self.index, "count": self.count, "host": self.hosts[0]}
        reason, answer = "", {}
        with contextlib.suppress(TimeoutError):
            # Process 0, that names who is missing, may have begun to wait a little later.
            async with asyncio.timeout(self.timeout + 1):
                while not answer:
                    try:
                        reader, writer = await asyncio.open_connection(host, port)
                        writer.write(_line(hello))
                        reason = "something is there, but does not begin the run"
                        answer = await _read(reader)
                    except OSError as error:
                        known = error.errno and error.errno > 0  # else of the name's look-up
                        reason = os.strerror(error.errno) if known else error.strerror or str(error)
                    await asyncio.sleep(0.2)
        if not answer:
            line = f"process {self.index} cannot reach process 0 at {host}:{port} within cluster."
            line += f"timeout_seconds={self.timeout}: {reason}. Is it started? The port open?"
            raise RunError(line)
        if "end" in answer:
            raise (UserError if answer["status"] == 2 else RunError)(answer["end"])
        self.hosts, self._streams = answer["hosts"], {0: (reader, writer)}

    async def _send(self, message, but=None):
        for process, (_, writer) in self._streams.items():
            if process != but:
                writer.write(_line(message))

    async def _stop(self):
        await self._send({"done": True})
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _beat(self):
        while True:
            await self._send({})
            await asyncio.sleep(self.timeout / 5)

    async def _listen(self, process, reader):
        lost = "has ended without a word"
        try:
            while True:
                async with asyncio.timeout(self.timeout):
                    message = await _read(reader)
                if message is None:
                    break
                if "done" in message:
                    return
                if "passed" in message:
                    self._passed.set()
                if "end" in message:
                    await self._end(message["end"], message["status"], process)
                if "stacks" in message:
                    await self._send(message, but=process)
                    self._end_with_stacks(message["stacks"])
        except TimeoutError:
            lost = f"has not been heard of for {self.timeout} s"
        line = f"process {process} ({self.hosts[process]}) {lost}; the same command resumes."
        await self._end(line, RESTART, process)

    async def _end(self, line, status, of):
        if self._leaving:
            return
        if self.index == 0:
            await self._send({"end": line, "status": status}, but=of)
        print(f"error: {line}", file=sys.stderr)
        _leave(status)

    def _tell(self, error):
        if not isinstance(error, UserError | RunError | KeyboardInterrupt):
            time.sleep(GRACE)
        status = {UserError: 2, KeyboardInterrupt: 130}.get(type(error), 1)
        text = " ".join(str(error).split()) or type(error).__name__
        line = f"process {self.index} ({self.hosts[self.index]}) ended: {text}"
        self._leaving = True
        self._run(self._send({"end": line, "status": status}))
        # Before jax's own handler, which would wait for the others; so may what comes before it.
        atexit.register(_leave, status)
        self._loop.call_soon_threadsafe(self._loop.call_later, self.timeout, _leave, status)

    def _end_with_stacks(self, why):
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        text = "".join(
            f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}\n"
            for ident, frame in sys._current_frames().items()
        )
        text = f"stacks of process {self.index} ({self.hosts[self.index]}):\n{text}error: {why}\n"
        print(text, end="", file=sys.stderr)
        if self.workdir is not None:  # its disk may be what hangs
            path = self.workdir / f"stacks.{self.index}.txt"
            writer = threading.Thread(target=path.write_text, args=[text], daemon=True)
            writer.start()
            writer.join(GRACE)
        _leave(RESTART)


def _leave(status):
    """End this process at once: at exit jax, and threads of ours, would wait for the others."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _line(message):
    return json.dumps(message).encode() + b"\n"


async def _read(reader):
    """The next message; None at the end, or if it is none of ours."""
    try:
        message = json.loads(await reader.readline())
        return message if isinstance(message, dict) else None
    except (OSError, ValueError):
        return None


async def _tunnel(address):
    """A port of this machine that leads to the address, and stays open when that closes.

    jax's client aborts its process, with a page of C++, once its connection to process 0 closes.
    """

    async def pump(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()

    async def serve(reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection(*address)
        except OSError:  # not yet there: jax tries again
            return writer.close()
        with contextlib.suppress(asyncio.CancelledError):  # at the end; asyncio would say so
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
            await asyncio.sleep(NEVER)
        return None

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server.sockets[0].getsockname()[1]


@contextlib.contextmanager
def together(coordinator, num_processes, process_id, timeout):
    """The Processes of this run, by the flags (texts, all or none given), or by the environment:
    Slurm, Kubernetes, TPU pods, Open MPI; one process where neither says anything.

    timeout: seconds, of the start, and of silence from then on. Raises UserError for flags that
    cannot be, RunError if processes do not find one another. Call before jax takes its devices.
    """
    given, local_devices = [coordinator, num_processes, process_id], None
    told = f"{FLAGS} belong together; give all three, or none."
    require(None not in given or given == [None] * 3, told)
    if coordinator is None:
        coordinator, count, index, local_devices = _from_environment(timeout)
    else:
        numbers = ("num_processes", num_processes, 1), ("process_id", process_id, 0)
        for flag, text, least in numbers:
            valid = text.isdecimal() and int(text) >= least
            require(valid, f"--{flag}={text} must be a whole number, {least} or more.")
        count, index = int(num_processes), int(process_id)
        rule = f"--process_id={index} must be less than --num_processes={count}; they count from 0."
        require(index < count, rule)
    if count == 1:
        yield Processes()
        return
    host, _, port = coordinator.rpartition(":")
    valid = host and port.isdecimal() and 0 < int(port) < 1 << 16
    require(valid, f"--coordinator={coordinator} must be HOST:PORT, of process 0.")
    address = host.strip("[]"), int(port)
    processes = Processes(index, count, timeout)
    processes.meet(address)
    with processes.telling():
        processes.start_jax(address, local_devices)
        yield processes
        processes.close()


def _from_environment(timeout):
    """(coordinator, count, index, local devices) as jax finds them; count 1 if it finds none."""
    from jax._src.clusters import ClusterEnv  # jax.distributed.initialize's own way

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(*[None] * 5, timeout)
    except (RuntimeError, LookupError, OSError, ValueError) as error:
        told = f"the environment names processes that cannot be found ({error}); give {FLAGS}."
        raise RunError(told) from error
    return found if found[0] is not None else (None, 1, 0, None)
