"""The configuration of a Transformer: section `model` of configs/base.py, once resolved."""

import dataclasses
import math

from lm.errors import require, require_in

STACKS = ("decoder", "encoder", "encoder_decoder")
POSITIONS = (
    "learned",
    "sinusoid",
    "sinusoid_halves",
    "rope",
    "relative",
    "buckets",
    "alibi",
    "none",
)
HEADS = ("linear", "transform", "none")
HEAD_BIASES = ("none", "learned", "fixed")
ROPE_SCALINGS = ("none", "linear", "llama3", "yarn")
NORMS = ("layer_norm", "rms_norm")
PLACEMENTS = ("pre", "post", "sandwich", "output")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "clamped_silu")
QUERY_KEY_NORMS = ("none", "head", "full")
LAYER_ATTENTIONS = ("full", "local")
ROUTER_SCORES = ("softmax", "sigmoid")
ROUTER_GROUP_SCORES = ("max", "top2")
INITIALIZERS = ("normal", "truncated_normal", "fan_in", "glorot", "t5")
DROPOUTS = (
    *("embedding_dropout", "attention_dropout", "residual_dropout", "activation_dropout"),
    "final_dropout",
)
DTYPES = ("float32", "bfloat16", "float16", "float64")
REMATS = ("none", "dots", "full")
# What a layer computes that can be kept, or kept on the host, for its backward pass, by name.
TENSORS = ("layer_input", "query", "key", "value", "attention", "gate", "up")


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

    def __post_init__(self):
        sizes = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_width")
        widths = ("d_ff", "max_positions", "rope_width", "value_width", "expert_d_ff")
        at_least(self, 1, *sizes, *widths, "experts_every", "router_groups", "router_groups_kept")
        at_least(self, 1, "position_buckets", "position_max_distance")
        at_least(self, 0, "window", "kv_latent", "query_latent", "num_experts", "dense_layers")
        at_least(self, 0, "num_encoder_layers", "position_offset", "token_types", "start_token")
        at_least(self, 0, "shared_expert_d_ff", "expert_capacity", "expert_capacity_factor")
        at_least(self, 0, "rope_theta_local", "rope_original_positions", "rope_mscale")
        at_least(self, 0, "attention_cap", "logit_cap", "router_jitter", "mtp_depth")
        for key in (
            *("rope_factor", "norm_eps", "initializer_std", "attention_scale"),
            *("embedding_scale", "logit_scale", "router_scale", "rope_attention_factor"),
            *("rope_beta_slow", "rope_low_frequency"),
        ):
            value = getattr(self, key)
            require(value > 0, f"model.{key}={value} is not possible; it must be more than 0.")
        for key, options in (
            ("stack", STACKS),
            ("position", POSITIONS),
            ("head", HEADS),
            ("head_bias", HEAD_BIASES),
            ("rope_scaling", ROPE_SCALINGS),
            ("norm", NORMS),
            ("norm_placement", PLACEMENTS),
            ("query_key_norm", QUERY_KEY_NORMS),
            ("activation", ACTIVATIONS),
            ("router_score", ROUTER_SCORES),
            ("router_group_score", ROUTER_GROUP_SCORES),
            ("initializer", INITIALIZERS),
            ("param_dtype", DTYPES),
            ("compute_dtype", DTYPES),
        ):
            require_in(f"model.{key}", getattr(self, key), options)
        if self.remat not in REMATS:
            for name in names(self.remat):
                require_in("model.remat", name, (*REMATS, *TENSORS))
        for name in names(self.offload):
            require_in("model.offload", name, TENSORS)
        require(
            not self.offload or self.remat == "full" or self.remat not in REMATS,
            f"model.offload={self.offload!r} with model.remat={self.remat!r}: what is offloaded is "
            "an exception to recomputing; set model.remat=full, or the names of what stays here.",
        )
        for key in DROPOUTS:
            value = getattr(self, key)
            require(0 <= value < 1, f"model.{key}={value} must be a probability in [0, 1).")
        self._check_stack()
        self._check_attention()
        self._check_positions()
        self._check_experts()
        require(
            not (self.parallel_block and self.norm_placement != "pre"),
            f"model.parallel_block needs model.norm_placement='pre', not {self.norm_placement!r}.",
        )
        require(
            self.activation != "clamped_silu" or self.gated,
            "model.activation='clamped_silu' clamps a gate; set model.gated=True.",
        )
        require(
            self.activation != "clamped_silu" or (self.head != "transform" and not self.detector),
            "model.activation='clamped_silu' clamps a gate, which model.head='transform' and "
            "model.detector do not have; take another activation, or leave them out.",
        )
        require(self.mtp_depth <= 1, f"model.mtp_depth={self.mtp_depth} must be 0 or 1.")

    def _check_stack(self):
        both, encodes = self.stack == "encoder_decoder", self.stack != "decoder"
        require(
            both == (self.num_encoder_layers > 0),
            f"model.num_encoder_layers={self.num_encoder_layers} does not go with model.stack="
            f"{self.stack!r}; it must be 1 or more with 'encoder_decoder', and 0 with others.",
        )
        require(
            not both or not (self.kv_latent or self.parallel_block or self.router_selection_bias),
            "model.kv_latent, parallel_block and router_selection_bias are for a single stack, not "
            "for model.stack='encoder_decoder'; leave them out.",
        )
        require(
            not (encodes and self.mtp_depth),
            f"model.mtp_depth={self.mtp_depth} predicts what follows, for model.stack='decoder', "
            f"not {self.stack!r}.",
        )
        require(
            not encodes or self.position not in ("relative", "alibi"),
            f"model.position={self.position!r} looks back only; an encoder needs another.",
        )
        encoder_only = ("pooler", "next_sentence", "detector", "global_attention")
        for key in (*encoder_only, "token_types", "skip_first_norm"):
            require(
                not getattr(self, key) or self.stack == "encoder",
                f"model.{key} needs model.stack='encoder', not {self.stack!r}.",
            )
        require(
            not self.prefix_attention
            or (self.stack == "decoder" and self.position not in ("relative", "alibi")),
            "model.prefix_attention is for model.stack='decoder' and a position that looks ahead "
            "too, not relative or alibi.",
        )
        require(self.pooler or not self.next_sentence, "model.next_sentence needs model.pooler.")
        require(
            self.head != "none" or self.stack == "encoder",
            f"model.head='none' is for encoders; model.stack={self.stack!r} needs a head.",
        )
        require(
            self.head != "none" or (self.tied_embedding and self.head_bias == "none"),
            "model.head='none' has no matrix and no bias of its own: set model.tied_embedding=True "
            "and model.head_bias='none'.",
        )

    def _check_attention(self):
        heads, kv_heads = self.num_heads, self.num_kv_heads
        require(
            heads % kv_heads == 0,
            f"model.num_kv_heads={kv_heads} does not divide model.num_heads={heads}; take one of "
            f"{[n for n in range(1, heads + 1) if heads % n == 0]}.",
        )
        for name in self.attention_pattern.split(","):
            require_in("a name in model.attention_pattern", name, LAYER_ATTENTIONS)
        local = "local" in self.attention_pattern
        require(
            local == (self.window > 0),
            f"model.window={self.window} and model.attention_pattern={self.attention_pattern!r} do "
            "not go together: layers that are local need a window of 1 or more, others 0.",
        )
        if self.kv_latent:
            require(
                self.position in ("rope", "none") and self.rope_width < self.head_width,
                f"model.kv_latent needs model.position='rope' or 'none', not {self.position!r}, and"
                f" model.rope_width={self.rope_width} less than model.head_width="
                f"{self.head_width}, whose rest comes from the latent.",
            )
            require(
                kv_heads == heads
                and self.query_key_norm == "none"
                and not (local or self.qkv_bias or self.global_attention),
                "model.kv_latent has as many key heads as heads, and no local layers, qkv_bias, "
                "query_key_norm or global_attention; change those.",
            )
        else:
            require(
                self.rope_width == self.value_width == self.head_width and not self.query_latent,
                f"model.rope_width={self.rope_width}, value_width={self.value_width} other than "
                f"head_width={self.head_width}, and query_latent={self.query_latent}, are for "
                "model.kv_latent; set that, or leave them out.",
            )

    def _check_positions(self):
        require(
            not self.position.startswith("sinusoid") or self.d_model % 2 == 0,
            f"model.d_model={self.d_model} is odd, but position={self.position!r} fills pairs of "
            "it.",
        )
        require(
            self.position == "learned" or not (self.position_offset or self.position_pad_aware),
            "model.position_offset and position_pad_aware are of a learned table; set "
            "model.position='learned', or leave them out.",
        )
        require(
            self.position_offset < self.max_positions,
            f"model.position_offset={self.position_offset} leaves none of model.max_positions="
            f"{self.max_positions} rows.",
        )
        require(
            self.position_buckets >= 4
            and self.position_buckets % 2 == 0
            and self.position_max_distance > self.position_buckets,
            f"model.position_buckets={self.position_buckets} must be even, 4 or more, and less than"
            f" model.position_max_distance={self.position_max_distance}.",
        )
        require(
            self.position != "rope" or self.rope_width % 2 == 0,
            f"model.{'rope' if self.kv_latent else 'head'}_width={self.rope_width} is odd, but "
            "position='rope' turns pairs of it.",
        )
        require(
            self.position == "rope"
            or (self.rope_scaling == "none" and not self.rope_theta_local and not self.rope_mscale),
            f"model.rope_scaling, rope_theta_local and rope_mscale need model.position='rope', not "
            f"{self.position!r}.",
        )
        require(
            self.rope_scaling not in ("llama3", "yarn") or self.rope_original_positions > 0,
            f"model.rope_scaling={self.rope_scaling!r} needs model.rope_original_positions, the "
            "length that was trained on.",
        )
        require(
            self.rope_theta > 1 and (self.rope_theta_local > 1 or not self.rope_theta_local),
            f"model.rope_theta={self.rope_theta} and rope_theta_local={self.rope_theta_local} must "
            "be more than 1.",
        )
        for low, high in (
            ("rope_low_frequency", "rope_high_frequency"),
            ("rope_beta_slow", "rope_beta_fast"),
        ):
            require(
                getattr(self, low) < getattr(self, high),
                f"model.{low}={getattr(self, low)} must be less than model.{high}="
                f"{getattr(self, high)}.",
            )
        require(
            self.position != "relative" or self.d_model % 2 == 0,
            f"model.d_model={self.d_model} is odd, but position='relative' fills pairs of it.",
        )

    def _check_experts(self):
        if not self.num_experts:
            require(
                not (self.shared_expert_d_ff or self.dense_layers or self.router_selection_bias),
                "model.shared_expert_d_ff, dense_layers and router_selection_bias need "
                "model.num_experts.",
            )
            return
        experts, chosen, groups = self.num_experts, self.experts_per_token, self.router_groups
        require(
            1 <= chosen <= experts,
            f"model.experts_per_token={chosen} must be from 1 to model.num_experts={experts}.",
        )
        require(
            experts % groups == 0 and self.router_groups_kept <= groups,
            f"model.router_groups={groups} must divide model.num_experts={experts}, and "
            f"router_groups_kept={self.router_groups_kept} be no more.",
        )
        require(
            chosen <= self.router_groups_kept * (experts // groups),
            f"model.experts_per_token={chosen} is more than the {experts // groups} experts of "
            f"{self.router_groups_kept} groups.",
        )
        require(
            self.router_group_score != "top2" or groups == 1 or experts // groups >= 2,
            "model.router_group_score='top2' needs groups of 2 experts or more.",
        )
        require(
            not (self.expert_capacity and self.expert_capacity_factor),
            "set one of model.expert_capacity and model.expert_capacity_factor.",
        )
        require(
            any(layer.experts for layer in self.layers()),
            f"model.dense_layers={self.dense_layers} and experts_every={self.experts_every} leave "
            f"none of {self.num_layers} layers to the experts.",
        )

    @property
    def has_dropout(self):
        return any(getattr(self, key) for key in DROPOUTS)

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


def at_least(config, least, *keys):
    """Raise UserError for a key of the model below `least`."""
    for key in keys:
        value = getattr(config, key)
        require(
            value >= least,
            f"model.{key}={value} is not possible; it must be {least} or more.",
        )
