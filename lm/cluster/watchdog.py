"""A run that hangs says where, and ends so that it is started again."""

import time
from threading import Event, Thread


class Watchdog:
    """Calls stuck(why) once no step has come for `seconds`; 0: never.

    It begins with the third step that it watches: before that steps are compiled.
    """

    def __init__(self, seconds, stuck):
        self.seconds, self.stuck = seconds, stuck
        self.steps, self.last, self.closed = 0, 0.0, Event()
        if seconds:
            Thread(target=self._watch, daemon=True, name="lm-watchdog").start()

    def watching(self, train_step):
        """The train step, whose calls are watched."""

        def step(*arguments):
            self.steps, self.last = self.steps + 1, time.monotonic()
            return train_step(*arguments)

        return step

    def close(self):
        self.closed.set()

    def _watch(self):
        while not self.closed.wait(min(1.0, self.seconds / 10)):
            if self.steps > 2 and time.monotonic() - self.last > self.seconds:
                told = f"no step has finished for cluster.watchdog_seconds={self.seconds}; the "
                self.stuck(
                    f"{told}stacks of all threads stand above, and the same command resumes."
                )
