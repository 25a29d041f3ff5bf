"""Models from and to folders in Hugging Face's format, by the tables of the families."""

import dataclasses
import functools
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from lm.config import build
from lm.data import tokenizer as tokenizers
from lm.errors import RunError, UserError, require, require_in
from lm.hub import family as tables
from lm.hub.families import FAMILIES
from lm.hub.files import DTYPES, TensorFiles, read_json, replaced, write_json, write_tensors
from lm.hub.tensors import slots
from lm.model import LanguageModel, skeleton
from lm.nn.config import TransformerConfig
from lm.nn.params import named, nested

HEAD, EMBEDDING = "head/kernel_DV", "embed/table_VD"
SELECTION = "layers/experts/selection_bias_E"


def import_model(folder, mesh=None, compute_dtype="float32"):
    """The LanguageModel of a folder: config.json, safetensors and, if there is one, tokenizer.json.
    Parameters keep the files' dtype. mesh: a jax.sharding.Mesh as lm.mesh makes it; None is one
    device. Raises UserError for all that is missing, superfluous, damaged, or not what lm has.
    """
    folder = Path(folder).expanduser()
    family, content = _read_family(folder / "config.json")
    files = TensorFiles(folder)
    config, reads = _check(folder, family, content, files, compute_dtype)
    module, template = skeleton(config, mesh)
    params = _read_parameters(files, reads, template)
    there = (folder / "tokenizer.json").is_file()
    return LanguageModel(config, module, params, tokenizers.load(folder) if there else None, mesh)


