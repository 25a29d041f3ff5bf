"""A run from its first step, or from its newest checkpoint, to its end."""

import dataclasses
import functools
import json
import sys
import time
import zlib
from contextlib import closing, nullcontext

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from lm.analysis.curve import draw_curve
from lm.checkpoint import Checkpoints
from lm.chips import peak_flops
from lm.cluster.hosts import Hosts, peak_gib
from lm.cluster.signals import interruptions
from lm.cluster.watchdog import Watchdog
from lm.data.loader import Batches, ValidationBatches, batch_number, place, prefetch
from lm.errors import RunError, require
from lm.evaluate.likelihood import Likelihood
from lm.flops import training_flops_per_token
from lm.mesh import sharding, use_mesh
from lm.nn.transformer import Transformer
from lm.objectives.builder import make_examples
from lm.paths import alone, write
from lm.track.environment import write_environment
from lm.track.experts import DeadExperts
from lm.track.metrics import MetricsWriter, logged, read_metrics
from lm.track.profiler import Profiler
from lm.track.progress import Progress
from lm.track.throughput import Throughput
from lm.train.loop import Hooks, Spike
from lm.train.loop import train as train_loop
from lm.train.state import abstract_state, initial_state
from lm.train.step import make_eval_step, make_train_step

LOGGED = ("loss", "grad_norm", "lr", "skipped_steps")


def run(workdir, data, config, saved, mesh, processes):
    """Train in a workdir from its newest checkpoint, or from the first step, to the end.

    saved: what config.json is to hold. What is wrong with the configuration is said before anything
    is written. Process 0 writes all but the checkpoints, of which each process writes its part.
    """
    num_steps, metrics = config.train.num_steps, config.metrics
    examples, make, evaluate, template, train_step = prepared(data, config, mesh)
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
            check_together(workdir, saved, processes.index)
            hosts = train_step = signals = Hosts(train_step, mesh, signals, processes)
        restored = checkpoints.restore(template)
        state = restored[1] if restored else initial_state(Transformer(config.model), config, mesh)
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
            if writes:  # what sampling needs besides a checkpoint, and what this start runs on
                data.tokenizer.save(workdir)
                write(workdir / "config.json", json.dumps(saved, indent=2) + "\n")
                write_environment(workdir, processes.hosts)

            def hooks(first):
                log = logger(config, mesh, first, writer, progress, examples, hosts)
                save, interrupted = timed(checkpoints, writer), lambda: signals.requested
                return Hooks(log, evaluate, save, profiler, interrupted)

            go_back = functools.partial(taken_back, checkpoints, template, config, [], writer, say)
            step = watchdog.watching(train_step)
            state, why = train_past_spikes(state, step, make, config, hooks, go_back)
    if writes:
        finish(workdir, first, int(state.step), config, why)


def prepared(data, config, mesh):
    """(examples, or None, make, evaluate, template, train_step), as the functions below take them.

    Raises UserError for a text, a tokenizer or an objective that do not fit together.
    """
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
    shardings = jax.tree.map(lambda leaf: leaf.sharding, template)
    return examples, make, evaluate, template, make_train_step(model, config, shardings)


def train_past_spikes(state, step, make, config, hooks, go_back):
    """(state, why) of the train loop; after a spike it runs again, from go_back(spike)'s state.

    make: from a batch's number to the batch on the devices. hooks: from the first step to Hooks.
    """
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


def check_together(workdir, saved, index):
    """Raise UserError unless all processes have this configuration, and one workdir."""
    elsewhere = dict.fromkeys(("path", "validation_path", "cache"))
    saved = json.dumps({**saved, "data": {**saved["data"], **elsewhere}}, sort_keys=True)
    seen, start = workdir / "start", np.uint32(time.time_ns() % 2**32)
    if index == 0:
        write(seen, str(start))
    told = process_allgather(np.array([zlib.crc32(saved.encode()), start], np.uint32))
    others = np.flatnonzero(told[:, 0] != told[0, 0]).tolist()
    other = f"process {others[:1]} has another configuration or text than process 0; start all with"
    require(not others, f"{other} the same flags.")
    here = seen.exists() and seen.read_text() == str(told[0, 1])
    blind = np.flatnonzero(~process_allgather(np.array([here]))).tolist()
    if index == 0:
        seen.unlink(missing_ok=True)
    told = f"process {blind[:1]} does not see what process 0 writes in --workdir={workdir}; give "
    require(not blind, f"{told}all the same folder, on a file system that they share, or a bucket.")


def logger(config, mesh, first, writer, progress, examples=None, hosts=None):
    """log(step, values): to metrics.jsonl and the screen, a step's metrics renamed; nowhere without
    a writer. hosts: as of lm.cluster.hosts, where there are several processes.
    """
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
            of_hosts, slow = hosts.metrics() if hosts is not None else ({}, None)
            told = [f"step {step}: {slow}"] if slow else []
            if "expert_counts" in values:
                told.append(dead_experts(step, values["expert_counts"]))
            for line in filter(None, told):
                print(line, file=sys.stderr, flush=True)
            high, low = values["fingerprint"]
            values = {
                **{f"train/{name}": values[name] for name in LOGGED},
                "data/fingerprint": f"{high:08x}{low:08x}",
                **{name: x for name, x in values.items() if name.startswith("experts/")},
                **{f"train/{name}": x for name, x in values.items() if name.endswith("_loss")},
                **throughput(step),
                "time": time.time(),  # with the starts in environment.json, what a run lost
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
    restored = checkpoints.restore(template)
    told = f"the loss of step {spike.step} stands out by train.spike_threshold"
    if restored is None:
        remedy = f"make checkpoint.every_steps {spike.step} or less, or the threshold larger."
        raise RunError(f"{told}, and there is no checkpoint to go back to; {remedy}")
    start, state = restored
    former = np.asarray(state.variables["skipped_batches"])
    known = sorted({*former[former < np.iinfo(np.int32).max].tolist(), *left_out})
    steps = range(max(start, spike.step + 1 - config.train.spike_skip), spike.step + 1)
    numbers = [batch_number(step, known) for step in steps]
    if len(known) + len(numbers) > len(former):
        full = f"{len(known)} batches are left out already, of at most {len(former)}"
        remedy = "make the threshold larger, or optim.peak_lr smaller in a new run."
        raise RunError(f"{told}, and {full}; {remedy}")
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
    rows = config.data.batch_size // config.train.accumulation_steps
    keys = dataclasses.replace(config.data, batch_size=rows)
    batches = ValidationBatches(data.validation, keys, examples)
    step = make_eval_step(model, config)
    num_bytes = None if examples else data.validation.num_bytes
    return Likelihood(step, batches, num_bytes, mesh, config.data.prefetch)


def finish(workdir, first, step, config, why):
    """Draw the curve and say how it ended."""
    if logged(workdir / "metrics.jsonl"):
        draw_curve(read_metrics(workdir / "metrics.jsonl"), workdir / "curve.png", workdir.name)
    if why:
        print(f"{why}: saved at step {step} of {config.train.num_steps}; the same command resumes.")
    elif first == step:
        print(f"{workdir} is trained to step {step} already; more steps: --config.train.num_steps.")
    else:
        print(f"trained to step {step}; curve: {workdir / 'curve.png'}")
