"""The files of a folder of the hub: JSON, and tensors in one or several safetensors files.

Nothing is unpickled, and the library safetensors checks every header before a tensor is read.
"""

import contextlib
import ctypes
import json
import math
import os
import shutil
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lm.errors import RunError, UserError, require

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
RETURNED_AFTER = 2**24  # bytes read
# The format's dtypes that a parameter can have.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_json(path):
    """The object that a JSON file holds. Raises UserError if there is none."""
    require(path.is_file(), f"there is no {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); restore it from a copy.") from None
    require(isinstance(content, dict), f"{path} holds no JSON object; restore it from a copy.")
    return content


class TensorFiles:
    """The tensors of a folder, read one at a time into memory that is theirs alone. names: of all
    tensors. Raises UserError for files that are not what they should be.
    """

    def __init__(self, folder):
        self._file_of, self._unreturned = {}, 0
        for path in _tensor_paths(folder):
            try:
                # Not mapped: pages of a map once read count as this process's memory.
                file = safe_open(path, framework="np", backend="pread")
            except SafetensorError as error:
                told = f"{path} is truncated or is no safetensors file ({error})"
                raise UserError(f"{told}; fetch it again.") from None
            for name in file.offset_keys():
                require(name not in self._file_of, f"{path} holds {name!r} a second time.")
                self._file_of[name] = file
        self.names = frozenset(self._file_of)

    def shape(self, name):
        return tuple(self._file_of[name].get_slice(name).get_shape())

    def dtype(self, name):
        """As the format calls it: "F32", "BF16"."""
        return self._file_of[name].get_slice(name).get_dtype()

    def read(self, name):
        """The tensor as a numpy array."""
        tensor = self._file_of[name].get_tensor(name)
        self._unreturned += tensor.nbytes
        if self._unreturned > RETURNED_AFTER:
            self._unreturned = 0
            # Between what stays, malloc would keep what was freed: give it back to the system.
            if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
                libc.malloc_trim(0)
        return tensor


def _tensor_paths(folder):
    """The safetensors files of a folder, checked to be there."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        remedy = f"{pickles[0]} is a pickle, which lm never reads; save" if pickles else "save"
        told = f"{folder} has neither {SINGLE} nor {INDEX}; {remedy} the model with transformers'"
        raise UserError(f"{told} save_pretrained.")
    places = read_json(folder / INDEX).get("weight_map")
    named = isinstance(places, dict) and all(isinstance(file, str) for file in places.values())
    require(named and places, f"{folder / INDEX} has no weight_map of tensors to files.")
    paths = []
    for file in sorted(set(places.values())):
        inside = Path(file).name == file
        require(inside, f"{folder / INDEX} names {file!r}, which is not a file of its folder.")
        require((folder / file).is_file(), f"{folder / INDEX} names {file!r}, which is missing.")
        paths.append(folder / file)
    return paths


def write_tensors(folder, kinds, fetch, max_shard_size):
    """Write tensors, a file of at most max_shard_size bytes (or of one tensor) in memory at a time.
    kinds: {tensor: (shape, dtype)}; fetch(tensor): its numpy array.
    """
    plan = split_state_dict_into_shards_factory(
        kinds,
        get_storage_size=lambda kind: math.prod(kind[0]) * jnp.dtype(kind[1]).itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    os.umask(mask := os.umask(0))
    for file, names in plan.filename_to_tensors.items():
        # save_file takes an array's memory as it lies, whatever its strides say.
        tensors = {name: np.ascontiguousarray(fetch(name)) for name in names}
        try:
            save_file(tensors, folder / file, {"format": "pt"})  # transformers asks for this word
            (folder / file).chmod(0o666 & ~mask)  # the library lets nobody else read it
        except SafetensorError as error:
            raise RunError(f"{folder / file} cannot be written: {error}.") from error
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / INDEX, index)


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replaced(folder):
    """A new folder that takes its name when all in it is written; on failure nothing is left."""
    empty = folder.is_dir() and not any(folder.iterdir())
    require(empty or not folder.exists(), f"{folder} is there already; name a folder that is not.")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
