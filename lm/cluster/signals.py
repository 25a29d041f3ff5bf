"""SIGTERM and Ctrl-C as a wish that a run ends well: after the step it is in, with a checkpoint."""

import contextlib
import signal
import threading
import types


@contextlib.contextmanager
def interruptions():
    """What has `requested`: the name of the first signal that came ("SIGTERM", "SIGINT"), or None.

    A second SIGINT is somebody who will not wait: it raises KeyboardInterrupt at once. Python lets
    only the main thread handle signals; in another one nothing is ever requested.
    """
    seen = types.SimpleNamespace(requested=None)
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    came = set()

    def note(number, frame):
        if number == signal.SIGINT and number in came:
            raise KeyboardInterrupt
        came.add(number)
        seen.requested = seen.requested or signal.Signals(number).name

    former = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in former.items():
            # None: the handler was not set by Python, and only the default can be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
