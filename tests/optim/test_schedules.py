"""Learning rates against their closed forms."""

import dataclasses
import math

import pytest

from configs.base import base
from lm.config import resolve
from lm.optim.schedules import learning_rate

KEYS = resolve(base().to_dict(), 100).optim


def schedule(name, **keys):
    keys = {"peak_lr": 1e-3, "warmup_steps": 100, "decay_steps": 1000, **keys}
    return dataclasses.replace(KEYS, schedule=name, final_lr_fraction=0.1, **keys)


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "inverse_sqrt", "wsd"])
def test_warmup_is_linear_and_reaches_the_peak(name):
    config = schedule(name)
    for step in (0, 1, 50, 99, 100):
        assert float(learning_rate(config, step)) == pytest.approx(
            1e-3 * (step + 1) / 101, rel=1e-6
        )


CLOSED = {
    "constant": lambda step: 1e-3,
    "cosine": lambda step: 1e-4 + 9e-4 * (1 + math.cos(math.pi * (step - 100) / 900)) / 2,
    "linear": lambda step: 1e-3 - 9e-4 * (step - 100) / 900,
    "inverse_sqrt": lambda step: 1e-3 * math.sqrt(100 / step),
    "wsd": lambda step: 1e-3 if step <= 800 else 1e-3 - 9e-4 * (step - 800) / 200,
}


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("step", [101, 350, 550, 799, 800, 801, 950, 1000])
def test_after_warmup(name, step):
    assert float(learning_rate(schedule(name), step)) == pytest.approx(CLOSED[name](step), rel=1e-5)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_stays_at_its_end(name):
    assert float(learning_rate(schedule(name), 5000)) == pytest.approx(1e-4, rel=1e-5)


def test_without_warmup_the_first_step_has_the_peak():
    config = schedule("cosine", warmup_steps=0)
    assert float(learning_rate(config, 0)) == pytest.approx(1e-3)


def test_nanogpt_s_schedule():
    """nanoGPT's get_lr at iteration `it`, for its CPU configuration."""

    def get_lr(it):
        if it < 100:
            return 1e-3 * (it + 1) / 101
        return 1e-4 + 0.5 * (1 + math.cos(math.pi * (it - 100) / 1900)) * 9e-4

    config = schedule("cosine", decay_steps=2000)
    for it in (0, 99, 100, 1000, 1999):
        assert float(learning_rate(config, it)) == pytest.approx(get_lr(it), rel=1e-5)
