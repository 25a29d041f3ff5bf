"""A model to use: parameters, their Transformer, a tokenizer, and the devices they are on."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.config import build
from lm.data import tokenizer as tokenizers
from lm.errors import UserError, did_you_mean, require
from lm.mesh import AXES, BATCH, check_mesh, make_mesh, sharding, use_mesh
from lm.nn.config import TransformerConfig
from lm.nn.params import abstract_parameters, bind
from lm.nn.transformer import Transformer


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A Transformer with its parameters: `model(tokens)` gives logits.

    module: a Transformer of descriptions; params: the nested dict of arrays that `bind` gives it;
    tokenizer: an lm.data.tokenizer.Tokenizer, or None; mesh: where params are, None on one device.
    """

    config: TransformerConfig
    module: Transformer
    params: dict
    tokenizer: Any = None
    mesh: Mesh | None = None

    def __call__(self, tokens, *, positions=None, segments=None, padding_mask=None):
        """Logits (B, T, V), float32 or wider, whole on every device.

        tokens: integers (B, T) in the vocabulary, an array or lists. segments: integers (B, T), of
        documents packed in a row; a token sees those of its own; 0 is padding. padding_mask, if
        there are no segments: booleans (B, T), true where a token is real, on either side of the
        padding. positions: integers (B, T), from 0 in each segment; without them each row counts
        from 0, padding too.
        Raises UserError for tokens or positions that the model does not have.
        """
        if padding_mask is not None:
            require(segments is None, "padding_mask and segments: give one; segments 0 is padding.")
            segments = self._checked("padding_mask", padding_mask, 2)
        tokens = self._checked("tokens", tokens, self.config.vocab_size)
        rows = self.config.max_positions if self.config.position == "learned" else math.inf
        require(
            positions is not None or tokens.shape[1] <= rows,
            f"{tokens.shape[1]} tokens are more than the model's {rows} positions; give fewer.",
        )
        arrays = [tokens]
        for name, value, size in (("positions", positions, rows), ("segments", segments, math.inf)):
            value = None if value is None else self._checked(name, value, size)
            require(
                value is None or value.shape == tokens.shape,
                f"{name} of shape {getattr(value, 'shape', ())} must have the shape of tokens, "
                f"{tokens.shape}.",
            )
            arrays.append(value)
        with use_mesh(self.mesh):
            return self._forward(self.params, *self._placed(arrays))

    def _checked(self, name, values, size):
        """The values as a numpy array int32, (B, T) and in [0, size)."""
        try:
            values = np.asarray(values)
            values = values.astype(np.int32) if values.dtype == bool else values
        except ValueError:
            told = f"{name} are rows of unequal length; pad them, and give padding_mask."
            raise UserError(told) from None
        require(
            values.ndim == 2 and values.size and np.issubdtype(values.dtype, np.integer),
            f"{name} of shape {values.shape} and dtype {values.dtype} must be integers (B, T), "
            "at least one; a single row is [row].",
        )
        for value in (values.min(), values.max()):
            require(0 <= value < size, f"{name} hold {value}, which is not in [0, {size}).")
        return values.astype(np.int32)

    def _placed(self, arrays):
        """Arrays (B, T), or None, on the devices."""
        if self.mesh is None:
            return [None if x is None else jnp.asarray(x) for x in arrays]
        shards = math.prod(self.mesh.shape[axis] for axis in BATCH)
        batch = arrays[0].shape[0]
        require(
            batch % shards == 0,
            f"tokens of {batch} rows do not divide over the {shards} data shards of mesh "
            f"{dict(self.mesh.shape)}; give {-(-batch // shards) * shards}, or load with less.",
        )
        # A single row is not divided, not even into one part: positions may be of one row for all.
        place = sharding(self.mesh, "tokens") if batch > 1 else NamedSharding(self.mesh, P())
        return [None if x is None else jax.device_put(x, place) for x in arrays]

    def astype(self, dtype):
        """The model with parameters of another dtype, but for what is float32 in every model."""
        config = dataclasses.replace(self.config, param_dtype=dtype)
        module, template = skeleton(config, self.mesh)
        params = jax.tree.map(lambda old, new: old.astype(new.dtype), self.params, template)
        return dataclasses.replace(self, config=config, module=module, params=params)

    @functools.cached_property
    def _forward(self):
        def forward(params, tokens, positions, segments):
            return bind(self.module, params)(tokens, positions=positions, segments=segments)

        place = None if self.mesh is None else NamedSharding(self.mesh, P())
        return jax.jit(forward, out_shardings=place)


def skeleton(config, mesh=None):
    """(Transformer of descriptions, nested dict of jax.ShapeDtypeStruct with shardings).

    Nothing is allocated. Raises UserError if the mesh does not divide the model.
    """
    if mesh is not None:
        check_mesh(mesh, config, math.prod(mesh.shape[axis] for axis in BATCH))
    module = Transformer(config)
    return module, abstract_parameters(module, mesh)


def load(path, step=None, mesh=None, compute_dtype=None):
    """The LanguageModel in a folder: a run's workdir, or a model in Hugging Face's format.

    step: the checkpoint of a run; None is the newest good one. mesh: devices on each axis, as in
    {"tensor": 2}; None is one device. compute_dtype: None is a run's own, and float32 for others.
    Raises UserError for a folder that holds no model, RunError for a run without a good checkpoint.
    """
    from lm.hub.convert import import_model
    from lm.hub.files import read_json

    folder = Path(path).expanduser()
    require(folder.is_dir(), f"{path} is not a folder; name a run's workdir or a model's folder.")
    content = read_json(folder / "config.json")
    mesh = _mesh(mesh)
    if isinstance(content.get("model"), dict):
        return _load_run(folder, content["model"], step, mesh, compute_dtype)
    require(
        "model_type" in content or "architectures" in content,
        f"{folder / 'config.json'} is neither a run's, which has a section 'model', nor a "
        "Hugging Face model's, which has model_type.",
    )
    require(step is None, f"step={step}: {folder} is no run and has no checkpoints; leave it out.")
    return import_model(folder, mesh, compute_dtype or "float32")


def _load_run(workdir, keys, step, mesh, compute_dtype):
    from lm.checkpoint import Checkpoints

    if compute_dtype is not None:
        keys = {**keys, "compute_dtype": compute_dtype}
    try:
        config = build(TransformerConfig, keys)
    except UserError as error:
        raise UserError(f"{workdir / 'config.json'}, section model: {error}") from None
    module, template = skeleton(config, mesh)
    tokenizer = tokenizers.load(workdir)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        restored = checkpoints.restore({"params": template}, step, partial=True)
    require(restored, f"{workdir} has no checkpoint yet; train it for longer.")
    return LanguageModel(config, module, restored[1]["params"], tokenizer, mesh)


def _mesh(sizes):
    """The jax.sharding.Mesh of {axis: devices} on as many devices as it takes; None of None."""
    if sizes is None:
        return None
    for axis in sizes:
        require(axis in AXES, f"mesh has no axis {axis!r}.{did_you_mean(axis, AXES)}")
    sizes = {"data": 1, **sizes}
    devices = jax.devices()
    if min(sizes.values()) >= 1:
        devices = devices[: math.prod(sizes.values())]
    return make_mesh(**sizes, devices=devices)
