"""The table of a family, and what it means in both directions.

A family is one kind of model in Hugging Face's format: a config.json and named tensors. Its table
says which key of config.json is which key of TransformerConfig (lm/hub/keys.py), and which tensor
holds which parameters (lm/hub/tensors.py). Nothing here knows a family by its name.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from lm.config import build, flatten
from lm.errors import UserError, require
from lm.hub.keys import TYPES
from lm.hub.tensors import Tensor
from lm.nn.config import TransformerConfig

# What a model of the hub is unless its table says otherwise: values, or functions of other keys.
# What is not here either is 0, False or "".
STANDARD: dict[str, Any] = {
    "d_ff": lambda model: 4 * model["d_model"],
    "num_kv_heads": lambda model: model["num_heads"],
    "head_width": lambda model: model["d_model"] // model["num_heads"],
    "attention_scale": lambda model: model["head_width"] ** -0.5,
    "rope_width": lambda model: model["head_width"],
    "value_width": lambda model: model["head_width"],
    "expert_d_ff": lambda model: model["d_ff"],
    "attention_backend": "plain",  # another may be another function
}
STANDARD |= {"stack": "decoder", "norm_placement": "pre", "head": "linear", "head_bias": "none"}
STANDARD |= {"final_norm": True, "query_key_norm": "none", "attention_pattern": "full"}
STANDARD |= {"embedding_scale": 1.0, "logit_scale": 1.0, "position_buckets": 32}
STANDARD |= {"position_max_distance": 128, "rope_theta": 10_000.0, "rope_scaling": "none"}
STANDARD |= {"rope_factor": 1.0, "rope_low_frequency": 1.0, "rope_high_frequency": 4.0}
STANDARD |= {"rope_beta_fast": 32.0, "rope_beta_slow": 1.0, "rope_truncate": True}
STANDARD |= {"rope_attention_factor": 1.0, "experts_per_token": 1, "experts_every": 1}
STANDARD |= {"router_groups": 1, "router_groups_kept": 1, "router_score": "softmax"}
STANDARD |= {"router_group_score": "max", "router_scale": 1.0, "initializer": "normal"}
STANDARD |= {"initializer_std": 0.02, "scan_layers": True, "remat": "none"}
STANDARD |= {"feedforward_pieces": 1}
# Keys on which no logit of a trained model depends: an export may lose them.
FREE = r"\w+_dropout|router_jitter|initializer|initializer_std|scaled_residual_init"
FREE += r"|scan_layers|remat|offload|feedforward_pieces"
# What transformers asks of families without a width of heads.
DIVIDE = "num_heads={num_heads} must divide d_model={d_model}"
HEADS_DIVIDE = {DIVIDE: lambda config: config.d_model % config.num_heads == 0}


@dataclasses.dataclass(frozen=True)
class Family:
    """The table of a family.

    model_type: what config.json calls it. architectures: {what config.json calls it with one head
    or another: its keys of TransformerConfig}, the most complete first, which is meant where
    config.json names none. keys: rows of lm.hub.keys. always: keys of TransformerConfig that all
    its models share, over STANDARD; each a value or a function of the other keys. required: keys of
    config.json that change what is computed, with the only value that lm has, which is what their
    absence means too. limits: what transformers asks besides, a sentence with {keys} of
    TransformerConfig: its test. tensors: rows of lm.hub.tensors, as the hub's files are. fused:
    other rows for some of the same parameters, which are read where a folder has them. copies:
    tensors that may repeat others, {name: name of the other}. renamed: {what the names of old files
    hold: what they hold now}. written: what transformers asks for and lm does not, {key of
    config.json: the value, or a function of a config}. prefix: what begins the names of tensors in
    some folders and not in others, as it does not where a model has no head. ignored: tensors that
    are no parameters, a regular expression for names with the prefix.
    """

    model_type: str
    architectures: dict[str, dict[str, Any]]
    keys: tuple[Any, ...]
    always: dict[str, Any]
    tensors: tuple[Tensor, ...]
    required: dict[str, Any] = field(default_factory=dict)
    limits: Mapping[str, Callable[[TransformerConfig], bool]] = field(default_factory=dict)
    fused: tuple[Tensor, ...] = ()
    copies: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    written: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = "model."
    ignored: str = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"

    def rows(self, names=()):
        """The rows of Tensor that fit a folder with tensors of these names."""
        rows = list(self.tensors)
        for other in self.fused:
            before, after = other.name.split("{layer}")
            if any(name.startswith(before) and name.endswith(after) for name in names):
                rows = [row for row in rows if not row.parts.keys() & other.parts.keys()] + [other]
        return rows


def read_keys(family, content):
    """The keys of TransformerConfig that the content of a config.json gives: all but the dtypes.
    Raises UserError, naming the key of config.json, for what is wrong or lm does not have.
    """
    flat = flatten(content)
    method = flat.get("quantization_config.quant_method")
    told = f"its weights are quantized (quantization_config.quant_method={method!r})"
    remedy = "load the model with transformers in bfloat16 (dequantized) and save_pretrained."
    given = any(key.startswith("quantization_config") for key in flat if flat[key] is not None)
    require(not given, f"{told}, which lm does not read; {remedy}")
    for name, only in family.required.items():
        value = flat.get(name)
        remedy = f"out {name}" if only is None else f" {name}={json.dumps(only)}"
        told = f"lm has no {family.model_type} with {name}={value!r}, only with{remedy}."
        require(value is None or value == only, told)
    (name,) = flat.get("architectures") or [*family.architectures][:1]
    model = dict(family.architectures[name])
    for row in family.keys:
        for ours, value in row.read(flat, model).items():
            told = f"{row.names[0]} makes model.{ours}={value!r}, another key makes it"
            both = f"{model.get(ours)!r}; lm has one for both."
            require(model.get(ours, value) == value, f"{told} {both}")
            model[ours] = value
    for ours, value in (*family.always.items(), *STANDARD.items()):
        if ours not in model:
            model[ours] = value(model) if callable(value) else value
    return {ours: kind() for ours, kind in TYPES.items()} | model


def write_keys(family, config):
    """The content of config.json for a TransformerConfig, as far as the family can express it."""
    values, options = dataclasses.asdict(config).items(), family.architectures
    fitting = [name for name, keys in options.items() if keys.items() <= values]
    content: dict[str, Any] = {"architectures": [*fitting, *options][:1]}
    content["model_type"] = family.model_type
    for row in family.keys:
        content |= row.write(config)
    more = family.written.items()
    return content | {name: x(config) if callable(x) else x for name, x in more}


def obstacles(family, config):
    """Why the family cannot express a TransformerConfig, as a list of phrases; empty if it can."""
    dtypes = {"param_dtype": config.param_dtype, "compute_dtype": config.compute_dtype}
    try:
        back = build(TransformerConfig, {**read_keys(family, write_keys(family, config)), **dtypes})
    except UserError as error:
        return [str(error).rstrip(".")]
    # The keys on which no logit of a model of this config depends.
    layers = config.layers()
    names = {
        FREE: True,
        r"rope_(?!width)\w+": config.position != "rope",
        "position_(buckets|max_distance)": config.position != "buckets",
        r"(router|experts?|shared_expert)_\w+": not config.num_experts,
        "window|rope_theta_local": not any(layer.local for layer in layers),
        "d_ff": all(layer.experts for layer in layers),
        "attention_pattern|dense_layers|experts_every": back.layers() == layers,
    }
    idle = "|".join(name for name, holds in names.items() if holds)
    return [
        f"model.{ours}={value!r} would become {getattr(back, ours)!r}"
        for ours, value in dataclasses.asdict(config).items()
        if value != getattr(back, ours) and not re.fullmatch(idle, ours)
    ] + broken_limits(family, config)


def broken_limits(family, config):
    """What transformers would refuse in the config, as a list of phrases."""
    values = dataclasses.asdict(config)
    return [text.format(**values) for text, holds in family.limits.items() if not holds(config)]
