"""The keys of a config.json and what they are in TransformerConfig, in both directions.

A row of a family's table has `names`, of config.json; `read(flat, model)`, which gives keys of
TransformerConfig from config.json with dotted names and from the keys of the rows above; and
`write(config)`, which gives content of config.json.
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from typing import Any

from lm.errors import require, require_in
from lm.nn.config import TransformerConfig

# config.json's names of activations; the first of several for one is written.
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
ACTIVATIONS |= {"relu": "relu", "silu": "silu", "swish": "silu"}
# What config.json of one family or another calls a key of TransformerConfig, if not the same.
NAMES = {
    "max_positions": "max_position_embeddings n_positions",
    "d_model": "hidden_size n_embd",
    "num_layers": "num_hidden_layers n_layer decoder_layers num_decoder_layers",
    "num_encoder_layers": "encoder_layers",
    "num_heads": "num_attention_heads n_head encoder_attention_heads decoder_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_width": "head_dim d_kv",
    "d_ff": "intermediate_size n_inner encoder_ffn_dim decoder_ffn_dim",
    "activation": "hidden_act hidden_activation activation_function classifier_activation "
    "dense_act_fn",
    "norm_eps": "rms_norm_eps layer_norm_eps layer_norm_epsilon",
    "token_types": "type_vocab_size",
    "position_buckets": "relative_attention_num_buckets",
    "position_max_distance": "relative_attention_max_distance",
    "start_token": "decoder_start_token_id",
    "tied_embedding": "tie_word_embeddings",
    "initializer_std": "initializer_range init_std",
    "residual_dropout": "resid_pdrop resid_dropout hidden_dropout_prob dropout dropout_rate",
    "embedding_dropout": "embd_pdrop embed_dropout hidden_dropout_prob dropout dropout_rate",
    "attention_dropout": "attn_pdrop attention_probs_dropout_prob dropout_rate",
    "activation_dropout": "mlp_dropout dropout_rate",
    "final_dropout": "dropout_rate",
    "qkv_bias": "attention_bias",
    "attention_output_bias": "attention_bias",
    "feedforward_bias": "mlp_bias classifier_bias",
    "kv_latent": "kv_lora_rank",
    "rope_width": "qk_rope_head_dim",
    "value_width": "v_head_dim",
    "num_experts": "num_local_experts n_routed_experts",
    "experts_per_token": "num_experts_per_tok",
    "expert_d_ff": "moe_intermediate_size",
    "shared_expert_d_ff": "shared_expert_intermediate_size",
    "experts_every": "decoder_sparse_step",
    "dense_layers": "first_k_dense_replace",
    "router_renormalise": "norm_topk_prob",
    "router_scale": "routed_scaling_factor",
    "router_jitter": "router_jitter_noise",
    "router_groups": "n_group",
    "router_groups_kept": "topk_group",
    "mtp_depth": "num_nextn_predict_layers",
}
FROM_0 = ("start_token", "dense_layers", "mtp_depth")  # whole numbers that may be 0
KINDS = {float: "a finite number", bool: "true or false", str: "a text", list: "a list"}
TYPES = typing.get_type_hints(TransformerConfig)


def checked(name, value, kind, least=1):
    """The value, if it is of the kind. least: of a whole number."""
    value = float(value) if kind is float and type(value) is int else value
    fits = type(value) is kind and (kind is not int or value >= least)
    fits = fits and (kind is not float or math.isfinite(value))
    wanted = f"a whole number, {least} or more" if kind is int else KINDS[kind]
    require(fits, f"{name}={value!r} must be {wanted}.")
    return value


def found(flat, name, default, kind=float, least=1):
    """What config.json has under this name, or the default; checked."""
    return checked(name, flat.get(name, default), kind, least)


@dataclasses.dataclass(frozen=True)
class Key:
    """A value of config.json, and the keys of TransformerConfig that have it.

    theirs: its names, between spaces; the first that is there is read, all are written. ours: the
    keys, between spaces. default: the value, in our terms, where config.json has none or null, or a
    function that gets it from the dict of our keys in the rows above. values: {theirs: ours}, if
    they are called differently. null: what null means, in our terms, if not the default. least: of
    whole numbers. to_ours, to_theirs: functions of the value and our other keys, if it is computed;
    kind: the type of theirs then.
    """

    theirs: str
    ours: str
    default: Any
    values: dict | None = None
    null: Any = None
    least: int = 1
    to_ours: Callable | None = None
    to_theirs: Callable | None = None
    kind: type | None = None

    @property
    def names(self):
        return self.theirs.split()

    def read(self, flat, model):
        ours, given = self.ours.split(), [n for n in self.names if flat.get(n) is not None]
        if given:
            value = checked(given[0], flat[given[0]], self.kind or TYPES[ours[0]], self.least)
            if self.values is not None:
                require_in(given[0], value, self.values)
                value = self.values[value]
            value = value if self.to_ours is None else self.to_ours(value, model)
        elif self.null is not None and any(name in flat for name in self.names):
            value = self.null
        else:
            value = self.default(model) if callable(self.default) else self.default
        return dict.fromkeys(ours, value)

    def write(self, config):
        """Their value, null if they have no such one."""
        value = getattr(config, self.ours.split()[0])
        if self.null is not None and value == self.null:
            value = None
        elif self.values is not None:
            value = next((theirs for theirs, ours in self.values.items() if ours == value), None)
        elif self.to_theirs is not None:
            value = self.to_theirs(value, dataclasses.asdict(config))
        return dict.fromkeys(self.names, value)


def keys(**defaults):
    """Rows of values that are in TransformerConfig as in config.json, {name there: default}."""
    rows = []
    for theirs, default in defaults.items():
        ours = [ours for ours, names in NAMES.items() if theirs in names.split()] or [theirs]
        values = ACTIVATIONS if ours == ["activation"] else None
        least = 0 if ours[0] in FROM_0 else 1
        rows.append(Key(theirs, " ".join(ours), default, values, least=least))
    return tuple(rows)


def shifted(theirs, ours, default, by, least=1):
    """The Key of a whole number that is ours less `by`, a number or the name of a key of ours."""

    def moved(value, model, sign=1):
        return value + sign * (by if isinstance(by, int) else model[by])

    back = functools.partial(moved, sign=-1)
    return Key(theirs, ours, default, least=least, to_ours=moved, to_theirs=back)


def scaled(theirs, ours, default, power):
    """The Key of whether ours is the width of the model to this power, or else 1."""

    def scale(given, model):
        return model["d_model"] ** power if given else 1.0

    return Key(theirs, ours, default, None, None, 1, scale, lambda x, model: x != 1, bool)


def altered(rows, **defaults):
    """The rows with other defaults, {first name in config.json: default}."""
    known = {row.names[0]: row for row in rows}
    for name, value in defaults.items():
        known[name] = dataclasses.replace(known[name], default=value)
    return tuple(known.values())


def without(rows, *names):
    """The rows but for those of these first names in config.json."""
    return tuple(row for row in rows if row.names[0] not in names)


# The members of config.json's rotary parameters, and which of them each of lm's scalings has.
MEMBERS = (
    Key("factor", "rope_factor", None),
    Key(
        "original_max_position_embeddings", "rope_original_positions", lambda x: x["max_positions"]
    ),
    Key("low_freq_factor", "rope_low_frequency", None),
    Key("high_freq_factor", "rope_high_frequency", None),
    Key("beta_fast", "rope_beta_fast", 32.0),
    Key("beta_slow", "rope_beta_slow", 1.0),
    Key("truncate", "rope_truncate", True),
)
SCALINGS: dict[str, tuple[Key, ...]] = {"none": (), "linear": MEMBERS[:1], "llama3": MEMBERS[:4]}
SCALINGS |= {"yarn": (*MEMBERS[:2], *MEMBERS[4:])}
# What else they may have: read by hand, or without a meaning.
FURTHER = ("rope_type", "type", "rope_theta", "attention_factor", "mscale", "mscale_all_dim")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: `rope_parameters`, and `rope_theta` with `rope_scaling`, as it was before
    transformers 5. Both are read and both written, after the row of the longest sequence.

    theta: where config.json has none. theta_local: that of local layers, if they have their own
    (Gemma 3); 0 if not. scaling: the parameters where config.json has none. scale_scores: whether
    mscale_all_dim scales the scores too (DeepSeek). old: what the two were called before
    transformers 5.
    """

    theta: float = 10_000.0
    theta_local: float = 0.0
    scaling: dict | None = None
    scale_scores: bool = False
    old: tuple[str, str] = ("rope_theta", "rope_local_base_freq")
    names = ("rope_parameters", "rope_scaling")

    def read(self, flat, model):
        given = {**_members(flat, "rope_parameters"), **_members(flat, "rope_scaling")}
        local, nested = {}, {}
        if self.theta_local:
            local, nested = (_members(given, f"{kind}_attention") for kind in ("sliding", "full"))
            starts = ("sliding_attention.", "full_attention.")
            given = {name: value for name, value in given.items() if not name.startswith(starts)}
        given = {**nested, **given} or self.scaling or {}
        kind = given.get("rope_type") or given.get("type") or "default"
        require_in("rope_type", kind, ("default", "linear", "llama3", "yarn"))
        scaling = "none" if kind == "default" else kind
        _refuse_others(given, [row.theirs for row in MEMBERS])
        theirs = local.get("rope_type", "default")
        told = f"rope_type={theirs!r} of sliding_attention must be 'default'."
        require(theirs == "default", told)
        _refuse_others(local, ())
        keys = {"rope_theta": _theta(given, flat, self.old[0], self.theta), "rope_scaling": scaling}
        positions = given.get("original_max_position_embeddings")
        if scaling == "yarn" and type(positions) is int and positions > 0:
            given = {"factor": model["max_positions"] / positions} | given
        for row in SCALINGS[scaling]:
            keys |= row.read(given, model)
            told = f"rotary positions of {scaling!r} need {row.theirs}."
            require(keys[row.ours] is not None, told)
        if self.theta_local:
            keys["rope_theta_local"] = _theta(local, flat, self.old[1], self.theta_local)
        if scaling == "yarn":
            keys |= self._mscale(given, keys["rope_factor"])
        return keys

    def _mscale(self, given, factor):
        """The factors of YaRN's cosines and sines, and of scores; arXiv:2309.00071, equation 22."""
        whole, length = found(given, "mscale_all_dim", 0.0), math.log(max(1.0, factor))
        natural, scale = 0.1 * length + 1, found(given, "mscale", 0.0)
        if scale and whole:
            natural = (0.1 * scale * length + 1) / (0.1 * whole * length + 1)
        keys = {"rope_attention_factor": found(given, "attention_factor", natural)}
        return keys | ({"rope_mscale": whole} if self.scale_scores else {})

    def write(self, config):
        scaling = config.rope_scaling
        given = {"rope_type": "default" if scaling == "none" else scaling}
        for row in SCALINGS[scaling]:
            given |= row.write(config)
        if config.rope_mscale:
            given |= dict.fromkeys(("mscale", "mscale_all_dim"), config.rope_mscale)
        natural = 1.0 if config.rope_mscale else 0.1 * math.log(max(1.0, config.rope_factor)) + 1
        if scaling == "yarn" and config.rope_attention_factor != natural:
            given["attention_factor"] = config.rope_attention_factor
        old = {self.old[0]: config.rope_theta, "rope_scaling": None if scaling == "none" else given}
        new = {**given, "rope_theta": config.rope_theta}
        if self.theta_local:
            old[self.old[1]] = config.rope_theta_local
            local = {"rope_type": "default", "rope_theta": config.rope_theta_local}
            new = {"full_attention": new, "sliding_attention": local}
        return {**old, "rope_parameters": new}


