import os
import signal
import threading

import pytest

from lm.cluster.signals import interruptions

HANDLED = (signal.SIGTERM, signal.SIGINT)


def handlers():
    return [signal.getsignal(number) for number in HANDLED]


@pytest.mark.parametrize("number", HANDLED)
def test_a_signal_is_a_request_and_handlers_come_back(number):
    before = handlers()
    with interruptions() as seen:
        assert seen.requested is None
        os.kill(os.getpid(), number)
        assert seen.requested == number.name
    assert handlers() == before


def test_the_first_signal_is_the_one_named_and_only_a_second_ctrl_c_raises():
    before = handlers()
    with pytest.raises(KeyboardInterrupt), interruptions() as seen:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert seen.requested == "SIGTERM"
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("a second SIGINT did not raise")
    assert handlers() == before


def test_another_thread_is_never_interrupted():
    requested = []

    def run():
        with interruptions() as seen:
            requested.append(seen.requested)

    before = handlers()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert requested == [None]
    assert handlers() == before
