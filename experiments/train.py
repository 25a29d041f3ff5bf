"""Train a language model; the same command again resumes it.

    python -m experiments.train --config=configs/gpt2.py:small --workdir=runs/a

The workdir gets config.json, tokenizer.json, metrics.jsonl, environment.json, checkpoints and
curve.png, and is all that generate and lm.load need. SIGTERM or Ctrl-C: the run saves and ends.
Of many processes each is started so; Slurm, Kubernetes, TPU pods and Open MPI say who they are, or
else --coordinator, --num_processes and --process_id do. Exit code 75: start it again.
"""

import dataclasses
import os

from experiments import cli
from experiments.inspect import read_config
from lm.cluster.memory import keep_freed_memory
from lm.cluster.processes import together
from lm.config import differences, resolve
from lm.errors import require
from lm.paths import as_path

flags = cli.Parser(__doc__)
add = flags.add_argument
add("--workdir", required=True, metavar="FOLDER", help="where the run is kept, new or to resume")
add("--coordinator", metavar="HOST:PORT", help="of many processes, where process 0 is")
add("--num_processes", metavar="N", help="how many there are")
add("--process_id", metavar="I", help="which of them this is, from 0")

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def train(argv):
    arguments = flags.parse(argv)
    require(arguments.workdir, "--workdir= is empty; name a folder.")
    told = f"--workdir={arguments.workdir} is a file; name a folder, which a run makes if need be."
    require(not os.path.isfile(arguments.workdir), told)
    resolve(arguments.config, tokenizer_size=1)  # what is wrong without any text is said at once
    workdir = as_path(arguments.workdir, "--workdir")
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if arguments.config.train.deterministic and DETERMINISTIC not in xla_flags:
        os.environ["XLA_FLAGS"] = f"{xla_flags} {DETERMINISTIC}"
    keep_freed_memory()
    from experiments.running import run
    from lm.mesh import mesh_of

    members = arguments.coordinator, arguments.num_processes, arguments.process_id
    with together(*members, arguments.config.cluster.timeout_seconds) as processes:
        with processes.first_process_first():  # it builds the token store that the others open
            data, config = open_run(workdir, arguments.config)
            mesh = mesh_of(config)
        if processes.index == 0:
            print(cli.describe(config), flush=True)
        run(workdir, data, config, content(config, data.key), mesh, processes)


def open_run(workdir, keys):
    """(Data, Config) of a new run, or of the one in workdir, with which the keys must agree.

    Writes nothing there. Raises UserError if the workdir holds another run.
    """
    from lm.data.store import open_data
    from lm.data.tokenizer import load

    saved = read_run(workdir)
    without_text = resolve(keys, tokenizer_size=1)
    data = open_data(without_text.data, tokenizer=load(workdir) if saved else None)
    config = resolve(keys, data.tokenizer.size)
    changed = differences(saved, content(config, data.key)) if saved else {}
    text = changed.pop("data_key", None) and "the text and tokenizer.json it was trained with"
    told = [f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items()]
    undo = " ".join(f"--config.{key}={old}" for key, (old, _) in changed.items())
    if text:
        told, undo = [*told, f"{text} have changed"], " and ".join(filter(None, (undo, text)))
    told = f"{workdir} holds a run with another result: {'; '.join(told)}" if told else ""
    require(not told, f"{told}. Resume it with {undo}, or give another --workdir.")
    return data, config


def content(config, data_key):
    """What config.json holds."""
    return {**dataclasses.asdict(config), "data_key": data_key}


def read_run(workdir):
    """What config.json holds; None of a run that has yet to log or save a step.

    Raises UserError too if metrics.jsonl is damaged, of which no curve could be drawn at the end.
    """
    from lm.track.metrics import logged, read_metrics

    metrics = workdir / "metrics.jsonl"
    if not logged(metrics) and not any((workdir / "checkpoints").glob("*")):
        return None
    config, data_key = read_config(workdir)
    if logged(metrics):
        read_metrics(metrics)
    return content(config, data_key)


if __name__ == "__main__":
    cli.main(train)
