"""That the benchmarks run and count right; never how fast anything is."""

import subprocess
import sys
import types

import pytest

from experiments.benchmarks import measures, worker


def test_workers_answer_with_seconds_per_step():
    with worker.Worker(sys.executable, "worker", "tiny") as lm:
        # One layer of width 16: 4 projections, 2 matrices of 16 x 64, 3 norms, 2 tables.
        matrices = 4 * 16 * 16 + 2 * 16 * 64
        assert lm.about["parameters"] == matrices + 3 * 16 + (worker.VOCAB + 8) * 16
        wall, cpu = lm.steps(2)
    assert wall > 0
    assert cpu >= 0


def test_a_worker_that_fails_is_not_waited_for():
    with pytest.raises(RuntimeError, match="ended with"):
        worker.Worker(sys.executable, "worker", "no_such_size")


@pytest.mark.parity
def test_pytorch_has_the_same_model():
    with (
        worker.Worker(sys.executable, "torch_worker", "tiny") as torch,
        worker.Worker(sys.executable, "worker", "tiny") as lm,
    ):
        assert torch.about["parameters"] == lm.about["parameters"]
        assert torch.about["loss"] == pytest.approx(lm.about["loss"], abs=0.1)
        assert torch.steps(2)[0] > 0


def test_ratio_is_theirs_over_ours_pair_by_pair(capsys):
    def answers(*seconds):
        waiting = [(wall / 1e3, wall / 1e3) for wall in seconds]
        return types.SimpleNamespace(steps=lambda number: waiting.pop(0))

    measures.compare(answers(30, 20, 40), answers(10, 20, 20), steps=5, pairs=3)
    wall, cpu = capsys.readouterr().out.splitlines()
    assert "wall ratio 2.00 (1.00 to 3.00), of fastest blocks 2.00" in wall
    assert "PyTorch 30.0, lm 20.0, fastest 20.0 and 10.0" in cpu


def test_loader_counts_tokens():
    assert measures.tokens_per_second(worker.config_of("tiny"), batches=3) > 0


def test_saves_overlap_steps(tmp_path):
    from experiments.benchmarks.worker import stepper

    without, _, blocked = measures.during_saves(
        *stepper(worker.config_of("tiny")), tmp_path / "checkpoints", saves=2
    )
    assert len(without) == 6
    assert len(blocked) == 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


@pytest.mark.slow
def test_first_step_is_seen(tmp_path):
    text = measures.write_text(tmp_path)
    wall, cpu = measures.until_first_step(sys.executable, tmp_path, text, run=0)
    assert wall > 0
    assert cpu > 0


def test_required_are_what_lm_needs_and_no_extra():
    names = measures.required("lm")
    assert {"jax", "jaxlib", "numpy", "orbax-checkpoint"} <= names
    assert not {"pytest", "torch", "pyarrow"} & names
    assert measures.size_of("numpy") > 1e6


def test_unknown_benchmark_is_refused():
    command = [sys.executable, "-m", "experiments.benchmarks", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=worker.ROOT)
    assert done.returncode == 2
    assert "nothing is not one of: step_time" in done.stderr
