"""The table of a family, and what it means in both directions.

A family is one kind of model in Hugging Face's format: a config.json and named tensors. Its table
says which key of config.json is which key of TransformerConfig (lm/hub/keys.py), and which tensor
holds which parameters (lm/hub/tensors.py). Nothing here knows a family by its name.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from lm.config import build, flatten
from lm.errors import UserError, require
from lm.hub.tensors import Tensor
from lm.nn.config import TransformerConfig

# What a model of the hub is unless its table says otherwise: values, or functions of other keys.
STANDARD: dict[str, Any] = {
    **dict.fromkeys(("embedding_scale", "logit_scale"), 1.0),
    **dict.fromkeys(("logit_cap", "attention_cap", "expert_capacity_factor"), 0.0),
    **dict.fromkeys(("num_encoder_layers", "start_token", "position_offset", "token_types"), 0),
    **dict.fromkeys(("window", "kv_latent", "query_latent", "mtp_depth"), 0),
    **dict.fromkeys(("num_experts", "expert_capacity"), 0),
    **dict.fromkeys(("pooler", "next_sentence", "detector", "position_pad_aware"), False),
    **dict.fromkeys(("norm_offset", "skip_first_norm", "embedding_norm"), False),
    **dict.fromkeys(("parallel_block", "gated", "prefix_attention", "global_attention"), False),
    **dict.fromkeys(("qkv_bias", "attention_output_bias", "feedforward_bias"), False),
    "attention_sinks": False,
    "d_ff": lambda model: 4 * model["d_model"],
    "num_kv_heads": lambda model: model["num_heads"],
    "head_width": lambda model: model["d_model"] // model["num_heads"],
    "attention_scale": lambda model: model["head_width"] ** -0.5,
    "rope_width": lambda model: model["head_width"],
    "value_width": lambda model: model["head_width"],
}
STANDARD |= {"stack": "decoder", "norm_placement": "pre", "head": "linear", "head_bias": "none"}
STANDARD |= {"final_norm": True, "query_key_norm": "none", "attention_pattern": "full"}
STANDARD |= {"attention_backend": "plain"}  # another may be another function
# Keys of what only some models have, as they are in the others.
BUCKETS = {"position_buckets": 32, "position_max_distance": 128}
ROPE: dict[str, Any] = {"rope_theta": 10_000.0, "rope_theta_local": 0.0, "rope_scaling": "none"}
ROPE |= {"rope_factor": 1.0, "rope_original_positions": 0, "rope_low_frequency": 1.0}
ROPE |= {"rope_high_frequency": 4.0, "rope_beta_fast": 32.0, "rope_beta_slow": 1.0}
ROPE |= {"rope_truncate": True, "rope_attention_factor": 1.0, "rope_mscale": 0.0}
EXPERTS: dict[str, Any] = {
    **dict.fromkeys(("experts_per_token", "experts_every"), 1),
    **dict.fromkeys(("router_groups", "router_groups_kept"), 1),
    **dict.fromkeys(("shared_expert_d_ff", "dense_layers"), 0),
    **dict.fromkeys(("shared_expert_gate", "router_bias", "router_selection_bias"), False),
}
EXPERTS |= {"router_score": "softmax", "router_group_score": "max", "router_scale": 1.0}
EXPERTS |= {"expert_d_ff": lambda model: model["d_ff"], "router_renormalise": False}
# Keys on which no logit of a trained model depends: an export may lose them.
FREE: dict[str, Any] = {
    **dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0),
    **dict.fromkeys(("activation_dropout", "final_dropout", "router_jitter"), 0.0),
}
FREE |= {"initializer": "normal", "initializer_std": 0.02, "scaled_residual_init": False}
FREE |= {"scan_layers": True, "remat": "none", "offload": "", "feedforward_pieces": 1}
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
    for source in (family.always, STANDARD, ROPE, BUCKETS, EXPERTS, FREE):
        for ours, value in source.items():
            if ours not in model:
                model[ours] = value(model) if callable(value) else value
    return model


def write_keys(family, config):
    """The content of config.json for a TransformerConfig, as far as the family can express it."""
    values, options = dataclasses.asdict(config).items(), family.architectures
    fitting = [name for name, keys in options.items() if keys.items() <= values]
    content: dict[str, Any] = {"architectures": [*fitting, *options][:1]}
    content["model_type"] = family.model_type
    for row in family.keys:
        for name, value in row.write(config).items():
            *parents, last = name.split(".")
            node = content
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
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
    layers, idle = config.layers(), {*FREE}
    idle |= {*ROPE} if config.position != "rope" else set()
    idle |= {*BUCKETS} if config.position != "buckets" else set()
    idle |= {*EXPERTS} if not config.num_experts else set()
    if not any(layer.local for layer in layers):
        idle |= {"window", "rope_theta_local"}
    if all(layer.experts for layer in layers):
        idle.add("d_ff")
    if back.layers() == layers:
        idle |= {"attention_pattern", "dense_layers", "experts_every"}
    return [
        f"model.{ours}={value!r} would become {getattr(back, ours)!r}"
        for ours, value in dataclasses.asdict(config).items()
        if value != getattr(back, ours) and ours not in idle
    ] + broken_limits(family, config)


def broken_limits(family, config):
    """What transformers would refuse in the config, as a list of phrases."""
    values = dataclasses.asdict(config)
    return [text.format(**values) for text, holds in family.limits.items() if not holds(config)]
