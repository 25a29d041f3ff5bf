"""The configuration of a Transformer: section `model` of configs/base.py, once resolved."""

import dataclasses
import math

from lm.errors import SET, require_all, require_in, require_ranges, require_together

DROPOUTS = ("embedding", "attention", "residual", "activation", "final")
DTYPES = ("float32", "bfloat16", "float16", "float64")
OPTIONS = {
    "stack": ("decoder", "encoder", "encoder_decoder"),
    "position": (
        *("learned", "sinusoid", "sinusoid_halves", "rope", "relative", "buckets", "alibi"),
        "none",
    ),
    "head": ("linear", "transform", "none"),
    "head_bias": ("none", "learned", "fixed"),
    "rope_scaling": ("none", "linear", "llama3", "yarn"),
    "norm": ("layer_norm", "rms_norm"),
    "norm_placement": ("pre", "post", "sandwich", "output"),
    "query_key_norm": ("none", "head", "full"),
    "activation": ("gelu", "gelu_tanh", "relu", "silu", "clamped_silu"),
    "router_score": ("softmax", "sigmoid"),
    "router_group_score": ("max", "top2"),
    "initializer": ("normal", "truncated_normal", "fan_in", "glorot", "t5"),
    "param_dtype": DTYPES,
    "compute_dtype": DTYPES,
}
REMATS = ("none", "dots", "full")
# What a layer computes that can be kept, or kept on the host, for its backward pass, by name.
TENSORS = ("layer_input", "query", "key", "value", "attention", "gate", "up")
NUMBERS = {
    "1 or more": "vocab_size d_model num_layers num_heads num_kv_heads head_width d_ff "
    "max_positions rope_width value_width expert_d_ff experts_every router_groups "
    "router_groups_kept position_max_distance feedforward_pieces",
    "4 or more": "position_buckets",
    "0 or more": "window kv_latent query_latent num_experts dense_layers num_encoder_layers "
    "position_offset token_types start_token shared_expert_d_ff expert_capacity "
    "expert_capacity_factor rope_original_positions rope_mscale attention_cap logit_cap "
    "router_jitter",
    "0 or 1": "mtp_depth",
    "more than 0": "rope_factor norm_eps initializer_std attention_scale embedding_scale "
    "logit_scale router_scale rope_attention_factor rope_beta_slow rope_low_frequency",
    "more than 1": "rope_theta",
    "0, or more than 1": "rope_theta_local",
    "in [0, 1)": " ".join(f"{name}_dropout" for name in DROPOUTS),
}
LOOK_BACK = ("relative", "alibi")
# What needs what: keys, their values, another key, its values; as lm.errors.require_together says.
NEEDS = (
    ("parallel_block", SET, "norm_placement", ("pre",)),
    ("activation", ("clamped_silu",), "gated", (True,)),
    # Neither has a gate to be clamped.
    ("activation", ("clamped_silu",), "head", ("linear", "none")),
    ("activation", ("clamped_silu",), "detector", (False,)),
    ("kv_latent parallel_block router_selection_bias", SET, "stack", ("decoder", "encoder")),
    ("num_encoder_layers", SET, "stack", ("encoder_decoder",)),
    ("stack", ("encoder_decoder",), "num_encoder_layers", SET),
    ("mtp_depth prefix_attention", SET, "stack", ("decoder",)),
    ("position", LOOK_BACK, "stack", ("decoder",)),
    ("position", LOOK_BACK, "prefix_attention", (False,)),
    ("pooler next_sentence detector token_types global_attention", SET, "stack", ("encoder",)),
    ("skip_first_norm", SET, "stack", ("encoder",)),
    ("next_sentence", SET, "pooler", (True,)),
    ("head", ("none",), "stack", ("encoder",)),
    ("head", ("none",), "tied_embedding", (True,)),
    ("head", ("none",), "head_bias", ("none",)),
    ("query_latent", SET, "kv_latent", SET),
    ("kv_latent", SET, "position", ("rope", "none")),
    ("kv_latent", SET, "query_key_norm", ("none",)),
    ("kv_latent", SET, "window", (0,)),
    ("qkv_bias global_attention", SET, "kv_latent", (0,)),
    ("position_offset position_pad_aware", SET, "position", ("learned",)),
    ("rope_theta_local rope_mscale", SET, "position", ("rope",)),
    ("rope_scaling", ("linear", "llama3", "yarn"), "position", ("rope",)),
    ("rope_scaling", ("llama3", "yarn"), "rope_original_positions", SET),
    ("shared_expert_d_ff dense_layers router_selection_bias", SET, "num_experts", SET),
    ("expert_capacity", SET, "expert_capacity_factor", (0,)),
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Every switch of the model; configs/base.py says what they mean and holds the defaults."""

    stack: str
    vocab_size: int
    d_model: int
    num_layers: int
    num_encoder_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    d_ff: int
    position: str
    max_positions: int
    position_offset: int
    position_pad_aware: bool
    position_buckets: int
    position_max_distance: int
    token_types: int
    rope_theta: float
    rope_theta_local: float
    rope_scaling: str
    rope_factor: float
    rope_original_positions: int
    rope_low_frequency: float
    rope_high_frequency: float
    rope_beta_fast: float
    rope_beta_slow: float
    rope_truncate: bool
    rope_attention_factor: float
    rope_mscale: float
    norm: str
    norm_eps: float
    norm_bias: bool
    norm_offset: bool
    norm_placement: str
    skip_first_norm: bool
    final_norm: bool
    embedding_norm: bool
    parallel_block: bool
    activation: str
    gated: bool
    qkv_bias: bool
    attention_output_bias: bool
    feedforward_bias: bool
    tied_embedding: bool
    head: str
    head_bias: str
    pooler: bool
    next_sentence: bool
    detector: bool
    start_token: int
    embedding_scale: float
    logit_scale: float
    logit_cap: float
    num_experts: int
    experts_per_token: int
    expert_d_ff: int
    shared_expert_d_ff: int
    shared_expert_gate: bool
    dense_layers: int
    experts_every: int
    router_score: str
    router_bias: bool
    router_selection_bias: bool
    router_renormalise: bool
    router_scale: float
    router_groups: int
    router_groups_kept: int
    router_group_score: str
    router_jitter: float
    expert_capacity: int
    expert_capacity_factor: float
    mtp_depth: int
    initializer: str
    initializer_std: float
    scaled_residual_init: bool
    embedding_dropout: float
    attention_dropout: float
    residual_dropout: float
    activation_dropout: float
    final_dropout: float
    attention_scale: float
    attention_cap: float
    attention_sinks: bool
    query_key_norm: str
    attention_pattern: str
    window: int
    global_attention: bool
    prefix_attention: bool
    kv_latent: int
    query_latent: int
    rope_width: int
    value_width: int
    attention_backend: str
    param_dtype: str
    compute_dtype: str
    scan_layers: bool
    remat: str
    offload: str
    feedforward_pieces: int

    def __post_init__(self):
        require_ranges("model", self, NUMBERS)
        for key, options in OPTIONS.items():
            require_in(f"model.{key}", getattr(self, key), options)
        if self.remat not in REMATS:
            for name in names(self.remat):
                alone = () if "," in self.remat else REMATS
                require_in("model.remat", name, (*alone, *TENSORS))
        for name in names(self.offload):
            require_in("model.offload", name, TENSORS)
        for name in self.attention_pattern.split(","):
            require_in("a name in model.attention_pattern", name, ("full", "local"))
        require_together(vars(self), NEEDS, "model.")
        require_all(self._attention_rules() | self._position_rules())
        if self.num_experts:
            require_all(self._expert_rules())

    def _attention_rules(self):
        """{what a user is told: whether it holds}"""
        heads, kv_heads = self.num_heads, self.num_kv_heads
        widths = self.rope_width == self.value_width == self.head_width
        return {
            f"model.offload={self.offload!r} with model.remat={self.remat!r}: what is offloaded is "
            "an exception to recomputing; set model.remat=full, or the names of what stays here.": (
                not self.offload or self.remat == "full" or self.remat not in REMATS
            ),
            f"model.num_kv_heads={kv_heads} does not divide model.num_heads={heads}; take one of "
            f"{[n for n in range(1, heads + 1) if heads % n == 0]}.": heads % kv_heads == 0,
            f"model.window={self.window} and model.attention_pattern={self.attention_pattern!r} do "
            "not go together: layers that are local need a window of 1 or more, others 0.": (
                ("local" in self.attention_pattern) == (self.window > 0)
            ),
            f"model.kv_latent needs model.rope_width={self.rope_width} less than model.head_width="
            f"{self.head_width}, whose rest comes from the latent, and model.num_kv_heads="
            f"{kv_heads} as many as model.num_heads={heads}.": (
                not self.kv_latent or (self.rope_width < self.head_width and kv_heads == heads)
            ),
            f"model.rope_width={self.rope_width} and value_width={self.value_width} other than "
            f"head_width={self.head_width} are for model.kv_latent; set that, or leave them out.": (
                self.kv_latent > 0 or widths
            ),
        }

    def _position_rules(self):
        in_pairs = self.position == "relative" or self.position.startswith("sinusoid")
        return {
            f"model.d_model={self.d_model} is odd, but position={self.position!r} fills pairs of "
            "it.": not in_pairs or self.d_model % 2 == 0,
            f"model.position_offset={self.position_offset} leaves none of model.max_positions="
            f"{self.max_positions} rows.": self.position_offset < self.max_positions,
            f"model.position_buckets={self.position_buckets} must be even, and less than "
            f"model.position_max_distance={self.position_max_distance}.": (
                self.position_buckets % 2 == 0
                and self.position_buckets < self.position_max_distance
            ),
            f"model.{'rope' if self.kv_latent else 'head'}_width={self.rope_width} is odd, but "
            "position='rope' turns pairs of it.": self.position != "rope"
            or self.rope_width % 2 == 0,
            f"model.rope_low_frequency={self.rope_low_frequency} must be less than "
            f"model.rope_high_frequency={self.rope_high_frequency}.": (
                self.rope_low_frequency < self.rope_high_frequency
            ),
            f"model.rope_beta_slow={self.rope_beta_slow} must be less than "
            f"model.rope_beta_fast={self.rope_beta_fast}.": (
                self.rope_beta_slow < self.rope_beta_fast
            ),
        }

    def _expert_rules(self):
        experts, chosen, groups = self.num_experts, self.experts_per_token, self.router_groups
        size, kept = experts // groups, self.router_groups_kept
        return {
            f"model.experts_per_token={chosen} must be from 1 to model.num_experts={experts}.": (
                1 <= chosen <= experts
            ),
            f"model.router_groups={groups} must divide model.num_experts={experts}, and "
            f"router_groups_kept={kept} be no more.": experts % groups == 0 and kept <= groups,
            f"model.experts_per_token={chosen} is more than the {size} experts of {kept} groups.": (
                chosen <= kept * size
            ),
            "model.router_group_score='top2' needs groups of 2 experts or more.": (
                self.router_group_score != "top2" or groups == 1 or size >= 2
            ),
            f"model.dense_layers={self.dense_layers} and experts_every={self.experts_every} leave "
            f"none of {self.num_layers} layers to the experts.": (
                any(layer.experts for layer in self.layers())
            ),
        }

    @property
    def has_dropout(self):
        return any(getattr(self, f"{name}_dropout") for name in DROPOUTS)

    @property
    def causal(self):
        """Whether a token sees none after it."""
        return self.stack != "encoder"

    @property
    def num_positions(self):
        """The longest text: what the table of positions has rows for; without a table no limit."""
        rows = self.max_positions - self.position_offset
        return rows if self.position == "learned" else math.inf

    def encoder(self):
        """The TransformerConfig of the encoder of an encoder-decoder."""
        return dataclasses.replace(
            self, stack="encoder", num_layers=self.num_encoder_layers, num_encoder_layers=0
        )

    def layers(self):
        """A Layer for each layer: what differs between them."""
        pattern = self.attention_pattern.split(",")
        return tuple(
            Layer(
                first_norm=number > 0 or not self.skip_first_norm,
                cross=self.stack == "encoder_decoder",
                local=pattern[number % len(pattern)] == "local",
                experts=self.num_experts > 0
                and number >= self.dense_layers
                and (number - self.dense_layers) % self.experts_every == self.experts_every - 1,
            )
            for number in range(self.num_layers)
        )

    def stretches(self):
        """The layers as Stretches: the first dense ones, cycles of layers that are alike or repeat,
        and what is left over; one stretch of one cycle if nothing repeats or scan_layers is off.
        """
        every = self.experts_every if self.num_experts else 1
        period = math.lcm(len(self.attention_pattern.split(",")), every)
        first = max(self.dense_layers, int(self.skip_first_norm))
        cycles = (self.num_layers - first) // period
        if not self.scan_layers or cycles < 2:
            return (Stretch(0, 1, self.num_layers),)
        last = first + cycles * period
        before, after = Stretch(0, 1, first), Stretch(last, 1, self.num_layers - last)
        stretches = before, Stretch(first, cycles, period), after
        return tuple(stretch for stretch in stretches if stretch.period)


@dataclasses.dataclass(frozen=True)
class Layer:
    """What a layer is: its attention sees a window; it has experts instead of a feed-forward; a
    norm before its attention, where the others have one; attention to an encoder's output.
    """

    local: bool
    experts: bool
    first_norm: bool = True
    cross: bool = False


@dataclasses.dataclass(frozen=True)
class Stretch:
    """`cycles` times `period` layers from layer `first` on, each cycle like the others."""

    first: int
    cycles: int
    period: int

    @property
    def last(self):
        """The layer after it."""
        return self.first + self.cycles * self.period


def names(text):
    """The names in a list like "query,key"."""
    return tuple(filter(None, text.split(",")))
