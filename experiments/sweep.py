"""Many runs of a configuration, each with its own changes; the same command again goes on.

    python -m experiments.sweep --sweep=experiments/sweeps/scaling.py --config=configs/demo.py \\
        --workdir=FOLDER [--backend=local] [--parallel=2] [--dry_run]
    python -m experiments.sweep --workdir=FOLDER --list [--json]

FILE has sweep(), which gives a dict of keys and values for each run, or search(trial), which makes
one of what optuna suggests, and METRIC, of metrics.jsonl, TRIALS and maybe DIRECTION="maximize".
A run's name follows from what it changes: what is done is never run again, what was killed goes on.
FOLDER/ledger.jsonl has a line for each run; what is not known there is null.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from experiments import cli
from experiments import launch as launcher
from experiments.inspect import sizes_of
from lm.analysis.report import read_run
from lm.cluster import launch as cluster
from lm.cluster.processes import RESTART
from lm.cluster.signals import interruptions
from lm.config import Config, flatten, resolve
from lm.errors import RunError, UserError, optional, require, require_in
from lm.paths import alone, as_path, is_url, write
from lm.track.environment import commit

flags = cli.Parser(__doc__, config="optional")
add = flags.add_argument
add("--workdir", required=True, metavar="FOLDER", help="where the runs are kept")
add("--sweep", metavar="FILE", help="what runs, as experiments/sweeps/scaling.py")
add("--parallel", type=int, metavar="N", help="runs at a time (1; all of a grid on slurm or gke)")
add("--list", action="store_true", help="how the runs of a folder stand")
add("--json", action="store_true", help="print that as JSON")
launcher.add_flags(flags)

POLL = 0.5  # seconds
QUEUES = ("slurm", "gke")  # where runs wait for their turn, and go on without this process
RESULTS = {"train_loss": "train/loss", "eval_loss": "eval/loss"}  # in metrics.jsonl
RESULTS |= {"energy_joules": "energy/joules", "cost": "cost"}  # where they are known
LISTED = ("run", "status", "steps", "seconds", "train_loss", "eval_loss")


def sweep(argv):
    arguments = flags.parse(argv)
    folder = as_path(arguments.workdir, "--workdir")
    if arguments.list:
        rows = list(read_ledger(folder).values())
        require(rows, f"there is no sweep in {folder}; give the --workdir of one.")
        short = [{x: row[x] for x in LISTED} | {"train.seed": row["seed"]} for row in rows]
        short = [row | known["changes"] for row, known in zip(short, rows, strict=True)]
        return print(json.dumps(rows, indent=2) if arguments.json else table(short))
    for flag, value in (("config=FILE:PRESET", arguments.config), ("sweep=FILE", arguments.sweep)):
        require(value, f"--{flag} is missing; only --list goes without.")
    told = f"--parallel={arguments.parallel} must be 1 or more."
    require(arguments.parallel is None or arguments.parallel >= 1, told)
    launcher.check(arguments)
    names = read(arguments, lambda names: {**names, "runs": list(names.get("sweep", list)())})
    told = f"--sweep={arguments.sweep} has neither sweep() nor search(trial), so it is no sweep."
    require("sweep" in names or "search" in names, told)
    planned = (Search if "search" in names else Sweep)(arguments, folder, names)
    if arguments.dry_run:
        runs = table([{"run": run.name, **run.changes} for run in planned.runs])
        return print(runs, *(text for text, _ in planned.submissions(planned.runs)), sep="\n")
    with alone(planned.local, "another sweep runs in"), interruptions() as signals:
        return planned.run(signals)


def read(arguments, use):
    """use({name: value}) of the sweep's file. Raises UserError for what is wrong in it."""
    flag = f"--sweep={arguments.sweep}"
    return cli.read_python(flag, arguments.sweep, "experiments/sweeps", use)


