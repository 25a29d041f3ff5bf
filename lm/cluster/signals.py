"""SIGTERM and Ctrl-C as a wish that a run ends well: after the step it is in, with a checkpoint."""

import contextlib
import signal
import threading


class Interruptions:
    """requested: the name of the first signal that came ("SIGTERM", "SIGINT"), or None."""

    def __init__(self):
        self.requested = None


@contextlib.contextmanager
def interruptions():
    """An Interruptions that SIGTERM and SIGINT set, for as long as the context lasts.

    A second SIGINT is somebody who will not wait: it raises KeyboardInterrupt at once. Python lets
    only the main thread handle signals; in another one nothing is ever requested.
    """
    seen = Interruptions()
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
