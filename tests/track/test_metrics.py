import json
import os
import signal
import struct
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import RunError, UserError
from lm.track.metrics import MetricsWriter, read_metrics


def write(workdir, *steps, **options):
    with MetricsWriter(workdir, **options) as writer:
        for step, values in steps:
            writer.write(step, values)
    return workdir / "metrics.jsonl"


def test_every_float32_comes_back_exactly(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**32, 2000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = values[np.isfinite(values)]
    path = write(tmp_path, *((step, {"train/loss": x}) for step, x in enumerate(values)))
    assert [row["train/loss"].hex() for row in read_metrics(path)] == [
        float(x).hex() for x in values
    ]


def test_what_is_not_finite_is_null_in_strict_json(tmp_path):
    infinite = {"a": float("nan"), "b": np.float32("inf"), "c": -jnp.inf, "d": jnp.float32(1.5)}
    path = write(tmp_path, (0, infinite))

    def refuse(constant):
        raise AssertionError(constant)

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"step": 0, "a": None, "b": None, "c": None, "d": 1.5}
    assert read_metrics(path) == [row]


def test_integers_and_texts_stay(tmp_path):
    path = write(tmp_path, (np.int32(3), {"a": jnp.uint32(2**32 - 1), "b": 2**60, "c": "00ff"}))
    assert read_metrics(path) == [{"step": 3, "a": 2**32 - 1, "b": 2**60, "c": "00ff"}]


def test_one_row_per_step_in_order_and_the_later_value_counts(tmp_path):
    write(tmp_path, (0, {"x": 1.0}), (10, {"x": 2.0, "y": 5.0}), (10, {"z": 3.0}))
    path = write(tmp_path, (5, {"x": 9.0}), (10, {"x": 4.0}))
    merged = {"step": 10, "x": 4.0, "y": 5.0, "z": 3.0}
    assert read_metrics(path) == [{"step": 0, "x": 1.0}, {"step": 5, "x": 9.0}, merged]


@pytest.mark.parametrize(
    ("tail", "steps"),
    [(b'{"step": 1, "x"', [0, 2]), (b'{"step": 1, "x": 2.0}', [0, 1, 2]), (b"12", [0, 2])],
)
def test_a_torn_last_line_is_ignored_then_mended(tmp_path, tail, steps):
    path = write(tmp_path, (0, {"x": 1.0}))
    path.write_bytes(path.read_bytes() + tail)
    assert [row["step"] for row in read_metrics(path)] == steps[:-1]
    write(tmp_path, (2, {"x": 3.0}))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == steps


def test_a_line_broken_elsewhere_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\nbroken\n{"step": 1}\n')
    with pytest.raises(UserError, match="line 2 of"):
        read_metrics(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_killed_process_leaves_whole_lines(tmp_path):
    program = (
        "import itertools; from lm.track.metrics import MetricsWriter\n"
        f"writer = MetricsWriter({str(tmp_path)!r})\n"
        "for step in itertools.count(): writer.write(step, {'x': step / 7})"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    path = tmp_path / "metrics.jsonl"
    while not path.exists() or path.stat().st_size < 100_000:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = read_metrics(path)
    assert rows == [{"step": step, "x": step / 7} for step in range(len(rows))]
    assert len(rows) > 1000


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_ends_the_run(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    writer = MetricsWriter(tmp_path)
    with pytest.raises(RunError, match="No space left"):
        writer.write(0, {"x": 1.0})


@pytest.mark.parametrize(
    ("package", "options"),
    [("tensorboardX", {"tensorboard": True}), ("wandb", {"wandb_project": "p"})],
)
def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path, monkeypatch, package, options
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"needs {package}: pip install"):
        MetricsWriter(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def tensorboard_events(folder):
    """(step, name, value) of every scalar, and the step of every start, which purges later ones."""
    from tensorboardX.proto.event_pb2 import Event

    scalars, starts = [], []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:  # TFRecord: length, its checksum, data, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):
                starts.append(event.step)
            scalars += [(event.step, x.tag, x.simple_value) for x in event.summary.value]
    return scalars, starts


def test_tensorboard_gets_the_numbers_and_a_resumed_run_replaces_them(tmp_path):
    pytest.importorskip("tensorboardX")
    write(tmp_path, (0, {"x": 1.5, "text": "ff"}), (5, {"x": 2.5}), tensorboard=True)
    write(tmp_path, (3, {"x": 3.5, "nan": float("nan")}), tensorboard=True)
    scalars, starts = tensorboard_events(tmp_path / "tensorboard")
    assert sorted(scalars) == [(0, "x", 1.5), (3, "x", 3.5), (5, "x", 2.5)]
    assert sorted(starts) == [0, 3]


def test_wandb_goes_on_with_the_same_run(tmp_path, monkeypatch):
    class Run:
        def __init__(self, **options):
            self.options, self.logged, self.finished = options, [], False
            runs.append(self)

        def define_metric(self, name, step_metric):
            assert (name, step_metric) == ("*", "step")

        def log(self, values):
            self.logged.append(values)

        def finish(self):
            self.finished = True

    runs = []
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=Run))
    for step in (7, 5):
        write(tmp_path, (step, {"x": 1.0}), wandb_project="p", config={"a": 1})
    first, second = runs
    assert first.options == second.options
    assert first.options["project"] == "p" and first.options["config"] == {"a": 1}
    assert second.logged == [{"step": 5, "x": 1.0}]
    assert second.finished
