import numpy as np
import pytest
from PIL import Image

from lm.analysis.curve import BLUE, GREEN, PURPLE, VERMILLION, draw_curve, smooth
from lm.errors import UserError

COLOURS = {"loss": BLUE, "eval": VERMILLION, "lr": GREEN, "norm": PURPLE}


def drawn(rows, path):
    """The series whose colour is seen in the picture."""
    draw_curve(rows, path, title="a title")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return {
        name
        for name, colour in COLOURS.items()
        if (pixels == tuple(bytes.fromhex(colour[1:]))).all(-1).any()
    }


def rows(number, **extra):
    return [{"step": 10 * i, "train/loss": 4 / (i + 1), **extra} for i in range(number)]


@pytest.mark.parametrize("number", [1, 2, 1000])
def test_training_loss_alone(tmp_path, number):
    assert drawn(rows(number), tmp_path / "curve.png") == {"loss"}
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_everything(tmp_path):
    extra = {"eval/loss": 2.0, "train/lr": 1e-3, "train/grad_norm": 0.5}
    assert drawn(rows(500, **extra), tmp_path / "curve.png") == {"loss", "eval", "lr", "norm"}


def test_only_validation_and_the_norm(tmp_path):
    found = [{"step": step, "eval/loss": 3.0, "train/grad_norm": step + 1} for step in range(3)]
    assert drawn(found, tmp_path / "curve.png") == {"eval", "norm"}


def test_what_was_not_finite_is_a_gap(tmp_path):
    found = rows(100, **{"eval/loss": 2.0})
    for row in found[20:80]:
        row["train/loss"] = None
    found[-1]["eval/loss"] = None
    assert drawn(found, tmp_path / "curve.png") == {"loss", "eval"}
    for row in found:
        row["train/loss"] = None
    assert drawn(found, tmp_path / "curve.png") == {"eval"}


@pytest.mark.parametrize(
    "found", [[], [{"step": 0, "train/lr": 0.1}], [{"step": 0, "eval/loss": None}]]
)
def test_nothing_to_draw(tmp_path, found):
    with pytest.raises(UserError, match="no finite loss"):
        draw_curve(found, tmp_path / "curve.png")


def test_smoothing_keeps_a_line_and_averages_noise():
    line = np.linspace(5.0, 1.0, 1000)
    np.testing.assert_allclose(smooth(line)[10:-10], line[10:-10])  # centred: no lag
    noise = np.random.default_rng(0).normal(size=1000)
    assert smooth(noise).std() < 0.3  # of 21 values: 1 / sqrt(21) = 0.22
    np.testing.assert_allclose(smooth(np.full(7, 2.0)), 2.0)  # its ends too


def test_smoothing_leaves_out_what_is_not_finite():
    np.testing.assert_array_equal(
        smooth(np.array([1.0, np.nan, 3.0, 5.0])), [1.0, np.nan, 4.0, 4.0]
    )
