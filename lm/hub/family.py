"""What a table of the hub is made of, and what it means in both directions.

A family is one kind of model in Hugging Face's format: a config.json and named tensors. Its table
says which key of config.json is which key of TransformerConfig, and which tensor holds which
parameters. Nothing here knows a family by its name.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Callable
from typing import Any

import numpy as np

from lm.config import flatten
from lm.errors import require, require_in
from lm.nn.config import TransformerConfig

# What a model of the hub is unless its table says otherwise.
STANDARD = {
    "norm_placement": "pre",
    "final_norm": True,
    "embedding_norm": False,
    "parallel_block": False,
    "attention_backend": "plain",  # another may be another function
}
# Keys on which no logit of a trained model depends: an export may lose them.
FREE = {
    "rope_theta": 10_000.0,  # where a table does not name it, nothing is rotated
    "initializer": "normal",
    "initializer_std": 0.02,
    "scaled_residual_init": False,
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "scan_layers": True,
    "remat": "none",
}
# Keys of config.json that no family has.
REFUSED = {"quantization_config": None}

# config.json's names of activations; the first of several for one is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

KINDS = {
    int: "a whole number, 1 or more",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
}
TYPES = typing.get_type_hints(TransformerConfig)


@dataclasses.dataclass(frozen=True)
class Key:
    """A value of config.json, and the keys of TransformerConfig that have it.

    theirs: its names, "a.b" for a member of an object; the first that is there is read, all are
    written. default: the value, in our terms, where config.json has none or null, or a function
    that gets it from the dict of our keys in the rows above. values: {theirs: ours}, if they are
    called differently.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    default: Any
    values: dict | None = None

    def their_names(self):
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    def our_names(self):
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def read(self, flat, model):
        """Our value. flat: config.json with dotted names; model: our keys so far."""
        given = [(name, flat[name]) for name in self.their_names() if flat.get(name) is not None]
        if not given:
            return self.default(model) if callable(self.default) else self.default
        (name, value), kind = given[0], TYPES[self.our_names()[0]]
        value = float(value) if kind is float and type(value) is int else value
        fits = type(value) is kind and (kind is not int or value >= 1)
        fits = fits and (kind is not float or math.isfinite(value))
        require(fits, f"{name}={value!r} must be {KINDS[kind]}.")
        if self.values is None:
            return value
        require_in(name, value, self.values)
        return self.values[value]

    def write(self, value):
        """Their value, or None if they have no such one."""
        if self.values is None:
            return value
        return next((theirs for theirs, ours in self.values.items() if ours == value), None)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the hub, and the parameters it holds; there is one for each {layer}.

    parts: {parameter: layout}. A layout lists the tensor's dims, between commas, each as those dims
    of the parameter that it runs over: a tensor (N*H, D) holds query_DNH as "NH,D". A tensor whose
    parameters the config does not have is not there.
    joined: the dim along which the parts follow one another.
    """

    name: str
    parts: dict[str, str]
    joined: int = 0


@dataclasses.dataclass(frozen=True)
class Family:
    """The table of a family.

    model_type, architecture: what config.json calls it.
    always: keys of TransformerConfig that all its models share, over STANDARD; each a value or a
    function of the other keys.
    required: keys of config.json that change what is computed, with the only value that lm has,
    which is what their absence means too.
    limits: what transformers asks besides, a sentence with {keys} of TransformerConfig: its test.
    prefix: what begins the names of tensors in some folders and not in others.
    ignored: tensors that are no parameters, a regular expression for names with the prefix.
    """

    model_type: str
    architecture: str
    keys: tuple[Key, ...]
    always: dict[str, Any]
    required: dict[str, Any]
    limits: dict[str, Callable[[TransformerConfig], bool]]
    tensors: tuple[Tensor, ...]
    prefix: str
    ignored: str


def read_keys(family, content):
    """The keys of TransformerConfig that the content of a config.json gives: all but the dtypes.

    Raises UserError, naming the key of config.json, for what is wrong or lm does not have.
    """
    flat, required = flatten(content), {**REFUSED, **family.required}
    named = {name for key in family.keys for name in key.their_names()}
    objects = {name.split(".")[0] for name in required}
    for name, value in flat.items():
        # A member that no table names may mean anything.
        known = name in named or name.split(".")[0] not in objects
        only = required.get(name)
        remedy = f"out {name}" if only is None else f" {name}={json.dumps(only)}"
        require(
            known or value is None or value == only,
            f"lm has no {family.model_type} with {name}={value!r}, only with{remedy}.",
        )
    model = {}
    for key in family.keys:
        model.update(dict.fromkeys(key.our_names(), key.read(flat, model)))
    fixed = {**STANDARD, **family.always}
    fixed = {ours: fix(model) if callable(fix) else fix for ours, fix in fixed.items()}
    return {**FREE, **fixed, **model}


def write_keys(family, config):
    """The content of config.json for a TransformerConfig, as far as the family can express it."""
    flat = {}
    for key in family.keys:
        value = key.write(getattr(config, key.our_names()[0]))
        flat.update(dict.fromkeys(key.their_names(), value))
    content: dict[str, Any] = {"architectures": [family.architecture]}
    content["model_type"] = family.model_type
    for name, value in flat.items():
        *parents, last = name.split(".")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return content


def obstacles(family, config):
    """Why the family cannot express a TransformerConfig, as a list of phrases; empty if it can."""
    back = read_keys(family, write_keys(family, config))
    named = {ours for key in family.keys for ours in key.our_names()}
    return [
        f"model.{ours}={getattr(config, ours)!r} would become {value!r}"
        for ours, value in back.items()
        if value != getattr(config, ours) and (ours in named or ours not in FREE)
    ] + broken_limits(family, config)


def broken_limits(family, config):
    """What transformers would refuse in the config, as a list of phrases."""
    values = dataclasses.asdict(config)
    return [text.format(**values) for text, holds in family.limits.items() if not holds(config)]


@dataclasses.dataclass(frozen=True)
class Part:
    """One layer of a parameter, or a whole one, as it lies in a tensor.

    index: of the leading dims, (layer,) or (). dims: the letters of the others; shape: their sizes.
    """

    parameter: str
    index: tuple[int, ...]
    dims: str
    shape: tuple[int, ...]
    layout: str

    def tensor_shape(self):
        sizes = dict(zip(self.dims, self.shape, strict=True))
        groups = self.layout.split(",")
        return tuple(math.prod(sizes[letter] for letter in group) for group in groups)

    def to_tensor(self, array):
        """The array, a view if possible, in the shape of tensor_shape."""
        order = [self.dims.index(letter) for letter in self.layout.replace(",", "")]
        return array.transpose(order).reshape(self.tensor_shape())

    def from_tensor(self, tensor):
        """The array, a view, in self.shape."""
        order = self.layout.replace(",", "")
        sizes = dict(zip(self.dims, self.shape, strict=True))
        apart = tensor.reshape([sizes[letter] for letter in order])
        return apart.transpose([order.index(letter) for letter in self.dims])


@dataclasses.dataclass(frozen=True)
class Slot:
    """A tensor of one model, with its parts in the order in which they follow along `joined`."""

    name: str
    parts: tuple[Part, ...]
    joined: int

    def shape(self):
        shapes = [part.tensor_shape() for part in self.parts]
        joined = list(shapes[0])
        joined[self.joined] = sum(shape[self.joined] for shape in shapes)
        return tuple(joined)

    def join(self, arrays):
        """The whole tensor from the arrays of its parts; of a single one a view, if possible."""
        tensors = [part.to_tensor(array) for part, array in zip(self.parts, arrays, strict=True)]
        return tensors[0] if len(tensors) == 1 else np.concatenate(tensors, self.joined)

    def split(self, tensor):
        """[(part, its array)] of the whole tensor, as views."""
        pieces, start = [], 0
        for part in self.parts:
            stop = start + part.tensor_shape()[self.joined]
            place = [slice(None)] * tensor.ndim
            place[self.joined] = slice(start, stop)
            pieces.append((part, part.from_tensor(tensor[tuple(place)])))
            start = stop
        return pieces


def slots(family, shapes):
    """The tensors of a model. shapes: {parameter: shape}, layers stacked on a leading dim."""
    found = []
    for row in family.tensors:
        if not all(parameter in shapes for parameter in row.parts):
            continue
        stacked = "{layer}" in row.name
        layers = shapes[next(iter(row.parts))][0] if stacked else 1
        for layer in range(layers):
            index = (layer,) if stacked else ()
            parts = tuple(
                Part(
                    parameter,
                    index,
                    parameter.rsplit("_", 1)[1],
                    shapes[parameter][len(index) :],
                    layout,
                )
                for parameter, layout in row.parts.items()
            )
            found.append(Slot(row.name.format(layer=layer), parts, row.joined))
    covered = {part.parameter for slot in found for part in slot.parts}
    assert covered == {*shapes}, (family.model_type, covered ^ {*shapes})
    return found
