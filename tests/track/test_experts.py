import numpy as np

from lm.track.experts import DeadExperts


def test_an_expert_without_tokens_is_named_once_a_window():
    experts, counts = DeadExperts(window=3), np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    assert experts(0, counts) is experts(10, counts) is None
    line = experts(20, counts + np.array([[0, 0, 0], [1, 0, 0]]))
    assert line.startswith("step 20: 1 of 6 experts had no token in 3 logged steps: ")
    assert "layer 0 expert 1 " in line and "objective.router_aux_loss" in line
    assert [experts(step, counts + 1) for step in (30, 40, 50)] == [None] * 3


def test_many_are_counted_and_four_named():
    line = DeadExperts(window=1)(7, np.zeros((2, 8)))
    assert line.startswith("step 7: 16 of 16 experts") and "and 12 more" in line
    assert line.count("layer 0 expert") == 4
