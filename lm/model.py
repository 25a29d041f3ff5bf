"""A model to use: parameters, their Transformer, a tokenizer, and the devices they are on."""

import dataclasses
import functools
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lm.axes import check_sizes
from lm.config import build
from lm.data import tokenizer as tokenizers
from lm.errors import UserError, did_you_mean, require, require_path
from lm.mesh import AXES, BATCH, make_mesh, sharding, use_mesh
from lm.nn.config import TransformerConfig
from lm.nn.params import abstract_parameters, bind
from lm.nn.transformer import Transformer
from lm.paths import as_path


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
    """A Transformer with its parameters: `model(tokens)` gives logits, and of an encoder-decoder
    `model(source, target)`.

    module: a Transformer of descriptions; params: the nested dict of arrays that `bind` gives it;
    tokenizer: an lm.data.tokenizer.Tokenizer, or None; mesh: where params are, None on one device.
    """

    config: TransformerConfig
    module: Transformer
    params: dict
    tokenizer: Any = None
    mesh: Mesh | None = None

    def __call__(self, tokens, target=None, **rows):
        """Logits (B, T, V), float32 or wider, whole on every device.

        tokens: integers (B, T) in the vocabulary, an array or lists. target: of an encoder-decoder,
        what its decoder reads, integers (B, T), config.start_token first: position i predicts what
        follows target[i].
        rows, each (B, T), of tokens: segments: integers, of documents packed in a row; a token sees
        those of its own; 0 is padding. padding_mask, if there are no segments: booleans, true where
        a token is real, on either side of the padding. positions: integers, from 0 in each segment;
        without them each row counts from 0, padding too, but where config.position_pad_aware.
        Where the model has them: token_types; global_mask, booleans, of tokens that see, and are
        seen by, all; prefix, booleans, of those that a decoder reads in both directions. And
        target_segments, target_padding_mask and target_positions, of target.
        Raises UserError for tokens, positions or rows that the model does not have.
        """
        return self._run("logits", tokens, target, rows)

    def hidden_states(self, tokens, target=None, **rows):
        """The states after the last layer and norm, (B, T, D); arguments as for logits."""
        return self._run("hidden_states", tokens, target, rows)

    def pooled(self, tokens, **rows):
        """The pooler's output, (B, D), of a model with one."""
        return self._run("pooled", tokens, None, rows)

    def next_sentence(self, tokens, **rows):
        """Logits (B, 2), of which the first is that the second text follows the first (BERT)."""
        return self._run("next_sentence", tokens, None, rows)

    def _run(self, wanted, tokens, target, rows):
        config = self.config
        needed = {"pooled": "pooler", "next_sentence": "next_sentence"}.get(wanted)
        has = needed is None or getattr(config, needed)
        require(has, f"the model has no {needed}; take another.")
        both = config.stack == "encoder_decoder"
        reads = ("source", "target") if both else ("tokens",)
        told = f"a model of stack {config.stack!r} reads {' and '.join(reads)}; give"
        told += f" model({', '.join(reads)})."
        require(both == (target is not None), told)
        of_target = [name for name in rows if both and name.startswith("target_")]
        target_rows = {name: rows.pop(name) for name in of_target}
        tokens, rows = self._checked_rows("tokens", tokens, rows)
        if both:
            target, target_rows = self._checked_rows("target", target, target_rows)
            told = f"target of {len(target)} rows must have as many as the source of {len(tokens)}."
            require(len(tokens) == len(target), told)
        with use_mesh(self.mesh):
            placed = self._placed((tokens, rows, target, target_rows))
            return self._forward(self.params, *placed, wanted=wanted)

    def _checked_rows(self, what, tokens, rows):
        """(tokens int32 (B, T), {name, without target_: int32 (B, T)}), checked."""
        config, start = self.config, "target_" if what == "target" else ""
        rows = {name: value for name, value in rows.items() if value is not None}
        sizes = {"positions": config.num_positions, "segments": math.inf, "padding_mask": 2}
        sizes |= {"token_types": config.token_types, "global_mask": 2 * config.global_attention}
        sizes |= {"prefix": 2 * config.prefix_attention}
        sizes = {f"{start}{name}": size for name, size in sizes.items() if size}
        for name in rows:
            told = did_you_mean(name, sizes)
            require(name in sizes, f"the model takes no {name}.{told}")
        mask, segments = f"{start}padding_mask", f"{start}segments"
        both = {mask, segments} <= rows.keys()
        require(not both, f"{mask} and {segments}: give one; segments 0 is padding.")
        tokens = self._checked(what, tokens, config.vocab_size)
        length, most = tokens.shape[1], config.num_positions
        told = f"{length} tokens are more than the model's {most} positions; give fewer."
        require(f"{start}positions" in rows or length <= most, told)
        checked = {name: self._checked(name, value, sizes[name]) for name, value in rows.items()}
        for name, value in checked.items():
            told = f"{name} of shape {value.shape} must have the shape of {what}, {tokens.shape}."
            require(value.shape == tokens.shape, told)
        if mask in checked:
            checked[segments] = checked.pop(mask)
        return tokens, {name.removeprefix(start): value for name, value in checked.items()}

    def _checked(self, name, values, size):
        """The values as a numpy array int32, (B, T) and in [0, size)."""
        try:
            values = np.asarray(values)
            values = values.astype(np.int32) if values.dtype == bool else values
        except ValueError:
            told = f"{name} are rows of unequal length; pad them, and give padding_mask."
            raise UserError(told) from None
        told = f"{name} of shape {values.shape} and dtype {values.dtype} must be integers (B, T),"
        whole = values.ndim == 2 and values.size and np.issubdtype(values.dtype, np.integer)
        require(whole, f"{told} at least one; a single row is [row].")
        for value in (values.min(), values.max()):
            require(0 <= value < size, f"{name} hold {value}, which is not in [0, {size}).")
        return values.astype(np.int32)

    def _placed(self, arrays):
        """A tree of arrays (B, T) on the devices."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, arrays)
        shards = math.prod(self.mesh.shape[axis] for axis in BATCH)
        batch = jax.tree.leaves(arrays)[0].shape[0]
        told = f"tokens of {batch} rows do not divide over the {shards} data shards of mesh"
        told += f" {dict(self.mesh.shape)}; give {-(-batch // shards) * shards}, or load with less."
        require(batch % shards == 0, told)
        # A single row is not divided, not even into one part: positions may be of one row for all.
        place = sharding(self.mesh, "tokens") if batch > 1 else NamedSharding(self.mesh, P())
        return jax.tree.map(lambda x: jax.device_put(x, place), arrays)

    def astype(self, dtype):
        """The model with parameters of another dtype, but for what is float32 in every model."""
        config = dataclasses.replace(self.config, param_dtype=dtype)
        module, template = skeleton(config, self.mesh)
        params = jax.tree.map(lambda old, new: old.astype(new.dtype), self.params, template)
        return dataclasses.replace(self, config=config, module=module, params=params)

    @functools.cached_property
    def _forward(self):
        def forward(params, tokens, rows, target, target_rows, wanted):
            model = bind(self.module, params)
            states_BTD = model.states(tokens, target, target_rows, **rows)
            if wanted == "hidden_states":
                return states_BTD
            if wanted == "logits":
                return model.logits(states_BTD)
            pooled_B1D = model.pooler(states_BTD)
            found = pooled_B1D if wanted == "pooled" else model.next_sentence(pooled_B1D)
            return found[:, 0]

        place = None if self.mesh is None else NamedSharding(self.mesh, P())
        return jax.jit(forward, out_shardings=place, static_argnames="wanted")


def skeleton(config, mesh=None):
    """(Transformer of descriptions, nested dict of jax.ShapeDtypeStruct with shardings).

    Nothing is allocated. Raises UserError if the mesh does not divide the model.
    """
    if mesh is not None:
        check_sizes(mesh.shape, config, batch_size=0)
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

    folder = as_path(path, "the model's folder")
    require(folder.is_dir(), f"{path} is not a folder; name a run's workdir or a model's folder.")
    content = read_json(folder / "config.json")
    mesh = _mesh(mesh)
    if isinstance(content.get("model"), dict):
        return _load_run(folder, content["model"], step, mesh, compute_dtype)
    told = f"{folder / 'config.json'} is neither a run's, which has a section 'model', nor a"
    theirs = "model_type" in content or "architectures" in content
    require(theirs, f"{told} Hugging Face model's, which has model_type.")
    require(step is None, f"step={step}: {folder} is no run and has no checkpoints; leave it out.")
    require_path("a model in Hugging Face's format, path", os.fspath(folder))
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