def export_model(model, folder, family=None, max_shard_size=5_000_000_000, finish=None):
    """Write a LanguageModel to a folder that transformers and `import_model` load; the family.

    family: its model_type; None is the first that can express the model. The folder gets its name
    only when all that was written has been read again and is, bit for bit, the model, and when
    `finish`, a function of the folder, has returned.
    max_shard_size: bytes of one safetensors file, which is also what is held in memory.
    Raises UserError if the family cannot express the model, or if the folder is there.
    """
    chosen = _family_for(model.config, family)
    folder = Path(folder).expanduser().absolute()
    found = {slot.name: slot for slot in _slots(chosen, model.config)}
    if model.config.head == "none":
        found = {name.removeprefix(chosen.prefix): slot for name, slot in found.items()}
    params = named(model.params)
    told = "a model that lies on several hosts cannot be exported; load it in one process."
    require(all(array.is_fully_addressable for array in params.values()), told)

    def fetch(name):
        return found[name].join(_fetch(params, part) for part in found[name].parts)

    content = tables.write_keys(chosen, model.config)
    # Both names of the dtype: `torch_dtype` is for transformers before version 5.
    content |= dict.fromkeys(("dtype", "torch_dtype"), model.config.param_dtype)
    special = _special_tokens(model.tokenizer)
    content |= {"bos_token_id": special.get("bos"), "eos_token_id": special.get("eos")}
    if "pad" in special and not model.config.position_pad_aware:  # or positions say which it is
        content["pad_token_id"] = special["pad"]
    # Not all have the model's dtype: a selection bias is float32.
    kinds = {name: (s.shape(), params[s.parts[0].parameter].dtype) for name, s in found.items()}
    with replaced(folder) as partial:
        write_tensors(partial, kinds, fetch, max_shard_size)
        write_json(partial / "config.json", content)
        if model.tokenizer is not None:
            model.tokenizer.save(partial)
        _verify(model, partial)
        if finish is not None:
            finish(partial)
        path = partial / "tokenizer_config.json"
        if model.tokenizer is not None and not path.exists():
            # Without it transformers takes the class of the family, with tokens of its own.
            name_of = model.tokenizer.library.id_to_token
            names = {f"{name}_token": name_of(token) for name, token in special.items()}
            write_json(path, {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    return chosen.model_type


def _special_tokens(tokenizer):
    """{what transformers calls it: token} of those that the tokenizer, or None, has."""
    special = {} if tokenizer is None else tokenizer.special
    begin = "begin" if "begin" in special else "end"  # GPT-2's one is both
    theirs = {"bos": begin, "eos": "end", "pad": "pad", "mask": "mask", "unk": "unknown"}
    theirs |= {"cls": "begin", "sep": "end"} if begin == "begin" else {}
    return {name: special[role] for name, role in theirs.items() if role in special}


def _family_for(config, name):
    """The Family of that name, or the first that can express the config."""
    if name is not None:
        require_in("family", name, FAMILIES)
    reasons = []
    for option in FAMILIES if name is None else (name,):
        found = tables.obstacles(FAMILIES[option], config)
        if not found:
            return FAMILIES[option]
        reasons.append(f"as {option} {', '.join(found)}")
    raise UserError(f"the model cannot be exported: {'; '.join(reasons)}.")


def _slots(family, config, names=()):
    """The tensors of a model of this config, as they lie in a folder that has these names."""
    _, template = skeleton(config)
    shapes = {name: leaf.shape for name, leaf in named(template).items()}
    return slots(family.rows(names), shapes, config)


def _read_family(path):
    """(Family, content) of a config.json."""
    content = read_json(path)
    kind, architectures = content.get("model_type"), content.get("architectures")
    for family in FAMILIES.values():
        named = not architectures or architectures in [[name] for name in family.architectures]
        if named and (kind or family.model_type) == family.model_type and (kind or architectures):
            return family, content
    known = ", ".join(name for family in FAMILIES.values() for name in family.architectures)
    told = f"{path} is of architectures={architectures!r} and model_type={kind!r}"
    raise UserError(f"{told}, which lm cannot import; it can: {known}.")


def _check(folder, family, content, files, compute_dtype):
    """(TransformerConfig, [(Slot, its name in the files)]), every name, shape and dtype checked."""
    names = _parameter_names(folder, family, files)
    dtypes = {"param_dtype": _dtype(family, files, names), "compute_dtype": compute_dtype}
    try:
        config = build(TransformerConfig, {**tables.read_keys(family, content), **dtypes})
        limits = tables.broken_limits(family, config)
        require(not limits, f"{'; '.join(limits)}.")
        layers = config.num_layers + config.num_encoder_layers
        require(layers <= len(names), f"{layers} layers, but all files hold {len(names)} tensors.")
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None
    config = _without_repeats(family, config, files, names)
    config = _with_prediction_or_not(family, config, names)
    _without_other_heads(family, config, names)
    found = {slot.name: slot for slot in _slots(family, config, names)}
    problems = []
    for name in sorted({*found, *names}):
        here = found[name].shape() if name in found else None
        there = files.shape(names[name]) if name in names else None
        if there is None:
            problems.append(f"{name} {here} is missing")
        elif here is None:
            problems.append(f"{names[name]} {there} is no tensor of this {family.model_type}")
        elif here != there:
            problems.append(f"{names[name]} is {there}, by config.json it is {here}")
    told = "; ".join(problems[:4]) + (f" and {len(problems) - 4} more" if problems[4:] else "")
    require(not problems, f"the safetensors of {folder} do not fit its config.json: {told}.")
    return config, [(slot, names[name]) for name, slot in found.items()]


def _parameter_names(folder, family, files):
    """{name in the table: name in the files} of what the files hold, but for what is ignored."""
    known = {*(row.name for row in family.tensors), *family.copies}
    names = {}
    for name in sorted(files.names):
        full = name
        for old, new in family.renamed.items():
            full = full.replace(old, new)
        if not full.startswith(family.prefix) and full not in known:
            full = family.prefix + full
        if not re.fullmatch(family.ignored, full):
            require(full not in names, f"{folder} holds both {name!r} and {full!r}; delete one.")
            names[full] = name
    require(names, f"the safetensors of {folder} hold no tensor.")
    return names


def _dtype(family, files, names):
    """The narrowest dtype that holds all parameters of the files."""
    # Selection biases are float32 in every model, and no reason for the rest to be.
    ends = [row.name.split("}")[-1] for row in family.tensors if {*row.parts} & {SELECTION}]
    found = {files.dtype(names[n]): names[n] for n in names if not n.endswith(tuple(ends))}
    for dtype, name in found.items():
        require(dtype in DTYPES, f"{name} is of dtype {dtype}; lm reads {', '.join(DTYPES)}.")
    return str(functools.reduce(jnp.promote_types, [DTYPES[dtype] for dtype in found]))


def _without_repeats(family, config, files, names):
    """The config, untied if the files hold another head than the embedding, as transformers does.
    Tensors that repeat others are taken out of names, or given the others' place.
    """
    head, table = (
        next(row.name for row in family.tensors if parameter in row.parts)
        for parameter in (HEAD, EMBEDDING)
    )
    tied = {head: table} if config.tied_embedding and config.head != "none" else {}
    for copy, name in (family.copies | tied).items():
        if copy in names:
            here, other = names[copy], names.setdefault(name, names[copy])
            if here == other or np.array_equal(files.read(here), files.read(other)):
                del names[copy]
            else:
                told = f"{copy} and {name} are one to lm, but in the files they differ."
                require(copy in tied, told)
                config = dataclasses.replace(config, tied_embedding=False)
    return config


def _without_other_heads(family, config, names):
    """Take the tensors that only another architecture of the family has out of names, as
    transformers does: the hub's bert-base-uncased is a BertForMaskedLM with all of pretraining.
    """
    if len(family.architectures) > 1:
        own = {slot.name for slot in _slots(family, config, names)}
        for keys in family.architectures.values():
            tied = keys["head"] == "none"
            other = dataclasses.replace(config, **keys, tied_embedding=tied)
            for slot in _slots(family, other):
                if slot.name not in own:
                    names.pop(slot.name, None)


def _with_prediction_or_not(family, config, names):
    """The config, without multi-token prediction if the files lack it. The files' layer for it is
    taken out of names if the config has none, as transformers does.
    """
    start = f"{family.prefix}layers.{config.num_layers}."
    first = [row.name for row in family.tensors if "mtp/projection_ID" in row.parts]
    there = any(name.format(layer=config.num_layers) in names for name in first)
    if there and not config.mtp_depth:
        for name in [name for name in names if name.startswith(start)]:
            del names[name]
    return config if there else dataclasses.replace(config, mtp_depth=0)


def _read_parameters(files, reads, template):
    """The nested dict of parameters, each on its devices. template: of jax.ShapeDtypeStruct.
    Besides the model, memory holds one tensor at a time, the largest ones while there is room.
    """
    targets, arrays = named(template), {}
    for part, piece in _pieces(files, reads):
        target = targets[part.parameter]
        place = target.sharding or SingleDeviceSharding(jax.devices()[0])
        piece = piece.astype(target.dtype, copy=False)
        piece_place = place
        if isinstance(place, NamedSharding):
            piece_place = NamedSharding(place.mesh, P(*place.spec[len(part.index) :]))
        piece = jax.make_array_from_callback(piece.shape, piece_place, piece.__getitem__)
        if part.index:
            if part.parameter not in arrays:
                arrays[part.parameter] = jnp.zeros(target.shape, target.dtype, device=place)
            piece = _set_piece(arrays[part.parameter], piece, part.index)
        arrays[part.parameter] = piece.block_until_ready()
    return nested(arrays)


def _pieces(files, reads):
    """(Part, numpy array) of every parameter and layer, those of large tensors first."""
    for slot, name in sorted(reads, key=lambda read: -math.prod(read[0].shape())):
        yield from slot.split(files.read(name))


@functools.partial(jax.jit, donate_argnums=0)
def _set_piece(stack, piece, index):
    """The stack with a piece at `index` of its leading dims, which no mesh divides."""
    piece = jnp.expand_dims(piece, tuple(range(len(index))))
    start = (*index, *[0] * (stack.ndim - len(index)))
    return jax.lax.dynamic_update_slice(stack, piece, start)


def _fetch(params, part):
    """A Part of the parameters {name: array} as a numpy array, from all devices."""
    array = params[part.parameter]
    return np.asarray(array[part.index] if part.index else array)


def _verify(model, folder):
    """Read an export again. Raises RunError if a parameter is not the model's, bit for bit."""
    params = named(model.params)
    family, content = _read_family(folder / "config.json")
    files = TensorFiles(folder)
    _, reads = _check(folder, family, content, files, model.config.compute_dtype)
    for part, piece in _pieces(files, reads):
        # As bytes: not-a-number and signs of zero too.
        pair = piece, _fetch(params, part)
        one, two = (np.ascontiguousarray(array).view(np.uint8) for array in pair)
        if not np.array_equal(one, two):
            raise RunError(f"{part.parameter} is not in {folder} as it was written there.")
