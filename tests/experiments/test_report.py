"""report as a user calls it, on real runs."""

import json
import shutil

import pytest

from experiments.cli import find_runs
from experiments.report import report
from lm.errors import UserError


@pytest.fixture
def sweep(finished, tmp_path):
    """A folder of two runs, one of another learning rate, and of something else."""
    for name, rate in (("a", 3e-3), ("b", 1e-3)):
        shutil.copytree(finished, tmp_path / "sweep" / name)
        config = tmp_path / "sweep" / name / "config.json"
        keys = json.loads(config.read_text())
        keys["optim"]["peak_lr"] = rate
        config.write_text(json.dumps(keys))
    (tmp_path / "sweep" / "notes").mkdir()
    return tmp_path / "sweep"


def test_a_sweep_with_samples(sweep, tmp_path, capsys):
    shutil.rmtree(sweep / "b" / "checkpoints")
    out = tmp_path / "page.html"
    report([f"--runs={sweep}", f"--out={out}", "--samples=2", "--prompt=<b>"])
    assert capsys.readouterr().out == f"report on 2 runs: {out}\n"
    content = out.read_text()
    assert content.count("<pre><b>&lt;b&gt;</b>") == 2 and "not sampled: " in content
    assert "optim.<wbr>peak_<wbr>lr" in content and "24 of 24" in content
    rows = map(json.loads, (sweep / "a" / "metrics.jsonl").read_text().splitlines())
    loss = [row["eval/loss"] for row in rows if "eval/loss" in row][-1]
    assert content.count(f"<span>{loss:.5g}</span>") == 2
    assert "%</span>" in content  # a real run says when it started and logged


def test_a_run_and_a_folder_of_runs_are_named_once(sweep):
    paths = [sweep / "a", sweep]
    assert find_runs(paths) == [sweep / "a", sweep / "b"]


def test_a_folder_of_runs_and_sweeps_is_all_their_runs(sweep):
    shutil.copytree(sweep / "a", sweep / "scaling" / "c")
    (sweep / "scaling" / "ledger.jsonl").write_text("")
    shutil.copy(sweep / "a" / "config.json", sweep / "a" / "checkpoints")  # a run has no runs
    assert find_runs([sweep]) == [sweep / "a", sweep / "b", sweep / "scaling" / "c"]


def test_equal_names_are_told_apart(sweep, tmp_path):
    shutil.copytree(sweep / "a", tmp_path / "other" / "a")
    out = tmp_path / "page.html"
    report([f"--runs={sweep / 'a'}", f"--runs={tmp_path / 'other'}", f"--out={out}"])
    assert str(sweep / "a") in out.read_text() and str(tmp_path / "other/a") in out.read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--runs=FOLDER is missing"),
        (["--runs={}/none"], "none is no folder; give a run's workdir"),
        (["--runs={}"], "holds no run, nor do the folders in it"),
        (["--runs={}", "--out=/nope/r.html"], "--out=/nope/r.html: there is no folder /nope;"),
        (["--runs={}", "--out={}"], "is a folder; give a file"),
        (["--runs={}", "--samples=-1"], "--samples=-1 must be 0 or more"),
        (["--runs={}", "--sample=1"], "Did you mean --samples\\?"),
    ],
)
def test_bad_input_is_one_line(tmp_path, flags, said):
    with pytest.raises(UserError, match=said) as error:
        report([flag.format(tmp_path) for flag in flags])
    assert "\n" not in str(error.value)
