import jax
import jax.numpy as jnp
import pytest

from lm.track.profiler import Profiler


@pytest.fixture
def calls(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    return calls


@pytest.mark.parametrize(
    ("steps", "start", "stop", "traced"),
    [
        (range(10), 3, 6, [3, 4, 5]),
        (range(5, 10), 3, 7, [5, 6]),  # a resumed run
        (range(5), 3, 7, [3, 4]),  # ends before the trace does
        (range(8, 10), 3, 7, []),
        (range(10), 0, 0, []),
    ],
)
def test_which_steps_are_traced(tmp_path, calls, steps, start, stop, traced):
    profile, seen = Profiler(tmp_path, start, stop), []
    for step in steps:
        profile(step)
        if profile.tracing:
            seen.append(step)
    profile.close()
    assert seen == traced
    assert calls == ([("start", str(tmp_path / "profile")), ("stop",)] if traced else [])


def test_a_real_trace_is_written(tmp_path):
    profile, x = Profiler(tmp_path, 1, 2), jnp.ones(8)
    for step in range(3):
        profile(step, x)
        x = x + 1
    profile.close(x)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
