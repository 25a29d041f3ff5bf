"""Train a language model; the same command again resumes it.

    python -m experiments.train --config=configs/gpt2.py:small --workdir=runs/a

The workdir gets config.json, tokenizer.json, metrics.jsonl, environment.json, checkpoints and
curve.png, and is all that generate and lm.load need. SIGTERM or Ctrl-C: the run saves and ends.
Of many processes each is started so; Slurm, Kubernetes, TPU pods and Open MPI say who they are, or
else --coordinator, --num_processes and --process_id do. Exit code 75: start it again.
"""

import dataclasses
import fcntl
import functools
import json
import os
import sys
import time
import zlib
from contextlib import closing, contextmanager, nullcontext

from experiments import cli
from experiments.inspect import read_config
from lm.cluster.memory import keep_freed_memory
from lm.cluster.processes import together
from lm.config import differences, resolve
from lm.errors import RunError, UserError, require
from lm.paths import as_path, is_url, write

flags = cli.Parser(__doc__)
add = flags.add_argument
add("--workdir", required=True, metavar="FOLDER", help="where the run is kept, new or to resume")
add("--coordinator", metavar="HOST:PORT", help="of many processes, where process 0 is")
add("--num_processes", metavar="N", help="how many there are")
add("--process_id", metavar="I", help="which of them this is, from 0")

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
LOGGED = ("loss", "grad_norm", "lr", "skipped_steps")


def train(argv):
    arguments = flags.parse(argv)
    require(arguments.workdir, "--workdir= is empty; name a folder.")
    resolve(arguments.config, tokenizer_size=1)  # what is wrong without any text is said at once
    workdir = as_path(arguments.workdir, "--workdir")
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if arguments.config.train.deterministic and DETERMINISTIC not in xla_flags:
        os.environ["XLA_FLAGS"] = f"{xla_flags} {DETERMINISTIC}"
    keep_freed_memory()
    from lm.mesh import mesh_of

    members = arguments.coordinator, arguments.num_processes, arguments.process_id
    with together(*members, arguments.config.cluster.timeout_seconds) as processes:
        with processes.first_process_first():  # it builds the token store that the others open
            data, config = open_run(workdir, arguments.config)
            mesh = mesh_of(config)
        if processes.index == 0:
            print(cli.describe(config), flush=True)
        run(workdir, data, config, mesh, processes)


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
    require(
        not told,
        f"{workdir} holds a run with another result: {'; '.join(told)}. Resume it with {undo}, or "
        "give another --workdir.",
    )
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


def run(workdir, data, config, mesh, processes):
    """Train in a workdir from its newest checkpoint, or from the first step, to the end.

    What is wrong with the configuration is said before anything is written. Process 0 writes all
    but the checkpoints, of which each process writes its part.
    """
    import jax

    from lm.checkpoint import Checkpoints
    from lm.cluster.hosts import Hosts
    from lm.cluster.signals import interruptions
    from lm.cluster.watchdog import Watchdog
    from lm.data.loader import Batches, place
    from lm.mesh import sharding, use_mesh
    from lm.nn.transformer import Transformer
    from lm.objectives.builder import make_examples
    from lm.track.metrics import MetricsWriter
    from lm.track.profiler import Profiler
    from lm.track.progress import Progress
    from lm.train.loop import Hooks
    from lm.train.state import abstract_state, initial_state
    from lm.train.step import make_train_step

    num_steps, metrics = config.train.num_steps, config.metrics
    examples = make_examples(config.objective, config.data, config.model, data.tokenizer)
    if examples:  # checked again, now that the length of targets is known
        known = dataclasses.replace(config.data, target_length=examples.target_length)
        dataclasses.replace(config, data=known)
    make = functools.partial(
        place,
        Batches(data.train, config.data, config.train.seed, examples),
        sharding=sharding(mesh, "microbatches"),
        accumulation=config.train.accumulation_steps,
    )
    model = Transformer(config.model)
    evaluate = evaluator(model, config, data, mesh, examples)
    template = abstract_state(model, config, mesh)
    train_step = make_train_step(model, config, jax.tree.map(lambda leaf: leaf.sharding, template))
    processes.workdir, writes = workdir, processes.index == 0
    say = functools.partial(print, flush=True) if writes else lambda line: None
    sinks = metrics.tensorboard, metrics.wandb_project, dataclasses.asdict(config)
    with (
        alone(workdir) if writes else nullcontext(),
        use_mesh(mesh),
        Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints,
        interruptions() as signals,
    ):
        hosts = None
        if processes.count > 1:
            check_together(workdir, content(config, data.key), processes.index)
            hosts = train_step = signals = Hosts(train_step, mesh, signals, processes)
        restored = checkpoints.restore(template)
        state = restored[1] if restored else initial_state(model, config, mesh)
        if restored:
            say(f"resumed from {workdir / 'checkpoints' / str(restored[0])}")
        first = int(state.step)
        if first < num_steps:
            say("compiling the train step; its first metrics follow")
        with (
            MetricsWriter(workdir, *sinks) if writes else nullcontext() as writer,
            Progress(num_steps, first, quiet=not writes) as progress,
            closing(Profiler(workdir, metrics.profile_start, metrics.profile_stop)) as profiler,
            closing(Watchdog(config.cluster.watchdog_seconds, processes.stacks)) as watchdog,
            processes.telling(),
        ):
            if writes:
                write_start(workdir, data, config, processes.hosts)

            def hooks(first):
                return Hooks(
                    log=logger(config, mesh, first, writer, progress, examples, hosts),
                    evaluate=evaluate,
                    save=timed(checkpoints, writer),
                    profile=profiler,
                    interrupted=lambda: signals.requested,
                )

            go_back = functools.partial(taken_back, checkpoints, template, config, [], writer, say)
            step = watchdog.watching(train_step)
            state, why = train_past_spikes(state, step, make, config, hooks, go_back)
    if writes:
        finish(workdir, first, int(state.step), config, why)


