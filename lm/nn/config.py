"""The configuration of a Transformer: section `model` of configs/base.py, once resolved."""

import dataclasses
import math
from typing import Annotated

from lm.errors import SET, Section, require, require_in, require_together

DROPOUTS = ("embedding", "attention", "residual", "activation", "final")
DTYPES = ("float32", "bfloat16", "float16", "float64")
LOOK_BACK = ("relative", "alibi")
POSITIONS = ("none", "learned", "sinusoid", "sinusoid_halves", "rope", "buckets", *LOOK_BACK)
REMATS = ("none", "dots", "full")
# What a layer computes that can be kept, or kept on the host, for its backward pass, by name.
TENSORS = ("layer_input", "query", "key", "value", "attention", "gate", "up")
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
class TransformerConfig(Section):
    """Every switch of the model; configs/base.py says what they mean and holds the defaults."""

    section = "model"

    stack: Annotated[str, ("decoder", "encoder", "encoder_decoder")]
    vocab_size: Annotated[int, "1 or more"]
    d_model: Annotated[int, "1 or more"]
    num_layers: Annotated[int, "1 or more"]
    num_encoder_layers: Annotated[int, "0 or more"]
    num_heads: Annotated[int, "1 or more"]
    num_kv_heads: Annotated[int, "1 or more"]
    head_width: Annotated[int, "1 or more"]
    d_ff: Annotated[int, "1 or more"]
    position: Annotated[str, POSITIONS]
    max_positions: Annotated[int, "1 or more"]
    position_offset: Annotated[int, "0 or more"]
    position_pad_aware: bool
    position_buckets: Annotated[int, "4 or more"]
    position_max_distance: Annotated[int, "1 or more"]
    token_types: Annotated[int, "0 or more"]
    rope_theta: Annotated[float, "more than 1"]
    rope_theta_local: Annotated[float, "0, or more than 1"]
    rope_scaling: Annotated[str, ("none", "linear", "llama3", "yarn")]
    rope_factor: Annotated[float, "more than 0"]
    rope_original_positions: Annotated[int, "0 or more"]
    rope_low_frequency: Annotated[float, "more than 0"]
    rope_high_frequency: float
    rope_beta_fast: float
    rope_beta_slow: Annotated[float, "more than 0"]
    rope_truncate: bool
    rope_attention_factor: Annotated[float, "more than 0"]
    rope_mscale: Annotated[float, "0 or more"]
    norm: Annotated[str, ("layer_norm", "rms_norm")]
    norm_eps: Annotated[float, "more than 0"]
    norm_bias: bool
    norm_offset: bool
    norm_placement: Annotated[str, ("pre", "post", "sandwich", "output")]
    skip_first_norm: bool
    final_norm: bool
    embedding_norm: bool
    parallel_block: bool
    activation: Annotated[str, ("gelu", "gelu_tanh", "relu", "silu", "clamped_silu")]
    gated: bool
    qkv_bias: bool
    attention_output_bias: bool
    feedforward_bias: bool
    tied_embedding: bool
    head: Annotated[str, ("linear", "transform", "none")]
    head_bias: Annotated[str, ("none", "learned", "fixed")]
    pooler: bool
    next_sentence: bool
    detector: bool
    start_token: Annotated[int, "0 or more"]
    embedding_scale: Annotated[float, "more than 0"]
    logit_scale: Annotated[float, "more than 0"]
    logit_cap: Annotated[float, "0 or more"]
    num_experts: Annotated[int, "0 or more"]
    experts_per_token: int
    expert_d_ff: Annotated[int, "1 or more"]
    shared_expert_d_ff: Annotated[int, "0 or more"]
    shared_expert_gate: bool
    dense_layers: Annotated[int, "0 or more"]
    experts_every: Annotated[int, "1 or more"]
    router_score: Annotated[str, ("softmax", "sigmoid")]
    router_bias: bool
    router_selection_bias: bool
    router_renormalise: bool
    router_scale: Annotated[float, "more than 0"]
    router_groups: Annotated[int, "1 or more"]
    router_groups_kept: Annotated[int, "1 or more"]
    router_group_score: Annotated[str, ("max", "top2")]
    router_jitter: Annotated[float, "0 or more"]
    expert_capacity: Annotated[int, "0 or more"]
    expert_capacity_factor: Annotated[float, "0 or more"]
    mtp_depth: Annotated[int, "0 or 1"]
    initializer: Annotated[str, ("normal", "truncated_normal", "fan_in", "glorot", "t5")]
    initializer_std: Annotated[float, "more than 0"]
    scaled_residual_init: bool
    embedding_dropout: Annotated[float, "in [0, 1)"]
    attention_dropout: Annotated[float, "in [0, 1)"]
    residual_dropout: Annotated[float, "in [0, 1)"]
    activation_dropout: Annotated[float, "in [0, 1)"]
    final_dropout: Annotated[float, "in [0, 1)"]
    attention_scale: Annotated[float, "more than 0"]
    attention_cap: Annotated[float, "0 or more"]
    attention_sinks: bool
    query_key_norm: Annotated[str, ("none", "head", "full")]
    attention_pattern: str
    window: Annotated[int, "0 or more"]
    global_attention: bool
    prefix_attention: bool
    kv_latent: Annotated[int, "0 or more"]
    query_latent: Annotated[int, "0 or more"]
    rope_width: Annotated[int, "1 or more"]
    value_width: Annotated[int, "1 or more"]
    attention_backend: str
    param_dtype: Annotated[str, DTYPES]
    compute_dtype: Annotated[str, DTYPES]
    scan_layers: bool
    remat: str
    offload: str
    feedforward_pieces: Annotated[int, "1 or more"]

    def check(self):
        if self.remat not in REMATS:
            for name in names(self.remat):
                alone = () if "," in self.remat else REMATS
                require_in("model.remat", name, (*alone, *TENSORS))
        for name in names(self.offload):
            require_in("model.offload", name, TENSORS)
        for name in self.attention_pattern.split(","):
            require_in("a name in model.attention_pattern", name, ("full", "local"))
        require_together(vars(self), NEEDS, "model.")
        told = f"model.offload={self.offload!r} with model.remat={self.remat!r}: what is offloaded"
        told += " is kept, not recomputed; set model.remat=full, or the names of what stays here."
        require(not self.offload or self.remat == "full" or self.remat not in REMATS, told)
        self._check_attention()
        self._check_positions()
        if self.num_experts:
            self._check_experts()

    def _check_attention(self):
        heads, kv_heads = self.num_heads, self.num_kv_heads
        rope, width, value = self.rope_width, self.head_width, self.value_width
        told = f"model.num_kv_heads={kv_heads} does not divide model.num_heads={heads}; take one of"
        divisors = [n for n in range(1, heads + 1) if heads % n == 0]
        require(heads % kv_heads == 0, f"{told} {divisors}.")
        told = f"model.window={self.window} and model.attention_pattern={self.attention_pattern!r}"
        told += " do not go together: layers that are local need a window of 1 or more, others 0."
        require(("local" in self.attention_pattern) == (self.window > 0), told)
        if self.kv_latent:
            told = f"model.kv_latent needs model.rope_width={rope} less than head_width={width}"
            told += f", whose rest comes from the latent, and num_kv_heads={kv_heads} as many as"
            require(rope < width and kv_heads == heads, f"{told} num_heads={heads}.")
        else:
            told = f"model.rope_width={rope} and value_width={value} other than head_width={width}"
            told += " are for model.kv_latent; set that, or leave them out."
            require(rope == value == width, told)

    def _check_positions(self):
        width, position = self.d_model, self.position
        in_pairs = position == "relative" or position.startswith("sinusoid")
        told = f"model.d_model={width} is odd, but position={position!r} fills pairs of it."
        require(not in_pairs or width % 2 == 0, told)
        offset, rows = self.position_offset, self.max_positions
        told = f"model.position_offset={offset} leaves none of model.max_positions={rows} rows."
        require(offset < rows, told)
        buckets, furthest = self.position_buckets, self.position_max_distance
        told = f"model.position_buckets={buckets} must be even, and less than "
        told += f"model.position_max_distance={furthest}."
        require(buckets % 2 == 0 and buckets < furthest, told)
        name = "rope_width" if self.kv_latent else "head_width"
        told = f"model.{name}={self.rope_width} is odd, but position='rope' turns pairs of it."
        require(position != "rope" or self.rope_width % 2 == 0, told)
        for less, more in (("low_frequency", "high_frequency"), ("beta_slow", "beta_fast")):
            low, high = (getattr(self, f"rope_{name}") for name in (less, more))
            told = f"model.rope_{less}={low} must be less than model.rope_{more}={high}."
            require(low < high, told)

    def _check_experts(self):
        experts, chosen, groups = self.num_experts, self.experts_per_token, self.router_groups
        size, kept = experts // groups, self.router_groups_kept
        told = f"model.experts_per_token={chosen} must be from 1 to model.num_experts={experts}."
        require(1 <= chosen <= experts, told)
        told = f"model.router_groups={groups} must divide model.num_experts={experts}, and"
        told += f" router_groups_kept={kept} be no more."
        require(experts % groups == 0 and kept <= groups, told)
        told = f"model.experts_per_token={chosen} is more than the {size} experts of {kept} groups."
        require(chosen <= kept * size, told)
        told = "model.router_group_score='top2' needs groups of 2 experts or more."
        require(self.router_group_score != "top2" or groups == 1 or size >= 2, told)
        told = f"model.dense_layers={self.dense_layers} and experts_every={self.experts_every}"
        told += f" leave none of {self.num_layers} layers to the experts."
        require(any(layer.experts for layer in self.layers()), told)

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
        pattern, every = self.attention_pattern.split(","), self.experts_every

        def layer(number):
            after = number - self.dense_layers
            return Layer(
                local=pattern[number % len(pattern)] == "local",
                experts=self.num_experts > 0 and after >= 0 and after % every == every - 1,
                first_norm=number > 0 or not self.skip_first_norm,
                cross=self.stack == "encoder_decoder",
            )

        return tuple(map(layer, range(self.num_layers)))

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
