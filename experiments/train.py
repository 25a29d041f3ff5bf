"""Train a language model; the same command again resumes it.

    python -m experiments.train --config=configs/gpt2.py:small --workdir=runs/a

The workdir gets config.json, tokenizer.json, metrics.jsonl, environment.json, checkpoints and
curve.png, and is all that generate and lm.load need. SIGTERM or Ctrl-C: the run saves and ends.
"""

import dataclasses
import functools
import json
import os
from pathlib import Path

from experiments import cli
from lm.config import Config, build, differences, resolve
from lm.errors import UserError, require

flags = cli.Parser(__doc__)
flags.add_argument(
    "--workdir", required=True, metavar="FOLDER", help="where the run is kept, new or to resume"
)


def train(argv):
    arguments = flags.parse(argv)
    resolve(arguments.config, tokenizer_size=1)  # what is wrong without any text is said at once
    workdir = Path(arguments.workdir)
    if arguments.config.train.deterministic:
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
        )
    data, config = open_workdir(workdir, arguments.config)
    print(cli.describe(config), flush=True)
    run(workdir, data, config)


def open_workdir(workdir, keys):
    """(Data, Config) of a new run, whose workdir is made, or of one to resume, which must agree.

    Raises UserError if the workdir holds another run.
    """
    from lm.data.store import open_data
    from lm.data.tokenizer import load

    saved = read_config(workdir)
    without_text = resolve(keys, tokenizer_size=1)
    data = open_data(without_text.data, tokenizer=load(workdir) if saved else None)
    config = resolve(keys, data.tokenizer.size)
    new = {**dataclasses.asdict(config), "data_key": data.key}
    if saved is None:
        workdir.mkdir(parents=True, exist_ok=True)
        data.tokenizer.save(workdir)
    else:
        changed = differences(saved, new)
        told = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items())
        require(
            not changed,
            f"{workdir} holds a run with another result: {told}. Give the former values to resume "
            "it, or another --workdir.",
        )
    # Renamed into place, and last: a workdir with a config.json is complete.
    half = workdir / f"config.json.{os.getpid()}"
    half.write_text(json.dumps(new, indent=2) + "\n")
    half.replace(workdir / "config.json")
    return data, config


def read_config(workdir):
    """The content of config.json, checked; None if there is none."""
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text())
        build(Config, {key: value for key, value in saved.items() if key != "data_key"})
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not the configuration of a run of this version ({error}); "
            "mend it, or give another --workdir."
        ) from error
    return saved


def run(workdir, data, config):
    """Train in a workdir from its newest checkpoint, or from the first step, to the end."""
    import jax

    from lm.checkpoint import Checkpoints
    from lm.cluster.signals import interruptions
    from lm.data.loader import Batches, place, prefetch
    from lm.mesh import check_mesh, make_mesh, sharding, use_mesh
    from lm.nn.transformer import Transformer
    from lm.track.environment import write_environment
    from lm.track.metrics import MetricsWriter
    from lm.track.profiler import Profiler
    from lm.track.progress import Progress
    from lm.train.loop import Hooks
    from lm.train.loop import train as train_loop
    from lm.train.state import abstract_state, initial_state
    from lm.train.step import make_train_step

    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    parts = config.train.accumulation_steps
    check_mesh(mesh, config.model, config.data.batch_size, parts)
    batches = Batches(data.train, config.data, config.train.seed)
    model = Transformer(config.model)
    template = abstract_state(model, config, mesh)
    train_step = make_train_step(model, config, jax.tree.map(lambda leaf: leaf.sharding, template))
    write_environment(workdir)
    metrics = config.metrics
    with (
        use_mesh(mesh),
        Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints,
        MetricsWriter(
            workdir, metrics.tensorboard, metrics.wandb_project, dataclasses.asdict(config)
        ) as writer,
        interruptions() as signals,
    ):
        restored = checkpoints.restore(template)
        if restored is None:
            state = initial_state(model, config, mesh)
        else:
            print(f"resumed from {workdir / 'checkpoints' / str(restored[0])}", flush=True)
            state = restored[1]
        first = int(state.step)
        profiler = Profiler(workdir, metrics.profile_start, metrics.profile_stop)
        make = functools.partial(
            place, batches, sharding=sharding(mesh, "microbatches"), accumulation=parts
        )
        stream = prefetch(make, range(first, config.train.num_steps), config.data.prefetch)
        with Progress(config.train.num_steps, first) as progress:
            hooks = Hooks(
                log=logger(config, mesh, first, writer, progress),
                evaluate=evaluator(model, config, data, mesh),
                save=checkpoints.save,
                profile=profiler,
                interrupted=lambda: signals.requested,
            )
            try:
                state, why = train_loop(state, train_step, stream, config, hooks)
            finally:
                stream.close()
                profiler.close()
    finish(workdir, first, int(state.step), config, why)


def logger(config, mesh, first, writer, progress):
    """log(step, values): to metrics.jsonl and to the screen, a step's device metrics renamed."""
    from lm.chips import peak_flops
    from lm.flops import training_flops_per_token
    from lm.track.throughput import Throughput

    length = config.data.sequence_length
    peak = peak_flops(mesh.devices.flat[0].device_kind, config.model.compute_dtype)
    throughput = Throughput(
        first,
        config.data.batch_size * length,
        training_flops_per_token(config.model, length),
        peak and peak * mesh.size,
    )

    def log(step, values):
        if "loss" in values:
            high, low = values["fingerprint"]
            values = {
                "train/loss": values["loss"],
                "train/grad_norm": values["grad_norm"],
                "train/lr": values["lr"],
                "train/skipped_steps": values["skipped_steps"],
                "data/fingerprint": f"{high:08x}{low:08x}",
                **throughput(step),
            }
        writer.write(step, values)
        progress(step, values)

    return log


def evaluator(model, config, data, mesh):
    """evaluate(params), over the validation part, or nothing if it is never due."""
    if not config.evaluate.every_steps:
        return None
    from lm.data.loader import ValidationBatches
    from lm.evaluate.likelihood import Likelihood
    from lm.train.step import make_eval_step

    rows = config.data.batch_size // config.train.accumulation_steps
    batches = ValidationBatches(data.validation, dataclasses.replace(config.data, batch_size=rows))
    step = make_eval_step(model, config)
    return Likelihood(step, batches, data.validation.num_bytes, mesh, config.data.prefetch)


def finish(workdir, first, step, config, why):
    """Draw the curve and say how it ended."""
    from lm.analysis.curve import draw_curve
    from lm.track.metrics import read_metrics

    if (workdir / "metrics.jsonl").stat().st_size:
        draw_curve(read_metrics(workdir / "metrics.jsonl"), workdir / "curve.png", workdir.name)
    if why:
        print(f"{why}: saved at step {step} of {config.train.num_steps}; the same command resumes.")
    elif first == step:
        print(f"{workdir} is trained to step {step} already; more steps: --config.train.num_steps.")
    else:
        print(f"trained to step {step}; curve: {workdir / 'curve.png'}")


if __name__ == "__main__":
    cli.main(train)
