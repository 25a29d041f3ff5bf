import dataclasses
import json
import sys

import numpy as np
import pytest
from PIL import Image

from configs.llama import tiny
from experiments.scaling import scaling
from lm.config import resolve
from lm.errors import UserError
from lm.flops import parameter_count


@pytest.fixture
def losses(tmp_path):
    """A CSV whose losses are a law's."""
    rows = ["params,tokens,loss,note"]
    for params in np.geomspace(1e7, 1e10, 6):
        for tokens in np.geomspace(1e9, 1e12, 5):
            loss = 1.7 + 400 / params**0.34 + 1000 / tokens**0.33
            rows.append(f"{params},{tokens},{loss},x")
    path = tmp_path / "losses.csv"
    path.write_text("\n".join(rows))
    return path


def run(capsys, tmp_path, *arguments, terminal=False):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sys.stderr), "isatty", lambda file: terminal, raising=False)
        patch.setenv("TERM", "xterm")
        scaling([*arguments, f"--picture={tmp_path / 'law.png'}", "--bootstrap=10"])
    out, err = capsys.readouterr()
    assert ("resamplings" in err) == terminal  # how far they are
    return out


def test_json_has_the_law_its_intervals_and_the_optimum(losses, tmp_path, capsys):
    energy = ["--chip=h100", "--mfu=0.4", "--watts=1000", "--pue=1.1", "--goodput=0.9"]
    out = run(capsys, tmp_path, f"--csv={losses}", "--json", "--flops=1e21", *energy)
    found = json.loads(out)
    assert [found[name] for name in ("E", "A", "B", "alpha", "beta")] == pytest.approx(
        [1.7, 400, 1000, 0.34, 0.33], rel=1e-3
    )
    assert found["objective"] < 1e-12
    low, high = found["intervals"]["alpha"]
    assert low <= found["alpha"] + 1e-6
    assert found["alpha"] <= high + 1e-6
    (best,) = found["optima"]
    assert 6 * best["params"] * best["tokens"] == pytest.approx(1e21)
    # 1e21 FLOPs at 40 % of 989 TFLOP/s, nine tenths of the time.
    hours = 1e21 / (0.4 * 989e12 * 0.9) / 3600
    assert best["chip_hours"] == pytest.approx(hours)
    assert best["megawatt_hours"] == pytest.approx(hours * 1100 / 1e6)
    assert "1" in found["not_fitted"]
    assert found["kaplan"]["objective"] > 0
    assert Image.open(tmp_path / "law.png").width > 1000


def test_text_says_the_same(losses, tmp_path, capsys):
    flops = "--flops=1e21", "--flops=1e22"
    out = run(capsys, tmp_path, f"--csv={losses}", *flops, terminal=True)
    assert "30 runs" in out
    assert out.count("FLOPs: ") == 2
    assert "no approach 1: it needs losses during the runs" in out


def logged(folder, width, tokens):
    """A run's folder, as far as it is read."""
    keys = tiny()
    keys.model.update(d_model=width)
    config = resolve(keys)
    batch = config.data.batch_size * config.data.sequence_length
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    params, lines = parameter_count(config.model), []
    for step in np.geomspace(1, tokens / batch, 20).astype(int):
        loss = 1.0 + 40 / params**0.3 + 300 / (step * batch) ** 0.35
        lines.append(json.dumps({"step": int(step), "eval/loss": loss}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_runs_are_read_with_their_curves(tmp_path, capsys):
    for width in (32, 64, 96, 128):
        for tokens in (1e6, 4e6, 1.6e7):
            logged(tmp_path / "sweep" / f"{width}_{tokens:g}", width, tokens)
    flags = f"--runs={tmp_path / 'sweep'}", "--json", "--approach=1"
    found = json.loads(run(capsys, tmp_path, *flags))
    assert found["rows"] == 12
    assert found["alpha"] == pytest.approx(0.3, rel=0.01)
    assert found["beta"] == pytest.approx(0.35, rel=0.01)
    assert found["approach_1"]["points"] > 100


def test_bad_input_is_told_in_a_line(losses, tmp_path):
    text = losses.read_text()
    wrong = tmp_path / "wrong.csv"

    def refused(message, *arguments, content=None):
        if content is not None:
            wrong.write_text(content)
        with pytest.raises(UserError, match=message) as error:
            scaling(list(arguments))
        assert "\n" not in str(error.value)

    csv, of_wrong = f"--csv={losses}", f"--csv={wrong}"
    refused("there.csv is not a file", f"--csv={tmp_path / 'there.csv'}")
    refused("has the columns none", of_wrong, content="")
    refused("has the columns size, loss; it needs params", of_wrong, content="size,loss\n1,2\n")
    wrong.write_bytes(b"params\xff\xfe")
    refused("is not a CSV file in UTF-8", of_wrong)
    refused("has no rows", of_wrong, content="params,tokens,loss\n")
    for value in ("nan", "", "-1", "0", "inf", "many"):
        bad = text.replace("\n", f"\n1e8,{value},3,x\n", 1)
        refused(
            rf"wrong.csv, line 2: tokens='{value}' must be a finite number", of_wrong, content=bad
        )
    rising = [row.split(",") for row in text.splitlines()[1:]]
    rising = "".join(f"{n},{d},{2 + (float(n) * float(d)) ** 0.1},x\n" for n, d, *_ in rising)
    rising = "params,tokens,loss,note\n" + rising
    refused("loss does not fall with both params and tokens", of_wrong, content=rising)
    refused(r"wrong.csv: 4 rows are too few", of_wrong, content="\n".join(text.splitlines()[:5]))
    refused("wrong.csv: 1 row is too few", of_wrong, content="\n".join(text.splitlines()[:2]))
    refused("give --csv=FILE or --curves=FILE, or else --runs=FOLDER")
    refused("has no column run", f"--curves={losses}")
    refused("--approach=1 is not possible: it needs losses during the runs", csv, "--approach=1")
    refused("--approach=4 is not known", csv, "--approach=4")
    refused("drop_highest_loss=30 is not possible", csv, "--drop_highest_loss=30")
    refused("needs all of --chip, --mfu and --watts", csv, "--flops=1e20", "--chip=h100")
    for alone in ("--mfu=0.4", "--watts=700", "--pue=1.1", "--goodput=0.9"):
        refused("needs all of --chip, --mfu and --watts", csv, "--flops=1e20", alone)
    refused("--pue=0.5 must be 1 or more", csv, "--pue=0.5")
    refused("--mfu=1.4 must be more than 0 and at most 1", csv, "--mfu=1.4")
    refused("no chip 'h1000' is known. Did you mean 'h100'", csv, "--flops=1e20", "--chip=h1000",
            "--mfu=0.4", "--watts=700")  # fmt: skip
    refused("there is no folder", csv, "--picture=/there/is/none.png")
    refused("holds no run, nor do the folders in it", f"--runs={tmp_path}")
