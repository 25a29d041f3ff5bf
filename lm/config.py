"""The resolved configuration of a run: frozen dataclasses, one for each section of configs/base.py.

They have no defaults: the default of every key stands in configs/base.py alone.
"""

import dataclasses
import math
import typing
from typing import Annotated

from lm.errors import SET, Section, UserError, did_you_mean, require, require_in, require_together
from lm.nn.config import TransformerConfig

# What a batch is like, its objectives, and the stacks that can: the next token; tokens of the text
# itself; a target from a source; whole texts.
FAMILIES = {
    "next": (("causal",), ("decoder",)),
    "same": (("masked", "replaced"), ("encoder",)),
    "pair": (("span_corruption", "denoising", "prefix", "ul2"), ("encoder_decoder", "decoder")),
    "text": (("contrastive",), ("encoder",)),
}
KINDS = {name: family for family, (names, _) in FAMILIES.items() for name in names}
NOISES = ("infilling", "permutation", "deletion", "rotation", "masking")
SPECIAL_TOKENS = ("end", "mask", "sentinels")
ENDLESS = ("constant", "inverse_sqrt")  # schedules that know no optim.decay_steps


# What needs what in whichever run; as lm.errors.require_together says.
NEEDS = (
    ("objective.mtp_loss", SET, "model.mtp_depth", SET),
    ("objective.router_aux_loss", SET, "model.num_experts", SET),
    ("objective.router_sequence_loss", SET, "model.num_experts", SET),
    ("objective.router_z_loss", SET, "model.num_experts", SET),
    ("optim.router_bias_step", SET, "model.router_selection_bias", (True,)),
    ("objective.next_sentence", SET, "model.next_sentence", (True,)),
    ("train.spike_threshold", SET, "checkpoint.every_steps", SET),
)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Section):
    kind: str
    mask_rate: Annotated[float, "in (0, 1)"]
    mask_token_share: Annotated[float, "0 or more"]
    random_token_share: Annotated[float, "0 or more"]
    static_masks: Annotated[int, "0 or more"]
    whole_words: bool
    next_sentence: bool
    noise_rate: Annotated[float, "in (0, 1)"]
    mean_span: Annotated[float, "1 or more"]
    noise: str
    pooling: Annotated[str, ("first", "mean", "pooler")]
    temperature: Annotated[float, "more than 0"]
    detection_loss: Annotated[float, "0 or more"]
    logits_chunk: Annotated[int, "0 (off) or more"]
    label_smoothing: Annotated[float, "in [0, 1)"]
    z_loss: Annotated[float, "0 (off) or more"]
    router_aux_loss: Annotated[float, "0 (off) or more"]
    router_sequence_loss: Annotated[float, "0 (off) or more"]
    router_z_loss: Annotated[float, "0 (off) or more"]
    mtp_loss: Annotated[float, "0 (off) or more"]

    def check(self):
        for name in self.kinds():
            require_in("a name in objective.kind", name, KINDS)
        for name in self.noises():
            require_in("a name in objective.noise", name, NOISES)
        alike = [", ".join(names) for names, _ in FAMILIES.values()]
        told = f"objective.kind={self.kind!r} mixes objectives whose batches are not alike; mix"
        families = {KINDS[name] for name in self.kinds()}
        require(len(families) == 1, f"{told} those of one line: {'; '.join(alike)}.")
        masked, other = self.mask_token_share, self.random_token_share
        told = f"objective.mask_token_share={masked} and random_token_share={other} must be 1"
        require(masked + other <= 1, f"{told} or less together.")

    def kinds(self):
        """{name: its part of the mixture}, as it stands in `kind`; alone it is 1."""
        parts = [part.partition("=") for part in self.kind.split(",")]
        shares = {}
        for name, _, share in parts:
            try:
                shares[name.strip()] = float(share or 1)
            except ValueError:
                shares[name.strip()] = 0.0
        told = f"objective.kind={self.kind!r} must be a name, or different names with numbers, as"
        fits = len(shares) == len(parts) and all(0 < share < math.inf for share in shares.values())
        require(fits, f"{told} in 'span_corruption=3,prefix=1'.")
        return shares

    @property
    def family(self):
        """What its batches are like: one of FAMILIES."""
        return KINDS[next(iter(self.kinds()))]

    @property
    def passes(self):
        """How often a step reads its tokens."""
        return 2 if self.family == "text" or "replaced" in self.kinds() else 1

    def noises(self):
        """The names in `noise`."""
        return tuple(name.strip() for name in self.noise.split(","))


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    path: str
    weights: str
    validation_path: str
    validation_fraction: float
    text_key: str
    tokenizer: str
    tokenizer_size: int
    special_tokens: Annotated[str, ("", *SPECIAL_TOKENS)]
    batch_size: Annotated[int, "1 or more"]
    sequence_length: Annotated[int, "1 or more"]
    target_length: Annotated[int, "0 (what is needed) or more"]
    order: Annotated[str, ("shuffled", "contiguous")]
    separate_documents: bool
    prefetch: Annotated[int, "1 or more"]
    cache: str

    def check(self):
        told = f"data.validation_fraction={self.validation_fraction} must be between 0 and 1, or"
        told += " data.validation_path must name what to evaluate on."
        require(0 < self.validation_fraction < 1 or self.validation_path, told)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    data: int
    fsdp: int
    tensor: int
    dcn_data: int
    dcn_fsdp: int
    dcn_tensor: int


