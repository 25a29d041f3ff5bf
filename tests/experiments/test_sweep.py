"""Sweeps: which runs, in which order, once each; real ones of seconds, a search of stand-ins."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import optuna
import pytest

from experiments import cli
from experiments import sweep as sweeper
from experiments.sweeps import chain, product, scaling, seeds, zipped
from lm.errors import UserError
from lm.track.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
DEMO = "--config=configs/demo.py"


def command(*argv):
    """(exit code, stdout, stderr), from the repository."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = cli._status(sweeper.sweep, list(map(str, argv)))
    return status, out.getvalue(), err.getvalue()


def test_helpers():
    assert product({"a": [1, 2], "b": [3]}, [{"c": 4}, {"c": 5}]) == [
        {"a": 1, "b": 3, "c": 4},
        {"a": 1, "b": 3, "c": 5},
        {"a": 2, "b": 3, "c": 4},
        {"a": 2, "b": 3, "c": 5},
    ]
    assert zipped({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert chain({"a": [1, 2]}, [{"b": 3}]) == [{"a": 1}, {"a": 2}, {"b": 3}]
    assert seeds(2) == [{"train.seed": 0}, {"train.seed": 1}]
    assert seeds(2, [{"a": 1}]) == [{"a": 1, "train.seed": 0}, {"a": 1, "train.seed": 1}]
    with pytest.raises(UserError, match=r"one length, not \[1, 2\]"):
        zipped({"a": [1, 2], "b": [3]})
    with pytest.raises(UserError, match="two parts of a run set a;"):
        product({"a": [1]}, {"a": [2], "b": [3]})


def test_sizes_and_budgets_of_the_scaling_sweep_vary_by_themselves():
    runs = scaling.sweep()
    sizes = {run["model.d_model"] for run in runs}
    steps = {run["train.num_steps"] for run in runs}
    assert len(sizes) >= 4 and len(steps) >= 3 and len(runs) >= 12
    pairs = {(run["model.d_model"], run["train.num_steps"]) for run in runs}
    assert pairs == {(size, step) for size in sizes for step in steps}


@pytest.fixture
def file(tmp_path):
    def file(text):
        path = tmp_path / "mine.py"
        path.write_text(textwrap.dedent(text))
        return f"--sweep={path}"

    return file


def of(*runs):
    return f"def sweep():\n    return {list(runs)!r}\n"


LR = {"optim.peak_lr": 0.1}
WRONG = [
    (of(LR, {"optim.peaklr": 1}), r"run 1 of \S+: .*no key 'optim.peaklr'. Did you mean"),
    (of(LR, {"model.num_heads": 7}), r"run 1 of \S+: .*does not divide"),
    (of(LR, {"train.num_steps": "many"}), r"run 1 of \S+: .*type int"),
    (of(LR, LR), r"run 1 of \S+ \(\{'optim.peak_lr': 0.1\}\) is run 0 again"),
    (of({"optim.peak_lr": 1}, {"optim.peak_lr": 1.0}), "is run 0 again"),
    (of(3), "is 3, and not a dict"),
    (of({"train.seed": 1}), "sets train.seed, which is given as a flag too"),
    (of(), "gives no run; let it return"),
    (
        "from experiments.sweeps import *\ndef sweep():\n    return product({'a.b': 'cosine'})\n",
        r"line 3: a.b: 'cosine' is no list of values; write \['cosine'\]",
    ),
    (
        "from experiments.sweeps import *\ndef sweep():\n    return zipped({'a.b': 0.1})\n",
        r"line 3: a.b: 0.1 is no list of values; write \[0.1\]",
    ),
    ("x = 1\n", r"neither sweep\(\) nor search\(trial\)"),
    ("def sweep():\n    return y\n", "line 2: NameError"),
    ("def sweep(:\n", "line 1: SyntaxError"),
    ("def search(trial):\n    return {}\n", "needs METRIC"),
    (
        "METRIC, TRIALS, DIRECTION = 'a', 2, 'up'\ndef search(trial):\n    return {}\n",
        "DIRECTION='up'",
    ),
    ("METRIC, TRIALS = 'eval/loss', 2\ndef search(trial):\n    return {'a': 1}\n", "no key 'a'"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_mistake_is_one_line_before_anything_starts(text, said, file, tmp_path):
    status, out, err = command(
        file(text), DEMO, f"--workdir={tmp_path / 'runs'}", "--config.train.seed=3"
    )
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", err) and re.search(said, err), err
    assert not (tmp_path / "runs").exists()


def test_flags_that_are_wrong(file, tmp_path, monkeypatch):
    workdir = f"--workdir={tmp_path}"
    for argv, said in (
        ([workdir, "--list"], "there is no sweep in"),
        ([workdir, DEMO], "--sweep=FILE is missing"),
        ([workdir, file(of(LR))], "--config=FILE:PRESET is missing"),
        ([workdir, file(of(LR)), DEMO, "--parallel=0"], "--parallel=0 must be 1 or more"),
        ([workdir, DEMO, "--sweep=experiments/sweeps/scalin.py"], "Did you mean"),
    ):
        status, _, err = command(*argv)
        assert status == 2 and said in err
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, err = command(workdir, DEMO, "--sweep=experiments/sweeps/search.py")
    assert status == 2 and "needs optuna: pip install -e '.[sweep]'" in err
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, err = command(workdir, file(of(LR)), DEMO, "--backend=slurm")
    assert status == 2 and "needs sbatch" in err


def test_a_dry_run_is_a_table(tmp_path):
    argv = ["--sweep=experiments/sweeps/scaling.py", DEMO, f"--workdir={tmp_path / 'a'}"]
    status, out, err = command(*argv, "--dry_run")
    assert (status, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split() == ["run", "num_steps", "d_model", "num_layers", "num_heads", "peak_lr"]
    assert len(lines) == 12 and max(map(len, lines)) < 100
    assert len({line.split()[0] for line in lines}) == 12
    assert not (tmp_path / "a").exists()
    queue = ["--backend=slurm", "--parallel=3", "--chips=1"]
    status, out_of_slurm, err = command(*argv, *queue, "--dry_run")
    assert (status, err) == (0, "") and out_of_slurm.startswith(out)
    assert "#SBATCH --array=0-11%3" in out_of_slurm
    tasks = [line for line in out_of_slurm.splitlines() if line.startswith("# /")]
    assert len(tasks) == 12 and all(
        line.split()[0] in task for line, task in zip(lines, tasks, strict=True)
    )
    where = ["--accelerator=nvidia-l4", "--chips=1", "--image=i", "--workdir=gs://b/a", "--dry_run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeper, "as_path", lambda path, *key: Path(tmp_path, "a"))
        status, of_gke, err = command(*argv[:2], "--backend=gke", *where)
    assert (status, err) == (0, "") and of_gke.count('"kind": "JobSet"') == 12
    # A name follows from what a run changes, whatever the order and the other runs.
    assert command(*argv, "--dry_run")[1] == out
    more = command(*argv, "--dry_run", "--config.data.path=b")[1]
    assert not {x.split()[0] for x in more.splitlines()} & {x.split()[0] for x in lines}


def rows(folder):
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    return {row["changes"]["train.seed"]: row for row in map(json.loads, lines)}


def wait(condition, *processes):
    while not condition():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


def test_a_killed_sweep_goes_on_where_it_was(tiny, tmp_path, exact, file):
    """Real runs of two seeds: the first is done when the sweep is killed in the second, which its
    process goes on with; the next sweep waits for that, runs nothing twice, and tells all."""
    folder = tmp_path / "runs"
    given = [flag for flag in tiny.arguments(folder) if "train.seed" not in flag]
    flags = [
        *given,
        file("from experiments.sweeps import seeds\ndef sweep():\n    return seeds(2)"),
    ]
    keys = {**os.environ, "LM_CACHE": str(tiny.cache)}
    keys["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

    def start():
        sweep = [sys.executable, "-m", "experiments.sweep", *flags]
        return subprocess.Popen(sweep, cwd=ROOT, env=keys, stdout=subprocess.PIPE, text=True)

    first = start()
    wait((folder / "ledger.jsonl").exists, first)
    wait(lambda: rows(folder).get(1, {}).get("status") == "started", first)
    wait((Path(rows(folder)[1]["workdir"]) / "metrics.jsonl").exists, first)
    assert rows(folder)[0]["status"] == "done"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = start()
    out, _ = second.communicate()
    assert second.returncode == 0 and "2 runs, 1 of them done" in out
    for seed, row in rows(folder).items():
        assert (row["status"], row["steps"], row["seed"]) == ("done", 24, seed)
        workdir = Path(row["workdir"])
        assert len(json.loads((workdir / "environment.json").read_text())) == 1  # started once
        logged = exact(workdir)
        assert row["eval_loss"] == float.fromhex(logged[23, "eval/loss"])
        assert row["train_loss"] == float.fromhex(logged[23, "train/loss"])
        assert row["energy_joules"] is None and row["cost"] is None
        assert row["data_key"] == json.loads((workdir / "config.json").read_text())["data_key"]
        head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True)
        assert row["code"]["commit"] == head.strip()
        assert row["seconds"] > 1
    before = (folder / "ledger.jsonl").read_bytes()
    third = start()
    assert "2 runs, 2 of them done" in third.communicate()[0] and third.returncode == 0
    assert (folder / "ledger.jsonl").read_bytes() == before
    status, out, _ = command("--list", f"--workdir={folder}")
    assert status == 0 and out.count("done") == 2
    assert json.loads(command("--list", "--json", f"--workdir={folder}")[1]) == list(
        rows(folder).values()
    )


# What a stand-in for train does: it logs a loss that falls to (peak_lr - 0.01)**2 every ten steps.
STAND_IN = """
import json, pathlib, sys, time
workdir, peak_lr, steps, seconds = pathlib.Path(sys.argv[1]), *map(float, sys.argv[2:])
workdir.mkdir(parents=True, exist_ok=True)
with (workdir / "starts").open("a") as file:
    file.write("x")
for step in range(9, int(steps), 10):
    time.sleep(seconds)
    loss = (peak_lr - 0.01) ** 2 + 1 / (step + 1)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "eval/loss": loss}) + "\\n")
if peak_lr == 7:
    sys.exit(1)
if peak_lr == 5:
    (workdir / "metrics.jsonl").write_text("{\\n{}\\n")
done = workdir / "checkpoints" / str(int(steps)) / "manifest.json"
done.parent.mkdir(parents=True)
done.write_text("{}")
"""


@pytest.fixture
def stand_in(monkeypatch):
    """stand_in(seconds): runs last 10 times that; gives the workdirs as they are started."""

    def stand_in(seconds):
        def processes(self, runs):
            for run in runs:
                workdir, optim = run.workdir, run.config.optim
                order.append(workdir)
                numbers = [str(x) for x in (optim.peak_lr, run.config.train.num_steps, seconds)]
                yield subprocess.Popen([sys.executable, "-c", STAND_IN, workdir, *numbers])

        order = []
        monkeypatch.setattr(sweeper.Sweep, "processes", processes)
        monkeypatch.setattr(sweeper, "POLL", 0.02)
        return order

    return stand_in


def test_what_failed_is_tried_again(stand_in, file, tmp_path):
    order = stand_in(0)
    lrs = [{"optim.peak_lr": lr, "train.num_steps": 100} for lr in (0.1, 7.0, 0.2)]
    argv = [file(of(*lrs)), DEMO, f"--workdir={tmp_path / 'runs'}", "--parallel=2"]
    argv.append("--config.data.batch_size=32")
    for count in (3, 4):
        status, _, err = command(*argv)
        assert status == 1 and "1 runs failed, and the same command tries them again: p" in err
        assert len(order) == count
    assert [path.name.split(",")[0] for path in order] == [
        *("peak_lr=0.1", "peak_lr=7", "peak_lr=0.2", "peak_lr=7")
    ]
    lines = (tmp_path / "runs" / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["changes"] for line in lines] == [
        {"data.batch_size": 32, **changes} for changes in lrs
    ]


def test_a_list_has_the_seed_once(stand_in, file, tmp_path):
    stand_in(0)
    seeded = [{"train.seed": seed, "train.num_steps": 100} for seed in (4, 5)]
    command(file(of(*seeded)), DEMO, f"--workdir={tmp_path}")
    head, *lines = command("--list", f"--workdir={tmp_path}")[1].splitlines()
    assert head.split().count("seed") == 1
    assert [line.split()[head.split().index("seed")] for line in lines] == ["4", "5"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "environment.json", "config.json"])
def test_a_run_with_a_damaged_file_has_failed_and_the_others_go_on(name, stand_in, file, tmp_path):
    stand_in(0)
    lrs = [{"optim.peak_lr": lr, "train.num_steps": 100} for lr in (0.1, 5.0, 0.2)]
    folder = tmp_path / "runs"
    argv = [file(of(*lrs)), DEMO, f"--workdir={folder}"]
    if name != "metrics.jsonl":  # the stand-in damages that one itself
        lrs[1]["optim.peak_lr"] = 0.3
        argv[0] = file(of(*lrs))
        shown = command(*argv, "--dry_run")[1].splitlines()
        (damaged,) = (line.split()[0] for line in shown if "0.3" in line)
        (folder / damaged).mkdir(parents=True)
        (folder / damaged / name).write_text("{")
    status, out, err = command(*argv)
    assert status == 1 and re.fullmatch(r"error: 1 runs failed, [^\n]+\n", err)
    (told,) = (line for line in out.splitlines() if ": failed, " in line)
    assert name in told
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    found = {row["changes"]["optim.peak_lr"]: row for row in rows}
    assert [row["status"] for row in found.values()] == ["done", "failed", "done"]
    assert found[0.1]["eval_loss"] == pytest.approx(0.09**2 + 1 / 100)
    status, out, _ = command("--list", f"--workdir={folder}")
    assert status == 0 and out.count("done") == 2 and out.count("failed") == 1


REAL = """
METRIC, TRIALS = "eval/loss", 3
def search(trial):
    lr = trial.suggest_float("lr", 1e-9, 1.0, log=True)
    # The last learns nothing, and has steps that only pruning ends.
    return {
        "optim.peak_lr": max(lr, 1e-3) if trial.number < 2 else 1e-9,
        "train.num_steps": 24 if trial.number < 2 else 1_000_000,
    }
"""


def test_a_search_trains_and_prunes(tiny, tmp_path, file):
    """Real runs, by processes: what is known of them is optuna's own journal and their logs."""
    folder, left = tmp_path / "runs", ("optim.peak_lr", "train.num_steps", "optim.decay_steps")
    keys = {**dict.fromkeys(left), "checkpoint.every_steps": 24}
    environment = {**os.environ, "LM_CACHE": str(tiny.cache), "XLA_FLAGS": ""}

    def search():
        argv = [sys.executable, "-m", "experiments.sweep", *tiny.arguments(folder, keys)]
        ended = subprocess.run(
            [*argv, file(REAL)], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
        return ended.stdout

    search()
    rows = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["done", "done", "pruned"]
    assert [row["steps"] for row in rows[:2]] == [24, 24] and 8 <= rows[2]["steps"] < 1_000_000
    logged = [read_metrics(Path(row["workdir"]) / "metrics.jsonl") for row in rows]
    losses = [[row["eval/loss"] for row in each if "eval/loss" in row] for each in logged]
    assert [row["eval_loss"] for row in rows] == [each[-1] for each in losses]
    storages = optuna.storages
    journal = storages.journal.JournalFileBackend(str(folder / "optuna.journal"))
    study = optuna.load_study(study_name="sweep", storage=storages.JournalStorage(journal))
    states = optuna.trial.TrialState
    assert [x.state for x in study.trials] == [states.COMPLETE, states.COMPLETE, states.PRUNED]
    assert study.best_value == min(losses[0][-1], losses[1][-1])
    # It was pruned where it was behind the second, whom halving compares it with.
    step, value = max(study.trials[2].intermediate_values.items())
    assert value == losses[2][(step + 1) // 8 - 1] > losses[1][min((step + 1) // 8, 3) - 1]
    assert "3 trials, 3 of them ended" in search()


SEARCH = """
METRIC, TRIALS = "eval/loss", 12
def search(trial):
    lr = trial.suggest_float("lr", 1e-4, 1.0, log=True)
    return {"optim.peak_lr": lr, "train.num_steps": 100}
"""


def test_a_search_ends_what_is_behind_and_survives(stand_in, file, tmp_path):
    """Told to end, it leaves trials; the next one has as many in all, and none that ended again."""
    stand_in(0.01)
    folder = tmp_path / "runs"
    argv = [file(SEARCH), DEMO, f"--workdir={folder}", "--parallel=2"]

    class Told:
        requested = None

    def after_four(self, run, status, code=0):
        end(self, run, status, code)
        ended.append(run.name)
        Told.requested = "SIGTERM" if len(ended) >= 4 else None

    ended, end = [], sweeper.Sweep.end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeper, "interruptions", lambda: contextlib.nullcontext(Told))
        patch.setattr(sweeper.Sweep, "end", after_four)
        with pytest.raises(SystemExit) as stopped:
            command(*argv)
    assert stopped.value.code == 75
    count = len(ended)
    status, out, err = command(*argv)
    assert (status, err) == (0, "") and f"12 trials, {count} of them ended" in out
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and {row["status"] for row in lines} == {"done", "pruned"}
    for row in lines:
        assert (Path(row["workdir"]) / "starts").read_text() == "x" or row["run"] not in ended
    for row in lines:
        assert (row["steps"] == 100) == (row["status"] == "done")
    # What is pruned was no better, at the step where it ended, than the best one that was not.
    done = min(row["eval_loss"] for row in lines if row["status"] == "done")
    assert all(row["eval_loss"] > done for row in lines if row["status"] == "pruned")
    status, out, _ = command(*argv)
    assert status == 0 and "12 trials, 12 of them ended" in out


def test_a_trial_that_cannot_be_ends_the_search_and_the_others(stand_in, file, tmp_path):
    """It is said in one line, no process is left, and the trial is not tried again."""
    order = stand_in(1)
    text = SEARCH.replace('"train.num_steps": 100', '"train.num_steps": 100 - 200 * trial.number')
    argv = [file(text), DEMO, f"--workdir={tmp_path / 'runs'}", "--parallel=2"]
    status, _, err = command(*argv)
    assert status == 2 and re.fullmatch(r"error: trial 1 of [^\n]+\n", err) and len(order) <= 1
    lines = (tmp_path / "runs" / "ledger.jsonl").read_text() if order else ""
    assert all(json.loads(line)["status"] == "stopped" for line in lines.splitlines())
