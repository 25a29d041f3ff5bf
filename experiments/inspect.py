"""What a configuration or a run will cost, before it costs anything: parameters, memory, FLOPs.

    python -m experiments.inspect --config=configs/gpt2.py:small [--devices=8] [--json]
    python -m experiments.inspect --workdir=runs/a
    python -m experiments.inspect --config=configs/llama.py --config.mesh.fsdp=8 --sharding

Everything is arithmetic on descriptions (lm/flops.py); no array is made and no device is used.
"""

import dataclasses
import json
import sys

from experiments import cli
from lm.axes import axis_sizes, check_sizes
from lm.config import Config, DataConfig, build, resolve
from lm.errors import UserError, require
from lm.paths import as_path

flags = cli.Parser(__doc__, config="optional")
add = flags.add_argument
add("--workdir", metavar="FOLDER", help="a run, instead of --config")
add("--devices", type=int, metavar="N", help="suppose N devices; without, the fewest for the mesh")
add("--sharding", action="store_true", help="where every tensor lies and why, and a picture of it")
add("--picture", default="sharding.png", metavar="FILE", help="where --sharding draws it")
add("--json", action="store_true", help="print JSON")


def inspect(argv):
    arguments = flags.parse(argv)
    one = (arguments.config is None) != (arguments.workdir is None)
    require(one, "give one of --config=FILE:PRESET and --workdir=FOLDER.")
    devices, run = arguments.devices, {}
    require(devices is None or devices >= 1, f"--devices must be 1 or more, not {devices}.")
    if arguments.workdir is None:
        config, assumed = resolve_alone(arguments.config)
    else:
        workdir = as_path(arguments.workdir, "--workdir")
        (config, _), assumed = read_config(workdir), []
        run = {"checkpoints": checkpoint_steps(workdir)}
    if arguments.sharding:
        return explain_sharding(config, arguments)
    report = {**costs(config, devices), **run, "assumed": assumed}
    return print(json.dumps(report, indent=2) if arguments.json else cli.text_of(report))


def explain_sharding(config, arguments):
    """Print where every tensor lies, and draw it."""
    from lm.plan.sharding import draw, placements, text

    sizes = sizes_of(config, arguments.devices)
    rows = placements(config, sizes)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        print(text(rows, cli.readable_bytes))
    draw(rows, sizes, arguments.picture)
    print(f"picture: {arguments.picture}", file=sys.stderr)


def sizes_of(config, devices):
    """{axis: size} of a mesh of so many devices, None: the fewest. Raises UserError."""
    sizes = axis_sizes(dataclasses.asdict(config.mesh), devices, supposed=True)
    check_sizes(sizes, config.model, config.data.batch_size, config.train.accumulation_steps)
    return sizes


def resolve_alone(keys):
    """(Config, what is assumed): no tokenizer is trained, which would give model.vocab_size."""
    if keys.get("model", {}).get("vocab_size") is not None:
        return resolve(keys), []
    size, assumed = vocabulary(build(DataConfig, keys.get("data", {})))
    return resolve(keys, size), [f"model.vocab_size={size}: {assumed}"]


def vocabulary(data):
    """(size of the tokenizer that a DataConfig asks for, how it is known)."""
    if data.tokenizer == "bpe":
        return data.tokenizer_size, "data.tokenizer_size, which little text may not reach"
    if data.tokenizer == "characters":
        from lm.data.cache import cache_root
        from lm.data.sources import read_corpus

        corpus = read_corpus("data.path", data.path, data.text_key, cache_root(data.cache))
        pieces = (piece for document in corpus.documents() for piece in document.pieces())
        characters = set().union(*pieces)
        return len(characters), f"the characters of {data.path or 'the standard library'}"
    from lm.data.tokenizer import find

    return find(data.tokenizer).size, f"the tokenizer {data.tokenizer}"


def read_config(workdir):
    """(Config, key of its text) that a run has saved."""
    path = workdir / "config.json"
    missing = f"there is no {path}, and a folder with no config.json holds no run"
    require(path.is_file(), f"{missing}; put it back, or give another --workdir.")
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
        data_key = keys.pop("data_key", None)
        return build(Config, keys), data_key
    except (ValueError, AttributeError, TypeError) as error:
        told = f"{path} is not the configuration of a run of this version ({error}); mend it, or "
        raise UserError(f"{told}give another --workdir.") from error


def checkpoint_steps(workdir):
    """The steps that a run has checkpoints of; with a manifest, one is whole."""
    folders = [path.parent.name for path in workdir.glob("checkpoints/*/manifest.json")]
    return sorted(int(name) for name in folders if name.isdigit())


def costs(config, devices=None):
    """What a Config costs, as a dict that JSON can hold: parameters, bytes, FLOPs, tokens.

    devices: how many, or None for the fewest that the mesh takes.
    """
    from lm import flops

    model, data, steps = config.model, config.data, config.train.num_steps
    mesh = sizes_of(config, devices)
    fsdp, tensor = mesh["fsdp"], mesh["tensor"]
    rows = data.batch_size // config.train.accumulation_steps // (mesh["data"] * fsdp)
    tokens_per_step = data.batch_size * data.sequence_length
    columns = min(config.objective.logits_chunk or model.vocab_size, model.vocab_size)
    length, per_token = data.sequence_length, {}
    for kind in flops.CONVENTIONS:
        per_token[kind] = flops.training_flops_per_token(model, length, kind)
    parameters = flops.parameter_count(model)
    memory = flops.state_bytes(model, fsdp, tensor)
    memory |= flops.activation_bytes(model, rows * length, columns, tensor)
    return {
        "parameters": parameters,
        "active_parameters": flops.active_parameter_count(model),
        "parameters_by_part": flops.parameter_parts(model),
        "matmul_parameters": flops.matmul_parameters(model),
        "mesh": mesh,
        "bytes_per_device": {**memory, "total": sum(memory.values())},  # at least
        "checkpoint_bytes": flops.checkpoint_bytes(model),
        "cache_bytes_per_token": flops.cache_bytes_per_token(model),
        "cache_bytes": flops.cache_bytes(model, length),
        "training_flops_per_token": per_token,
        "forward_flops_per_token": flops.forward_flops_per_token(model, length),
        "decode_flops_per_token": flops.decode_flops_per_token(model, length),
        "tokens_per_step": tokens_per_step,
        "flops_per_step": per_token["causal"] * tokens_per_step,
        "steps": steps,
        "training_tokens": steps * tokens_per_step,
        "training_flops": per_token["causal"] * steps * tokens_per_step,
        "tokens_per_parameter": steps * tokens_per_step / parameters,
    }


if __name__ == "__main__":
    cli.main(inspect)