@dataclasses.dataclass(frozen=True)
class OptimConfig(Section):
    peak_lr: Annotated[float, "0 or more"]
    warmup_steps: Annotated[int, "0 or more"]
    schedule: Annotated[str, ("constant", "cosine", "linear", "inverse_sqrt", "wsd")]
    decay_steps: int
    final_lr_fraction: Annotated[float, "0 or more"]
    cooldown_fraction: Annotated[float, "in (0, 1]"]
    beta1: Annotated[float, "in [0, 1)"]
    beta2: Annotated[float, "in [0, 1)"]
    eps: Annotated[float, "0 or more"]
    weight_decay: Annotated[float, "0 or more"]
    decay: Annotated[str, ("matrices", "kernels", "all")]
    shard_moments: bool
    offload_moments: bool
    clip_norm: Annotated[float, "0 or more"]
    router_bias_step: Annotated[float, "0 or more"]

    def check(self):
        told = f"optim.warmup_steps={self.warmup_steps} leaves nothing of optim.decay_steps="
        told += f"{self.decay_steps}; make the warm-up shorter or train.num_steps larger."
        require(self.schedule in ENDLESS or self.warmup_steps < self.decay_steps, told)


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    num_steps: Annotated[int, "1 or more"]
    seed: Annotated[int, "in [0, 2**31)"]
    accumulation_steps: Annotated[int, "1 or more"]
    max_skipped_steps: Annotated[int, "1 or more"]
    spike_threshold: Annotated[float, "0 (never) or more"]
    spike_window: Annotated[int, "from 2 to 128"]
    spike_skip: Annotated[int, "1 or more"]
    deterministic: bool


@dataclasses.dataclass(frozen=True)
class MetricsConfig(Section):
    every_steps: Annotated[int, "1 or more"]
    profile_start: int
    profile_stop: int
    tensorboard: bool
    wandb_project: str

    def check(self):
        told = f"metrics.profile_start={self.profile_start} must be 0 or more and not after"
        told += f" metrics.profile_stop={self.profile_stop}."
        require(0 <= self.profile_start <= self.profile_stop, told)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Section):
    every_steps: Annotated[int, "0 (never) or more"]


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
    every_steps: Annotated[int, "0 or more"]
    keep_last: Annotated[int, "1 or more"]
    keep_best: Annotated[int, "0 or more"]
    keep_every_steps: Annotated[int, "0 or more"]
    host_gb: Annotated[float, "0 or more"]


