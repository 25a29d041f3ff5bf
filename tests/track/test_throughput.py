import pytest

from lm.track.throughput import Throughput


def test_tokens_since_the_last_line_over_its_wall_time():
    times = iter([100.0, 102.0, 107.0])
    rate = Throughput(20, 1000, flops_per_token=6e6, peak_flops=3e9, clock=lambda: next(times))
    # Steps 20 to 23 in 2 s, then 24 to 33 in 5 s.
    assert rate(23) == {"train/tokens_per_second": 2000.0, "train/mfu": pytest.approx(4.0)}
    assert rate(33)["train/tokens_per_second"] == 2000.0


def test_without_a_known_peak_there_is_no_mfu():
    assert "train/mfu" not in Throughput(0, 1000, 6e6)(0)
