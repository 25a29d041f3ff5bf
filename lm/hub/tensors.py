"""The tensors of a folder of the hub and the parameters they hold, in both directions."""

import collections
import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the hub, and the parameters it holds; there is one for each {layer}, {expert}.

    parts: {parameter: layout}. A layout lists the tensor's dims, between commas, each as those dims
    of the parameter that it runs over: a tensor (N*H, D) holds query_DNH as "NH,D". A small letter
    is a dim whose rotated pairs are neighbours in the tensor, and lie half its width apart in ours;
    1 is a dim of size 1. A tensor whose parameters the config does not have is not there.
    gated: 1: it is of models with a gate; 0: of those without; None: of both.
    joined: the dim along which the parts follow one another. merged: a dim that is then made one
    with the next: parts "N,U,C" and "N,W,C" joined along 1 and merged from 0 are a tensor
    (N*(U+W), C), which has both in each head.
    """

    name: str
    parts: dict[str, str]
    joined: int = 0
    merged: int | None = None
    gated: int | None = None


OPTIONS = ("joined", "merged", "gated")


def rows(start, ours, table):
    """The rows of a table. A line has a name, after `start`, and parameters, after `ours`: a norm,
    or kernels whose outputs follow one another in a Linear, which has a weight (out, in), heads
    being one dim, and a bias. A name with .weight or .bias is that tensor alone, and one whose
    parameters have their =layout is the tensor's own. OPTIONS: with values, as Tensor says.
    """
    found = []
    for line in filter(None, table.splitlines()):
        name, *words = line.split()
        pairs = dict(word.partition("=")[::2] for word in words)
        options = {key: int(pairs.pop(key)) for key in OPTIONS if key in pairs}
        parts = {ours + key: layout or _layout(key) for key, layout in pairs.items()}
        if name.endswith((".weight", ".bias")) or any(pairs.values()):
            found.append(Tensor(start + name, parts, **options))
            continue
        biases = {_bias(key, layout): layout.split(",")[0] for key, layout in parts.items()}
        if words[0].endswith("norm"):
            parts, biases = ({f"{ours}{words[0]}/{part}_D": "D"} for part in ("scale", "bias"))
        found += [Tensor(f"{start}{name}.weight", parts), Tensor(f"{start}{name}.bias", biases)]
    return tuple(found)


def _layout(parameter):
    """Of a table or a vector as it lies in ours, of a kernel (out, in); experts have one each."""
    dims = parameter.rsplit("_", 1)[-1]
    if len(dims) == 1 or "table_" in parameter:
        return ",".join(dims)
    dims = dims.removeprefix("E")
    cut = -1 if dims.endswith("D") else 1
    return f"{dims[cut:]},{dims[:cut]}"


def _bias(kernel, layout):
    """The bias of the outputs of a kernel."""
    name = f"{kernel.rsplit('_', 1)[0]}_bias_{layout.split(',')[0]}"
    return name.replace("/kernel_bias", "/bias")


@dataclasses.dataclass(frozen=True)
class Part:
    """One layer (or expert) of a parameter, or a whole one, as it lies in a tensor. index: of the
    leading dims, (layer,), (layer, expert) or (). dims: the letters of the others; shape: their
    sizes.
    """

    parameter: str
    index: tuple[int, ...]
    dims: str
    shape: tuple[int, ...]
    layout: str

    def tensor_shape(self):
        """The shape before dims are merged."""
        sizes = {"1": 1, **dict(zip(self.dims, self.shape, strict=True))}
        groups = self.layout.upper().split(",")
        return tuple(math.prod(sizes[letter] for letter in group) for group in groups)

    def _dims(self):
        """({dim: size} in our order, [dim] in the tensor's); a rotated dim is two of them."""
        sizes, theirs = {}, []
        for letter, size in zip(self.dims, self.shape, strict=True):
            rotated = letter.lower() in self.layout
            sizes |= {letter + "half": 2, letter: size // 2} if rotated else {letter: size}
        for letter in self.layout.replace(",", "").replace("1", ""):
            theirs += [letter.upper(), letter.upper() + "half"] if letter.islower() else [letter]
        return sizes, theirs

    def to_tensor(self, array):
        """The array, a view if possible, in the shape of tensor_shape."""
        sizes, theirs = self._dims()
        ours = list(sizes)
        apart = array.reshape(list(sizes.values()))
        return apart.transpose([ours.index(dim) for dim in theirs]).reshape(self.tensor_shape())

    def from_tensor(self, tensor):
        """The array, a view if nothing is rotated, in self.shape."""
        sizes, theirs = self._dims()
        apart = tensor.reshape([sizes[dim] for dim in theirs])
        return apart.transpose([theirs.index(dim) for dim in sizes]).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Slot:
    """A tensor of one model, with its parts in the order in which they follow along `joined`."""

    name: str
    parts: tuple[Part, ...]
    joined: int
    merged: int | None

    def shape(self):
        shape, merged = self._unmerged(), self.merged
        if merged is None:
            return shape
        return (*shape[:merged], shape[merged] * shape[merged + 1], *shape[merged + 2 :])

    def _unmerged(self):
        shapes = [part.tensor_shape() for part in self.parts]
        joined = list(shapes[0])
        joined[self.joined] = sum(shape[self.joined] for shape in shapes)
        return tuple(joined)

    def join(self, arrays):
        """The whole tensor from the arrays of its parts; of a single one a view, if possible."""
        tensors = [part.to_tensor(array) for part, array in zip(self.parts, arrays, strict=True)]
        whole = tensors[0] if len(tensors) == 1 else np.concatenate(tensors, self.joined)
        return whole.reshape(self.shape())

    def split(self, tensor):
        """[(part, its array)] of the whole tensor, as views where nothing is rotated."""
        stops = np.cumsum([part.tensor_shape()[self.joined] for part in self.parts])[:-1]
        pieces = np.split(tensor.reshape(self._unmerged()), stops, self.joined)
        return [(part, part.from_tensor(x)) for part, x in zip(self.parts, pieces, strict=True)]


def slots(rows, shapes, config):
    """The tensors of a model. shapes: {parameter: shape}, layers stacked on a leading dim."""
    numbers = {"": _numbers(config)}
    if config.num_encoder_layers:
        numbers["encoder/"] = _numbers(config.encoder())
    after = [config.num_layers]  # the layer of multi-token prediction is the one after the last
    found = []
    for row in rows:
        if row.gated not in (None, config.gated):
            continue
        stack, layers, rest = next(iter(row.parts)).partition("layers/")
        of_layer = layers and stack in numbers
        here = numbers[stack][rest.split("/")[0]] if of_layer else after
        found += _slots(row, "", here, shapes)
        found += _slots(row, "mtp/", after, shapes) if of_layer else []
    covered = {part.parameter for slot in found for part in slot.parts}
    assert covered == {*shapes}, covered ^ {*shapes}
    return found


def _numbers(config):
    """{part of a layer: the numbers of the layers that have it}"""
    layers = [*enumerate(config.layers())]
    numbers: dict[str, Any] = collections.defaultdict(lambda: range(config.num_layers))
    numbers["feedforward"] = [number for number, layer in layers if not layer.experts]
    numbers["experts"] = [number for number, layer in layers if layer.experts]
    numbers["attention_norm"] = [number for number, layer in layers if layer.first_norm]
    return numbers


def _slots(row, start, numbers, shapes):
    """The tensors of a row for parameters that begin with `start`, of the layers' numbers."""
    parts = {start + parameter: layout for parameter, layout in row.parts.items()}
    if not all(parameter in shapes for parameter in parts):
        return []
    first = next(iter(parts))
    stacked = "layers/" in first
    experts = range(shapes[first][1]) if "{expert}" in row.name else [None]
    found = []
    for place, number in enumerate(numbers):
        for expert in experts:
            index = ((place,) if stacked else ()) + (() if expert is None else (expert,))
            pieces = []
            for parameter, layout in parts.items():
                shape = shapes[parameter][len(index) :]
                dims = parameter.rsplit("_", 1)[1][-len(shape) :] if shape else ""
                pieces.append(Part(parameter, index, dims, shape, layout))
            name = row.name.format(layer=number, expert=expert)
            found.append(Slot(name, tuple(pieces), row.joined, row.merged))
    return found