def _members(flat, name):
    """The members of an object of config.json, {} without it."""
    require(flat.get(name) is None, f"{name}={flat.get(name)!r} must be an object of config.json.")
    start, given = f"{name}.", {key: value for key, value in flat.items() if value is not None}
    return {key.removeprefix(start): x for key, x in given.items() if key.startswith(start)}


def _refuse_others(given, known):
    for name, value in given.items():
        neutral = name == "partial_rotary_factor" and value == 1
        told = f"lm has no rotary positions with {name}={value!r}, only without it."
        require(name in known or name in FURTHER or neutral, told)


def _theta(given, flat, name, default):
    other = default if flat.get(name) is None else flat[name]
    return checked(name, given.get("rope_theta", other), float)


def pattern_of(local):
    """model.attention_pattern of the layers that are local, as short as it can be."""
    names = ["local" if is_local else "full" for is_local in local]
    lengths = range(1, len(names) + 1)
    fits = (n for n in lengths if names == (names[:n] * len(names))[: len(names)])
    return ",".join(names[: next(fits)])


@dataclasses.dataclass(frozen=True)
class Windows:
    """Which layers see a window, and its width: `sliding_window`, `layer_types`.

    width: without the key, and None for no window; null is none too. local: whether a layer is
    local where config.json has no layer_types, a function of its number and of config.json with
    dotted names; None for a family in which all layers are alike and layer_types is no key. switch:
    the key without which there is no window. theirs: what the width is called, which may also be a
    list of those of all layers.
    """

    width: int | None
    local: Callable | None = None
    switch: str | None = None
    theirs: str = "sliding_window"

    @property
    def names(self):
        return [self.theirs, *["layer_types"] * bool(self.local), *filter(None, [self.switch])]

    def read(self, flat, model):
        width = flat.get(self.theirs, self.width)
        if self.switch and not checked(self.switch, flat.get(self.switch) or False, bool):
            width = None
        if width is None:
            return {"attention_pattern": "full", "window": 0}
        count = model["num_layers"]
        if isinstance(width, list):
            told = f"{self.theirs}={width!r}: lm has one width for all {count} layers."
            require(width and width == width[:1] * count, told)
            width = width[0]
        checked(self.theirs, width, int)
        kinds = flat.get("layer_types") if self.local else None
        if kinds is None:
            local = [self.local is None or self.local(number, flat) for number in range(count)]
        else:
            known = {"full_attention": False, "sliding_attention": True}
            listed = type(kinds) is list and len(kinds) == count
            told = f"layer_types={kinds!r} must list {' or '.join(known)} for {count} layers."
            require(listed and all(kind in [*known] for kind in kinds), told)
            local = [known[kind] for kind in kinds]
        return {"attention_pattern": pattern_of(local), "window": width if any(local) else 0}

    def write(self, config):
        names = ("full_attention", "sliding_attention")
        kinds = [names[layer.local] for layer in config.layers()]
        content = {self.theirs: config.window or None}
        content |= {"layer_types": kinds} if self.local else {}
        return content | ({self.switch: config.window > 0} if self.switch else {})