def train_past_spikes(state, step, make, config, hooks, go_back):
    """(state, why) of the train loop; after a spike it runs again, from go_back(spike)'s state.

    make: from a batch's number to the batch on the devices. hooks: from the first step to Hooks.
    """
    import numpy as np

    from lm.data.loader import batch_number, prefetch
    from lm.train.loop import Spike
    from lm.train.loop import train as train_loop

    while True:
        skipped = np.asarray(state.variables["skipped_batches"])
        first = int(state.step)
        numbers = (batch_number(step, skipped) for step in range(first, config.train.num_steps))
        with closing(prefetch(make, numbers, config.data.prefetch)) as batches:
            try:
                return train_loop(state, step, batches, config, hooks(first))
            except Spike as error:  # without what would keep two states in memory
                spike, state = error.with_traceback(None), None
        state = go_back(spike)


@contextmanager
def alone(workdir):
    """Make the workdir, and hold it: of two runs at once each would remove what the other saves."""
    if is_url(workdir):  # a bucket has no lock that a killed run would let go
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    folder = os.open(workdir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process trains in {workdir}; wait for it, or give another --workdir."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(folder)


def check_together(workdir, saved, index):
    """Raise UserError unless all processes have this configuration, and one workdir."""
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    elsewhere = dict.fromkeys(("path", "validation_path", "cache"))
    saved = json.dumps({**saved, "data": {**saved["data"], **elsewhere}}, sort_keys=True)
    seen, start = workdir / "start", np.uint32(time.time_ns() % 2**32)
    if index == 0:
        write(seen, str(start))
    told = process_allgather(np.array([zlib.crc32(saved.encode()), start], np.uint32))
    others = np.flatnonzero(told[:, 0] != told[0, 0]).tolist()
    require(
        not others,
        f"process {others[:1]} has another configuration or text than process 0; start all with "
        "the same flags.",
    )
    here = seen.exists() and seen.read_text() == str(told[0, 1])
    blind = np.flatnonzero(~process_allgather(np.array([here]))).tolist()
    if index == 0:
        seen.unlink(missing_ok=True)
    require(
        not blind,
        f"process {blind[:1]} does not see what process 0 writes in --workdir={workdir}; give all "
        "the same folder, on a file system that they share, or a bucket.",
    )


def write_start(workdir, data, config, hosts):
    """What generate and lm.load need besides a checkpoint, and what this start runs on."""
    from lm.track.environment import write_environment

    data.tokenizer.save(workdir)
    write(workdir / "config.json", json.dumps(content(config, data.key), indent=2) + "\n")
    write_environment(workdir, hosts)


def logger(config, mesh, first, writer, progress, examples=None, hosts=None):
    """log(step, values): to metrics.jsonl and the screen, a step's metrics renamed; nowhere without
    a writer. hosts: as of lm.cluster.hosts, where there are several processes.
    """
    from lm.chips import peak_flops
    from lm.cluster.hosts import peak_gib
    from lm.flops import training_flops_per_token
    from lm.track.experts import DeadExperts
    from lm.track.throughput import Throughput

    if writer is None:
        return lambda step, values: None
    length = config.data.sequence_length
    peak = peak_flops(mesh.devices.flat[0].device_kind, config.model.compute_dtype)
    target_length = examples.target_length if examples else 0
    flops = training_flops_per_token(config.model, length, target_length=target_length)
    flops, peak = flops * config.objective.passes, peak and peak * mesh.size
    throughput = Throughput(first, config.data.batch_size * length, flops, peak)
    dead_experts = DeadExperts()

    def log(step, values):
        if "loss" in values:
            told, of_hosts = [], {}
            if "expert_counts" in values:
                told.append(dead_experts(step, values["expert_counts"]))
            if hosts is not None:
                of_hosts, slow = hosts.metrics()
                told.append(slow and f"step {step}: {slow}")
            for line in filter(None, told):
                print(line, file=sys.stderr, flush=True)
            high, low = values["fingerprint"]
            values = {
                **{f"train/{name}": values[name] for name in LOGGED},
                "data/fingerprint": f"{high:08x}{low:08x}",
                **{name: x for name, x in values.items() if name.startswith("experts/")},
                **{f"train/{name}": x for name, x in values.items() if name.endswith("_loss")},
                **throughput(step),
                "hosts/peak_gib": peak_gib(),
                **of_hosts,
            }
        writer.write(step, values)
        progress(step, values)

    return log


def taken_back(checkpoints, template, config, left_out, writer, say, spike):
    """The last checkpoint's state, told to leave out the batches up to that of the Spike.

    left_out: the numbers of earlier times, of which the checkpoint may know nothing; they grow.
    Raises RunError if there is no checkpoint, or no room for more batches in the state.
    """
    import jax
    import numpy as np

    from lm.data.loader import batch_number

    restored = checkpoints.restore(template)
    told = f"the loss of step {spike.step} stands out by train.spike_threshold"
    if restored is None:
        raise RunError(
            f"{told}, and there is no checkpoint to go back to; make checkpoint.every_steps "
            f"{spike.step} or less, or the threshold larger."
        )
    start, state = restored
    former = np.asarray(state.variables["skipped_batches"])
    known = sorted({*former[former < np.iinfo(np.int32).max].tolist(), *left_out})
    steps = range(max(start, spike.step + 1 - config.train.spike_skip), spike.step + 1)
    numbers = [batch_number(step, known) for step in steps]
    if len(known) + len(numbers) > len(former):
        raise RunError(
            f"{told}, and {len(known)} batches are left out already, of at most {len(former)}; "
            "make the threshold larger, or optim.peak_lr smaller in a new run."
        )
    left_out += numbers
    names = " ".join(map(str, numbers))
    say(f"{spike}; back to step {start}, without batches {names}")
    if writer is not None:
        writer.write(spike.step, {"data/skipped_batches": names})
    skipped = np.full_like(former, np.iinfo(np.int32).max)
    skipped[: len(known) + len(numbers)] = [*known, *numbers]
    placed = jax.device_put(np.sort(skipped), state.variables["skipped_batches"].sharding)
    return dataclasses.replace(state, variables={**state.variables, "skipped_batches": placed})


def timed(checkpoints, writer):
    """checkpoints.save, which with a writer logs how long the run waited, and how long it took."""
    if writer is None:
        return checkpoints.save

    def save(step, *saved):
        writer.flush()  # what came before a checkpoint is not logged again
        began = time.perf_counter()
        checkpoints.save(step, *saved)
        writer.write(step - 1, {"save/blocked_seconds": time.perf_counter() - began})
        while checkpoints.seconds:  # of the save before this one, or of this one if it was awaited
            done, seconds = checkpoints.seconds.popitem()
            writer.write(done - 1, {"save/seconds": seconds})

    return save


def evaluator(model, config, data, mesh, examples):
    """evaluate(params), over the validation part, or nothing if it is never due."""
    if not config.evaluate.every_steps:
        return None
    from lm.data.loader import ValidationBatches
    from lm.evaluate.likelihood import Likelihood
    from lm.train.step import make_eval_step

    rows = config.data.batch_size // config.train.accumulation_steps
    keys = dataclasses.replace(config.data, batch_size=rows)
    batches = ValidationBatches(data.validation, keys, examples)
    step = make_eval_step(model, config)
    num_bytes = None if examples else data.validation.num_bytes
    return Likelihood(step, batches, num_bytes, mesh, config.data.prefetch)


def finish(workdir, first, step, config, why):
    """Draw the curve and say how it ended."""
    from lm.analysis.curve import draw_curve
    from lm.track.metrics import logged, read_metrics

    if logged(workdir / "metrics.jsonl"):
        draw_curve(read_metrics(workdir / "metrics.jsonl"), workdir / "curve.png", workdir.name)
    if why:
        print(f"{why}: saved at step {step} of {config.train.num_steps}; the same command resumes.")
    elif first == step:
        print(f"{workdir} is trained to step {step} already; more steps: --config.train.num_steps.")
    else:
        print(f"trained to step {step}; curve: {workdir / 'curve.png'}")


if __name__ == "__main__":
    cli.main(train)
