import time

import pytest

from lm.cluster.watchdog import Watchdog


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_only_a_run_that_has_made_steps_is_stuck(steps):
    """The first two calls compile."""
    said = []
    watchdog = Watchdog(1, said.append)
    step = watchdog.watching(lambda number: number + 1)
    assert [step(number) for number in range(steps)] == [*range(1, steps + 1)]
    time.sleep(1.5)
    watchdog.close()
    assert bool(said) == (steps == 3)
    assert all("no step has finished for cluster.watchdog_seconds=1" in line for line in said)


def test_a_run_that_goes_on_is_left_alone():
    said = []
    for seconds in (1, 0):
        watchdog = Watchdog(seconds, said.append)
        step = watchdog.watching(lambda: None)
        for _ in range(15):
            step()
            time.sleep(0.1)
        watchdog.close()
    time.sleep(1.3)
    assert said == []
