"""A jax.profiler trace of a few steps, for TensorBoard, XProf or Perfetto."""

from pathlib import Path

from lm.errors import require_path


class Profiler:
    """Traces steps start to stop (exclusive) into workdir/profile; start == stop: none.

    Called before each step with its number and what the step before it returned: dispatch runs
    ahead of the device, so the ends of the trace wait for that. A run that begins between start and
    stop is traced from there; close() ends a trace that the run did not reach the end of.
    """

    def __init__(self, workdir, start, stop):
        if start < stop:
            require_path("with metrics.profile_stop, --workdir", str(workdir))
        self.folder, self.start, self.stop = Path(workdir) / "profile", start, stop
        self.tracing = False

    def __call__(self, step, results=()):
        if (self.start <= step < self.stop) != self.tracing:
            self._switch(results)

    def close(self, results=()):
        if self.tracing:
            self._switch(results)

    def _switch(self, results):
        import jax

        jax.block_until_ready(results)
        if self.tracing:
            jax.profiler.stop_trace()
        else:
            jax.profiler.start_trace(str(self.folder))
        self.tracing = not self.tracing
