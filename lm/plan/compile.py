"""The train step compiled for devices that are not there: its memory and traffic."""

import re
import types

import jax
import numpy as np

from lm.data.tokenizer import MODES
from lm.errors import RunError
from lm.mesh import mesh_of, sharding, use_mesh
from lm.nn.transformer import Transformer
from lm.objectives.builder import make_examples
from lm.plan.collectives import collectives
from lm.plan.sharding import placements
from lm.plan.topology import memory_of
from lm.train.state import abstract_state
from lm.train.step import make_train_step

REMEDIES = (
    "divide the weights over more devices (mesh.fsdp, mesh.tensor), set model.remat=full and "
    "objective.logits_chunk, model.attention_backend=chunked, a smaller data.batch_size or more "
    "train.accumulation_steps"
)


def compile_step(config, devices):
    """The compiled train step of a Config on these devices (jax.stages.Compiled).

    Raises UserError if the mesh does not fit, RunError if the step needs more memory than there is.
    """
    mesh, model = mesh_of(config, devices), Transformer(config.model)
    with use_mesh(mesh):
        state = abstract_state(model, config, mesh)
        step = make_train_step(model, config, jax.tree.map(lambda leaf: leaf.sharding, state))
        lowered = step.lower(state, abstract_batch(config, mesh))
        try:
            return lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise RunError(_exhausted(str(error), config, dict(mesh.shape))) from None


def abstract_batch(config, mesh):
    """{name: jax.ShapeDtypeStruct} of a batch as the loader places it on a mesh."""
    parts = config.train.accumulation_steps
    leading = parts, config.data.batch_size // parts
    return {
        name: jax.ShapeDtypeStruct(
            (*leading, *row.shape), row.dtype, sharding=sharding(mesh, "microbatches")
        )
        for name, row in example(config).items()
    }


def example(config):
    """{name: array (T,)}: an example of the shapes of all, by a tokenizer that there is not."""
    every = np.arange(config.model.vocab_size, dtype=np.int32)
    one = dict.fromkeys(("end", "pad", "mask", "begin", "unknown"), 0)
    several = {"sentinels": every[-100:], "modes": dict.fromkeys(MODES, 0)}
    tokenizer = types.SimpleNamespace(
        size=len(every),
        special={**one, **several},
        ordinary=every,
        word_starts=lambda: every % 2 == 0,
        sentence_ends=lambda: every % 16 == 0,
    )
    examples = make_examples(config.objective, config.data, config.model, tokenizer)
    if examples is None:
        integers = np.zeros(config.data.sequence_length, np.int32)
        row = {"tokens": integers, "targets": integers, "weights": integers.astype(np.float32)}
        return row | dict.fromkeys(
            ("segments", "positions") if config.data.separate_documents else (), integers
        )
    text = every[np.arange(examples.raw_length) % len(every)]
    rng = np.random.default_rng(0)
    return examples.choose(np.zeros(1, int), 0)[0](text, rng, lambda rng: text)


def bytes_per_device(compiled):
    """What the compiled step takes of a device's memory, in bytes, by kind, and in total."""
    memory = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "alias": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    return {**sizes, "total": sum(sizes.values()) - 2 * sizes["alias"]}


def compiled_costs(config, devices):
    """What the compiler says of a step: bytes_per_device, what is alive at the worst moment,
    with a TPU's vector memory, collectives, the memory of a device.

    On TPUs `temporaries`, and so `total`, has the gaps of the heap once more than they are there,
    and the compiler itself refuses what does not fit.
    """
    compiled = compile_step(config, devices)
    sizes, there = bytes_per_device(compiled), memory_of(devices[0])
    peak = compiled.memory_analysis().peak_memory_in_bytes
    return {
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "memory_per_device": there and int(there),
        "fits": there and (devices[0].platform == "tpu" or sizes["total"] <= there),
        "bytes_per_device": sizes,
        "peak_bytes_per_device": peak,
        "collectives": collectives(compiled.as_text()),
    }


def _exhausted(text, config, sizes):
    """What is largest and what to change, when a memory is used up; text: XLA's report of it."""
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w)", text) or re.search(
        r"temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", text
    )
    needs = f"needs {used[1]} of {used[2]} of a device's memory" if used else "does not fit"
    largest = sorted(placements(config, sizes), key=lambda row: -row.bytes)[:3]
    named = ", ".join(f"{row.kind} {row.name} {row.bytes / 2**30:.3g} GiB" for row in largest)
    return f"the train step {needs}; the largest are {named}. To make it fit, {REMEDIES}."