@dataclasses.dataclass(frozen=True)
class ClusterConfig(Section):
    timeout_seconds: Annotated[int, "1 or more"]
    watchdog_seconds: Annotated[int, "0 (never) or more"]


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
    cluster: ClusterConfig

    def __post_init__(self):
        kind, stack = self.objective.kind, self.model.stack
        fitting = ", ".join(", ".join(names) for names, its in FAMILIES.values() if stack in its)
        told = f"objective.kind={kind!r} is not for model.stack={stack!r}; for that there are"
        require(stack in FAMILIES[self.objective.family][1], f"{told} {fitting}.")
        require_together(flatten(dataclasses.asdict(self)), [*NEEDS, *self._needs_of_objective()])
        self._check_together()

    def _needs_of_objective(self):
        """Rows as NEEDS of what this objective asks for."""
        family = self.objective.family
        if family != "next":
            yield "objective.kind", SET, "objective.mtp_loss", (0,)
            yield "objective.kind", SET, "data.separate_documents", (False,)
            yield "objective.kind", SET, "data.order", ("shuffled",)
        if family == "pair" and self.model.stack == "decoder":
            yield "objective.kind", SET, "model.prefix_attention", (True,)
        if "replaced" in self.objective.kinds():
            yield "objective.kind", SET, "model.detector", (True,)
        if family == "text":
            yield "objective.pooling", ("pooler",), "model.pooler", (True,)
        else:
            yield "objective.kind", SET, "model.head", ("linear", "transform")

    def _check_together(self):
        objective, model, data = self.objective, self.model, self.data
        size, parts = data.batch_size, self.train.accumulation_steps
        told = f"data.batch_size={size} does not divide into train.accumulation_steps={parts}"
        nearest = max(1, round(size / parts)) * parts
        require(size % parts == 0, f"{told} parts; the nearest that does is {nearest}.")
        told = f"data.sequence_length={data.sequence_length} or target_length={data.target_length}"
        told += f" is longer than the position table, model.max_positions={model.max_positions}"
        told += f" less position_offset={model.position_offset}; make the one shorter or the other"
        longest = max(data.sequence_length, data.target_length)
        require(longest <= model.num_positions, f"{told} larger.")
        pairs = objective.family == "same" and model.token_types >= 2
        told = "objective.next_sentence needs objective.kind='masked' and model.token_types=2."
        require(pairs or not objective.next_sentence, told)
        told = "objective.kind='contrastive' tells a text from others by two passes with different"
        told += " dropout; set model.residual_dropout=0.1."
        require(objective.family != "text" or model.has_dropout, told)
        contiguous = data.order == "contiguous" and data.separate_documents
        told = "data.order='contiguous' counts positions through whole documents, which a table"
        told += " ends before; set data.separate_documents=False or another position."
        require(not (contiguous and model.position == "learned"), told)


def _head_width(model):
    width, heads = model["d_model"], model["num_heads"]
    if width < 1 or heads < 1:
        return 1  # TransformerConfig refuses the two
    told = f"model.num_heads={heads} does not divide model.d_model={width}; the nearest width it"
    nearest = max(1, round(width / heads)) * heads
    require(width % heads == 0, f"{told} divides is {nearest}, or set model.head_width.")
    return width // heads


def _rope_attention_factor(model):
    """On cosines and sines (arXiv:2309.00071, equation 22), if it is not on the scores."""
    yarn = model["rope_scaling"] == "yarn" and model["rope_factor"] > 1
    return 0.1 * math.log(model["rope_factor"]) + 1 if yarn and not model["rope_mscale"] else 1.0


