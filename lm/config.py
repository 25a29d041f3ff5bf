"""The resolved configuration of a run: frozen dataclasses, one for each section of configs/base.py.

They have no defaults: the default of every key stands in configs/base.py alone.
"""

import dataclasses
import math
import typing

from lm.errors import UserError, did_you_mean, require, require_in
from lm.nn.config import TransformerConfig

ENDLESS = ("constant", "inverse_sqrt")  # schedules that know no optim.decay_steps


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    logits_chunk: int
    label_smoothing: float
    z_loss: float
    router_aux_loss: float
    router_sequence_loss: float
    router_z_loss: float
    mtp_loss: float

    def __post_init__(self):
        require(
            self.logits_chunk >= 0,
            f"objective.logits_chunk={self.logits_chunk} must be 0 (off) or more.",
        )
        require(
            0 <= self.label_smoothing < 1,
            f"objective.label_smoothing={self.label_smoothing} must be in [0, 1).",
        )
        losses = ("router_aux_loss", "router_sequence_loss", "router_z_loss", "mtp_loss")
        for key in ("z_loss", *losses):
            value = getattr(self, key)
            require(value >= 0, f"objective.{key}={value} must be 0 (off) or more.")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    path: str
    validation_path: str
    validation_fraction: float
    text_key: str
    tokenizer: str
    tokenizer_size: int
    batch_size: int
    sequence_length: int
    order: str
    separate_documents: bool
    prefetch: int
    cache: str

    def __post_init__(self):
        require_in("data.order", self.order, ("shuffled", "contiguous"))
        for key in ("batch_size", "sequence_length", "prefetch"):
            value = getattr(self, key)
            require(value >= 1, f"data.{key}={value} is not possible; it must be 1 or more.")
        require(
            0 < self.validation_fraction < 1 or self.validation_path,
            f"data.validation_fraction={self.validation_fraction} must be between 0 and 1, "
            "or data.validation_path must name what to evaluate on.",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    peak_lr: float
    warmup_steps: int
    schedule: str
    decay_steps: int
    final_lr_fraction: float
    cooldown_fraction: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decay: str
    clip_norm: float
    router_bias_step: float

    def __post_init__(self):
        require_in(
            "optim.schedule", self.schedule, ("constant", "cosine", "linear", "inverse_sqrt", "wsd")
        )
        require_in("optim.decay", self.decay, ("matrices", "kernels", "all"))
        at_least_0 = ("peak_lr", "warmup_steps", "final_lr_fraction", "eps", "weight_decay")
        for key in (*at_least_0, "clip_norm", "router_bias_step"):
            value = getattr(self, key)
            require(value >= 0, f"optim.{key}={value} is negative; it must be 0 or more.")
        for key in ("beta1", "beta2"):
            value = getattr(self, key)
            require(0 <= value < 1, f"optim.{key}={value} must be in [0, 1).")
        require(
            0 < self.cooldown_fraction <= 1,
            f"optim.cooldown_fraction={self.cooldown_fraction} must be in (0, 1].",
        )
        require(
            self.schedule in ENDLESS or self.warmup_steps < self.decay_steps,
            f"optim.warmup_steps={self.warmup_steps} leaves nothing of optim.decay_steps="
            f"{self.decay_steps}; make the warm-up shorter or train.num_steps larger.",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    num_steps: int
    seed: int
    accumulation_steps: int
    max_skipped_steps: int
    deterministic: bool

    def __post_init__(self):
        for key in ("num_steps", "accumulation_steps", "max_skipped_steps"):
            value = getattr(self, key)
            require(value >= 1, f"train.{key}={value} is not possible; it must be 1 or more.")
        require(0 <= self.seed < 2**31, f"train.seed={self.seed} must be in [0, 2**31).")


@dataclasses.dataclass(frozen=True)
class MetricsConfig:
    every_steps: int
    profile_start: int
    profile_stop: int
    tensorboard: bool
    wandb_project: str

    def __post_init__(self):
        require(self.every_steps >= 1, f"metrics.every_steps={self.every_steps} must be 1 or more.")
        require(
            0 <= self.profile_start <= self.profile_stop,
            f"metrics.profile_start={self.profile_start} must be 0 or more and not after "
            f"metrics.profile_stop={self.profile_stop}.",
        )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    every_steps: int

    def __post_init__(self):
        require(
            self.every_steps >= 0,
            f"evaluate.every_steps={self.every_steps} must be 0 (never) or more.",
        )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    every_steps: int
    keep_last: int
    keep_best: int
    keep_every_steps: int

    def __post_init__(self):
        for key in ("every_steps", "keep_best", "keep_every_steps"):
            value = getattr(self, key)
            require(value >= 0, f"checkpoint.{key}={value} must be 0 or more.")
        require(self.keep_last >= 1, f"checkpoint.keep_last={self.keep_last} must be 1 or more.")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. `dataclasses.asdict` of it is what config.json holds."""

    model: TransformerConfig
    objective: ObjectiveConfig
    data: DataConfig
    mesh: MeshConfig
    optim: OptimConfig
    train: TrainConfig
    metrics: MetricsConfig
    evaluate: EvaluateConfig
    checkpoint: CheckpointConfig

    def __post_init__(self):
        parts = self.train.accumulation_steps
        require(
            self.data.batch_size % parts == 0,
            f"data.batch_size={self.data.batch_size} does not divide into train.accumulation_steps="
            f"{parts} parts; the nearest that does is "
            f"{max(1, round(self.data.batch_size / parts)) * parts}.",
        )
        learned, length = self.model.position == "learned", self.data.sequence_length
        require(
            not learned or length <= self.model.max_positions,
            f"data.sequence_length={length} is longer than the position table, model.max_positions="
            f"{self.model.max_positions}; make the one shorter or the other larger.",
        )
        objective, model = self.objective, self.model
        require(
            not objective.mtp_loss or model.mtp_depth,
            f"objective.mtp_loss={objective.mtp_loss} is of a module that model.mtp_depth=0 leaves "
            "out; set that to 1, or the loss to 0.",
        )
        for key in ("router_aux_loss", "router_sequence_loss", "router_z_loss"):
            value = getattr(objective, key)
            require(
                not value or model.num_experts,
                f"objective.{key}={value} needs experts, and model.num_experts=0; set one of them.",
            )
        step = self.optim.router_bias_step
        require(
            not step or model.router_selection_bias,
            f"optim.router_bias_step={step} moves a bias that is not there; set "
            "model.router_selection_bias=True, or the step to 0.",
        )
        chunk = objective.logits_chunk
        require(
            not chunk or length % chunk == 0,
            f"objective.logits_chunk={chunk} does not divide data.sequence_length={length}; "
            f"{math.gcd(chunk, length)} does.",
        )
        require(
            not (learned and self.data.order == "contiguous" and self.data.separate_documents),
            "data.order='contiguous' counts positions through whole documents, which a table of "
            "learned positions ends before; set data.separate_documents=False or another position.",
        )


# Keys that may be None in a preset: `resolve` derives them from others.
DERIVED = (
    *("model.vocab_size", "model.num_kv_heads", "model.head_width", "model.d_ff"),
    *("model.max_positions", "model.rope_width", "model.value_width", "model.expert_d_ff"),
    *("model.attention_scale", "model.rope_attention_factor", "optim.decay_steps"),
)


def resolve(keys, tokenizer_size=None):
    """The Config of a mapping of sections to keys, with what is None derived from the rest.

    tokenizer_size: what model.vocab_size is where the config leaves it open.
    Raises UserError for an unknown or missing key, a wrong type or an impossible combination.
    """
    keys = _typed(Config, keys, "")
    model, data, optim, train = (keys[name] for name in ("model", "data", "optim", "train"))

    def derive(section, key, value):
        if section[key] is None:
            section[key] = value()

    derive(model, "vocab_size", lambda: tokenizer_size)
    derive(model, "num_kv_heads", lambda: model["num_heads"])
    derive(model, "head_width", lambda: _head_width(model))
    derive(model, "d_ff", lambda: 4 * model["d_model"])
    derive(model, "max_positions", lambda: data["sequence_length"])
    derive(model, "rope_width", lambda: model["head_width"])
    derive(model, "value_width", lambda: model["head_width"])
    derive(model, "expert_d_ff", lambda: model["d_ff"])
    derive(model, "attention_scale", lambda: max(1, model["head_width"]) ** -0.5)
    derive(model, "rope_attention_factor", lambda: _attention_factor(model))
    derive(optim, "decay_steps", lambda: train["num_steps"])
    config = _made(Config, keys, "")
    require(
        tokenizer_size is None or config.model.vocab_size >= tokenizer_size,
        f"model.vocab_size={config.model.vocab_size} is smaller than the tokenizer's "
        f"{tokenizer_size}; make it {tokenizer_size} or more, or data.tokenizer_size smaller.",
    )
    return config


def _attention_factor(model):
    """arXiv:2309.00071, equation 22: on cosines and sines, if it is not on the scores."""
    yarn = model["rope_scaling"] == "yarn" and model["rope_factor"] > 1
    on_both = yarn and not model["rope_mscale"]
    return 0.1 * math.log(model["rope_factor"]) + 1 if on_both else 1.0


def _head_width(model):
    width, heads = model["d_model"], model["num_heads"]
    if width < 1 or heads < 1:
        return 1  # TransformerConfig refuses the two
    require(
        width % heads == 0,
        f"model.num_heads={heads} does not divide model.d_model={width}; the nearest width that it "
        f"divides is {max(1, round(width / heads)) * heads}, or set model.head_width.",
    )
    return width // heads


def build(cls, keys):
    """A dataclass from a mapping with the same keys and the right types, nested ones too."""
    return _made(cls, _typed(cls, keys, ""), "")


def _typed(kind, value, path):
    """The value as `kind`, a dataclass as a dict. An int will do for a float; None if DERIVED."""
    if dataclasses.is_dataclass(kind):
        require(hasattr(value, "items"), f"{path or 'config'}={value!r} must be a section of keys.")
        fields, prefix = typing.get_type_hints(kind), path and path + "."
        for key in value:
            if key not in fields:
                hint = did_you_mean(key, fields)
                raise UserError(f"{prefix}{key} is not a key of the configuration.{hint}")
        missing = ", ".join(prefix + key for key in fields if key not in value)
        require(not missing, f"the configuration lacks {missing}; configs/base.py has every key.")
        return {key: _typed(fields[key], value[key], prefix + key) for key in fields}
    if kind is float and type(value) is int:
        return float(value)
    require(
        type(value) is kind or (value is None and path in DERIVED),
        f"{path}={value!r} has the type {type(value).__name__}; it must be {kind.__name__}.",
    )
    return value


def _made(kind, value, path):
    if not dataclasses.is_dataclass(kind):
        require(value is not None, f"{path} has no value; give it one of type {kind.__name__}.")
        return value
    fields, prefix = typing.get_type_hints(kind), path and path + "."
    return kind(**{key: _made(fields[key], value[key], prefix + key) for key in fields})


# What a resumed run may change: where and how it runs, how long, and what it reports; never what it
# computes. data.path and data.cache may move because the content itself is compared (`data_key` in
# config.json).
FREE = (
    *("mesh", "metrics", "evaluate", "checkpoint"),
    *("train.num_steps", "train.max_skipped_steps", "train.deterministic"),
    *("data.path", "data.validation_path", "data.prefetch", "data.cache"),
    *("model.scan_layers", "model.remat", "objective.logits_chunk"),
)


def differences(old, new):
    """Dotted keys whose difference changes what a run computes, each with (old, new). Both are
    nested mappings.

    With dropout or experts, train.accumulation_steps does (each part draws its own mask, and is
    balanced by itself); without, it is only another order of summation, as another mesh is.
    """
    free, model = {*FREE}, new["model"]
    by_part = [value for key, value in model.items() if key.endswith("dropout")]
    if not any((*by_part, model.get("num_experts"))):
        free.add("train.accumulation_steps")
    if new["optim"]["schedule"] in ENDLESS:
        free.add("optim.decay_steps")
    old, new = flatten(old), flatten(new)
    return {
        key: (old.get(key), new.get(key))
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and key not in free and key.split(".")[0] not in free
    }


def flatten(keys, path=""):
    """{"a": {"b": 1}} to {"a.b": 1}."""
    flat = {}
    for key, value in keys.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{path}{key}."))
        else:
            flat[path + key] = value
    return flat