def read_ledger(folder):
    """{run: its line of the ledger}"""
    path = folder / "ledger.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    try:
        return {row["run"]: row for row in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a ledger ({error}); mend it.") from error


@dataclasses.dataclass(eq=False)
class Run:
    workdir: Path  # its name is the run's
    changes: dict  # {key: value}
    texts: dict  # the same, as flags have them
    config: Config
    trial: object = None  # optuna's

    @property
    def name(self):
        return self.workdir.name


def plan(arguments, label, changes, trial=None):
    """A Run, checked by all that can be without its text. Raises UserError, label first."""
    told = f"{label} is {changes!r}, and not a dict of keys and values."
    require(isinstance(changes, dict), told)
    changes = {key: x.item() if hasattr(x, "item") else x for key, x in changes.items()}
    twice = ", ".join(arguments.keys.keys() & changes.keys())
    require(not twice, f"{label} sets {twice}, which is given as a flag too; give it once.")
    texts = {key: x if isinstance(x, str) else repr(x) for key, x in changes.items()}
    keys = {**arguments.keys, **texts}
    try:
        config = resolve(cli.load_config(arguments.spec, keys), tokenizer_size=1)
        sizes_of(config, devices=None)
    except UserError as error:
        raise UserError(f"{label}: {error}") from error
    words = [f"{trial.number:04}"] if trial else []
    for key, x in changes.items():
        words.append(f"{key.rpartition('.')[2]}={f'{x:.4g}' if isinstance(x, float) else x}")
    while words[1:] and len(",".join(words)) > 40:
        words.pop()
    content = json.dumps([arguments.spec, sorted(keys.items())])
    name = re.sub(r"[^\w=.,-]", "_", ",".join(words))[:40]
    name = f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    return Run(as_path(arguments.workdir) / name, changes, texts, config, trial)


class Sweep:
    """The runs that sweep() gives, each once: starts them, watches them and writes the ledger."""

    def __init__(self, arguments, folder, names):
        self.arguments, self.folder, self.failed = arguments, folder, []
        self.local = Path("runs", cluster.dns_name(folder)) if is_url(folder) else folder
        self.queued = arguments.backend in QUEUES
        self.ledger, self.running = read_ledger(folder), {}
        self.runs = self.planned(names)  # of a search one
        self.parallel = arguments.parallel or (len(self.runs) if self.queued else 1)

    def planned(self, names):
        """What a dry run shows. Raises UserError for a run that cannot be, or is there twice."""
        file, seen, runs = self.arguments.sweep, {}, []
        told = f"--sweep={file}: sweep() gives no run; let it return a dict of keys for each, as"
        require(names["runs"], f"{told} seeds(2) does, or [{{}}] for the preset alone.")
        for number, changes in enumerate(names["runs"]):
            run = plan(self.arguments, f"run {number} of {file}", changes)
            content = json.dumps(dataclasses.asdict(run.config), sort_keys=True)
            same = seen.setdefault(content, number)
            told = f"run {number} of {file} ({run.changes}) is run {same} again; leave one out."
            require(same == number, told)
            runs.append(run)
        return runs

    def open(self):
        self.waiting = [run for run in self.runs if self.row(run).get("status") != "done"]
        print(f"{len(self.runs)} runs, {len(self.runs) - len(self.waiting)} of them done")

    def next(self):
        return self.waiting.pop(0) if self.waiting else None

    # Search has these do something.
    def is_behind(self, run):
        return False

    def tell(self, run, status, known):
        pass

    def run(self, signals):
        """All runs, to their end or a signal's. Raises RunError if some have failed."""
        self.open()
        # Slurm itself sees to how many of an array run at a time.
        slurm = self.arguments.backend == "slurm"
        at_once = max(self.parallel, len(self.runs)) if slurm else self.parallel
        try:
            while not signals.requested:
                self.start(at_once)
                if not self.running:
                    break
                for run, process in list(self.running.items()):
                    self.watch(run, process)
                time.sleep(POLL)
        finally:  # what is in a queue goes on without this process
            for run, process in [] if self.queued else list(self.running.items()):
                stop(process)
                self.write(run, "stopped")
        if signals.requested:
            print(f"{signals.requested}: the same command goes on.", file=sys.stderr)
            sys.exit(RESTART)
        told = f"{len(self.failed)} runs failed, and the same command tries them again: "
        if self.failed:
            raise RunError(told + ", ".join(self.failed))

    def row(self, run):
        return self.ledger.get(run.name, {})

    def is_done(self, run):
        """Of all its steps, though a sweep that was killed could not say so."""
        return launcher.saved_step(run.workdir) >= run.config.train.num_steps

    def start(self, at_once):
        """Start what may be, all at once, but for what a killed sweep has left going on."""
        new = []
        while len(self.running) + len(new) < at_once and (run := self.next()):
            job = self.row(run).get("job")
            left = cluster.slurm_job(job) if job else Held(run.workdir)
            if self.is_done(run):
                self.end(run, "done")
            elif left.poll() is None:
                self.running[run] = left
            else:
                new.append(run)
        self.running.update(zip(new, self.processes(new), strict=True))
        for run in new:
            slurm = self.arguments.backend == "slurm"
            self.write(run, "started", job=self.running[run].name if slurm else None)
            print(f"{run.name}: started", flush=True)

    def submissions(self, runs):
        """Of a queue: (what is submitted, what submits it and gives a Job, or of an array each)."""
        arguments, backend = self.arguments, self.arguments.backend
        flags = [launcher.run_flags(arguments, run.workdir, run.texts) for run in runs]
        if backend == "slurm" and runs:
            return [launcher.slurm(arguments, self.folder, *flags, at_once=self.parallel)]
        one_by_one = zip(runs, flags, strict=True) if backend == "gke" else ()
        return [launcher.gke(arguments, run.workdir, command) for run, command in one_by_one]

    def processes(self, runs):
        """What poll()s and can terminate(), of each run."""
        arguments = self.arguments
        for _, submit in self.submissions(runs):
            yield from submit()
        options = ("backend", "processes", "accelerator", "zone", "runtime")
        given = [(name, getattr(arguments, name)) for name in options]
        launch = [sys.executable, "-m", "experiments.launch", *["--spot"] * arguments.spot]
        launch += [f"--{name}={value}" for name, value in given if value]
        for run in [] if self.queued else runs:
            command = launcher.run_flags(arguments, run.workdir, run.texts)
            self.log(run).parent.mkdir(parents=True, exist_ok=True)
            with self.log(run).open("ab") as out:
                yield subprocess.Popen([*launch, *command], stdout=out, stderr=out)

    def log(self, run):
        """What a run has said, of those whose process is here."""
        return self.local / "logs" / f"{run.name}.txt"

    def watch(self, run, process):
        code = process.poll()
        if behind := code is None and self.is_behind(run):
            stop(process)
        if behind or code is not None:
            self.end(run, "pruned" if behind else "failed", code)

    def end(self, run, status, code=0):
        """A run has ended: it is done, or else what status says."""
        self.running.pop(run, None)
        status, code = ("done", 0) if self.is_done(run) else (status, code or 0)
        known = self.write(run, status, exit=code)
        status, told = self.row(run)["status"], f"eval/loss {known.measured('eval/loss')}"
        self.tell(run, status, known)
        if status == "failed":
            self.failed.append(run.name)
            log = self.log(run)
            said = [f"exit code {code}" if code else "", f"see {log}" if log.is_file() else ""]
            told = "; ".join(filter(None, [*known.damaged, *said]))
        print(f"{run.name}: {status}, {told}", flush=True)

    def write(self, run, status, **values):
        """A run's line of the ledger, with what its workdir tells, a report.Run, which it gives.
        Of damaged files nothing is told, and the run has failed.
        """
        known, row = read_run(run.workdir, run.name), self.row(run)
        given = flatten(self.arguments.config.to_dict())
        self.ledger[run.name] = {
            "run": run.name,
            "status": "failed" if known.damaged and status != "started" else status,
            "workdir": str(run.workdir),
            "config": self.arguments.spec,
            "changes": {**{key: given[key] for key in self.arguments.keys}, **run.changes},
            "code": known.starts[-1].get("code") if known.starts else commit(cli.ROOT),
            "data_key": known.config.get("data_key"),
            "seed": run.config.train.seed,
            "steps": launcher.saved_step(run.workdir),
            "seconds": known.seconds(),
            **{name: known.measured(key) for name, key in RESULTS.items()},
            **{name: row.get(name) for name in ("job", "exit")},
            **values,
        }
        lines = [f"{json.dumps(line)}\n" for line in self.ledger.values()]
        write(self.folder / "ledger.jsonl", "".join(lines))
        return known


class Search(Sweep):
    """The runs that optuna suggests, by TPE; successive halving ends those that are behind.

    What it knows is in optuna.journal; trials that a killed search has left go on.
    """

    def planned(self, names):
        """What a first trial may be."""
        file = self.arguments.sweep
        self.optuna = optional("optuna", f"search(trial) of {file}", "sweep")
        self.optuna.logging.set_verbosity(self.optuna.logging.ERROR)
        for name, kind in (("METRIC", str), ("TRIALS", int)):
            told = f"--sweep={file} searches, and needs {name} = something of type {kind.__name__}."
            require(isinstance(names.get(name), kind), told)
        self.metric, self.count = names["METRIC"], names["TRIALS"]
        self.direction = names.get("DIRECTION", "minimize")
        require_in(f"--sweep={file}: DIRECTION", self.direction, ("minimize", "maximize"))
        return [self.suggested(self.optuna.create_study(direction=self.direction).ask())]

    def suggested(self, trial):
        changes = read(self.arguments, lambda names: names["search"](trial))
        label = f"trial {trial.number} of {self.arguments.sweep}"
        return plan(self.arguments, label, changes, trial)

    def open(self):
        storages, Trial = self.optuna.storages, self.optuna.trial.Trial
        file = storages.journal.JournalFileBackend(str(self.local / "optuna.journal"))
        known = {"study_name": "sweep", "load_if_exists": True, "direction": self.direction}
        known |= {"pruner": self.optuna.pruners.SuccessiveHalvingPruner()}
        self.study = self.optuna.create_study(storage=storages.JournalStorage(file), **known)
        trials = self.study.get_trials(deepcopy=False)
        # With the seed of before it would suggest the same again.
        self.study.sampler = self.optuna.samplers.TPESampler(seed=len(trials), constant_liar=True)
        left = [trial for trial in trials if not trial.state.is_finished()]
        self.waiting = [self.suggested(Trial(self.study, trial._trial_id)) for trial in left]
        print(f"{self.count} trials, {len(trials) - len(left)} of them ended")

    def next(self):
        more = len(self.study.get_trials(deepcopy=False)) < self.count
        if self.waiting or not more:
            return super().next()
        trial = self.study.ask()
        try:
            return self.suggested(trial)
        except UserError:
            self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
            raise

    def is_behind(self, run):
        known = self.study.get_trials(deepcopy=False)[run.trial.number].intermediate_values
        for row in read_run(run.workdir, run.name).rows:
            if row.get(self.metric) is not None and row["step"] not in known:
                run.trial.report(row[self.metric], row["step"])
        return run.trial.should_prune()

    def tell(self, run, status, known):
        value, states = known.measured(self.metric), self.optuna.trial.TrialState
        told = f"{run.name} logged no {self.metric}, the METRIC of {self.arguments.sweep}."
        require(value is not None or status != "done", told)
        if status == "done":
            self.study.tell(run.trial, value)
        else:
            self.study.tell(run.trial, state=states.PRUNED if status == "pruned" else states.FAIL)


def stop(process):
    process.terminate()
    while process.poll() is None:
        time.sleep(POLL)


class Held:
    """A run that another process may still have, as a process."""

    def __init__(self, workdir):
        self.workdir = workdir

    def poll(self):
        with contextlib.suppress(UserError), alone(self.workdir):
            return 0
        return None

    def terminate(self):
        """It ends by itself."""


def table(rows):
    """Rows as text, with a column for each key, but for those of a config that all rows share."""
    keys = dict.fromkeys(key for row in rows for key in row)
    same = {key for key in keys if len({str(row.get(key)) for row in rows}) == 1}
    keys = [key for key in keys if "." not in key or key not in same or not rows[1:]]
    lines = [[key.rpartition(".")[2] for key in keys]]
    for row in rows:
        values = [row.get(key, "") for key in keys]
        lines.append([f"{x:.5g}" if isinstance(x, float) else str(x) for x in values])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [map(str.ljust, line, widths) for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in padded)


if __name__ == "__main__":
    cli.main(sweep)