# Keys that may be None in a preset, and what `resolve` makes of the others then, in this order.
DERIVED = {
    "model.vocab_size": lambda keys: None,  # the tokenizer's
    "model.num_kv_heads": lambda keys: keys["model"]["num_heads"],
    "model.head_width": lambda keys: _head_width(keys["model"]),
    "model.d_ff": lambda keys: 4 * keys["model"]["d_model"],
    "model.max_positions": lambda keys: (
        keys["model"]["position_offset"]
        + max(keys["data"]["sequence_length"], keys["data"]["target_length"])
    ),
    "model.num_encoder_layers": lambda keys: (
        keys["model"]["num_layers"] * (keys["model"]["stack"] == "encoder_decoder")
    ),
    "model.rope_attention_factor": lambda keys: _rope_attention_factor(keys["model"]),
    "model.rope_width": lambda keys: keys["model"]["head_width"],
    "model.value_width": lambda keys: keys["model"]["head_width"],
    "model.expert_d_ff": lambda keys: keys["model"]["d_ff"],
    "model.attention_scale": lambda keys: max(1, keys["model"]["head_width"]) ** -0.5,
    "optim.decay_steps": lambda keys: keys["train"]["num_steps"],
}


# Keys that runs of before lack in their config.json, with what those did.
ADDED = {TransformerConfig: {"feedforward_pieces": 1}}


def resolve(keys, tokenizer_size=None):
    """The Config of a mapping of sections to keys, with what is None derived from the rest.

    tokenizer_size: what model.vocab_size is where the config leaves it open.
    Raises UserError for an unknown or missing key, a wrong type or an impossible combination.
    """
    keys = build(Config, keys, resolved=False)
    for path, value in {**DERIVED, "model.vocab_size": lambda keys: tokenizer_size}.items():
        section, key = path.split(".")
        if keys[section][key] is None:
            keys[section][key] = value(keys)
    config = build(Config, keys)
    size, least = config.model.vocab_size, tokenizer_size or 0
    told = f"model.vocab_size={size} is smaller than the tokenizer's {least}; make it {least}"
    require(size >= least, f"{told} or more, or data.tokenizer_size smaller.")
    return config


def build(kind, value, path="", resolved=True):
    """A dataclass from a mapping with the same keys and the right types, nested ones too; a dict if
    it is not resolved, in which what is DERIVED may be None. An int will do for a float.
    """
    if dataclasses.is_dataclass(kind):
        require(hasattr(value, "items"), f"{path or 'config'}={value!r} must be a section of keys.")
        fields, prefix = typing.get_type_hints(kind), path and path + "."
        value = {**ADDED.get(kind, {}), **value}
        for key in value:
            if key not in fields:
                hint = did_you_mean(key, fields)
                raise UserError(f"{prefix}{key} is not a key of the configuration.{hint}")
        missing = ", ".join(prefix + key for key in fields if key not in value)
        require(not missing, f"the configuration lacks {missing}; configs/base.py has every key.")
        made = {key: build(fields[key], value[key], prefix + key, resolved) for key in fields}
        return kind(**made) if resolved else made
    if kind is float and type(value) is int:
        return float(value)
    if value is None and path in DERIVED:
        require(not resolved, f"{path} has no value; give it one of type {kind.__name__}.")
        return None
    told = f"{path}={value!r} has the type {type(value).__name__}; it must be {kind.__name__}."
    require(type(value) is kind, told)
    return value


# What a resumed run may change: where and how it runs, how long, and what it reports; never what it
# computes. data.path and data.cache may move because the content itself is compared (`data_key` in
# config.json).
FREE = (
    *("mesh", "metrics", "evaluate", "checkpoint", "cluster"),
    *("train.num_steps", "train.max_skipped_steps", "train.deterministic"),
    *("train.spike_threshold", "train.spike_window", "train.spike_skip"),
    *("data.path", "data.validation_path", "data.prefetch", "data.cache"),
    *("model.scan_layers", "model.remat", "model.offload", "model.feedforward_pieces"),
    "objective.logits_chunk",
    *("optim.shard_moments", "optim.offload_moments"),
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
