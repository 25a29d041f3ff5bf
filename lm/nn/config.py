"""The configuration of a Transformer: section `model` of configs/base.py, once resolved."""

import dataclasses

from lm.errors import require, require_in

POSITIONS = ("learned", "sinusoid", "rope", "none")
NORMS = ("layer_norm", "rms_norm")
PLACEMENTS = ("pre", "post", "sandwich", "output")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")
INITIALIZERS = ("normal", "truncated_normal", "fan_in", "glorot")
DTYPES = ("float32", "bfloat16", "float16", "float64")
REMATS = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Every switch of the model; configs/base.py says what they mean and holds the defaults."""

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    d_ff: int
    position: str
    max_positions: int
    rope_theta: float
    norm: str
    norm_eps: float
    norm_bias: bool
    norm_placement: str
    final_norm: bool
    embedding_norm: bool
    parallel_block: bool
    activation: str
    gated: bool
    qkv_bias: bool
    attention_output_bias: bool
    feedforward_bias: bool
    tied_embedding: bool
    initializer: str
    initializer_std: float
    scaled_residual_init: bool
    embedding_dropout: float
    attention_dropout: float
    residual_dropout: float
    attention_backend: str
    param_dtype: str
    compute_dtype: str
    scan_layers: bool
    remat: str

    def __post_init__(self):
        sizes = ("vocab_size", "d_model", "num_layers", "num_heads", "num_kv_heads", "head_width")
        for key in (*sizes, "d_ff", "max_positions"):
            value = getattr(self, key)
            require(value >= 1, f"model.{key}={value} is not possible; it must be 1 or more.")
        for key in ("rope_theta", "norm_eps", "initializer_std"):
            value = getattr(self, key)
            require(value > 0, f"model.{key}={value} is not possible; it must be more than 0.")
        heads, kv_heads = self.num_heads, self.num_kv_heads
        require(
            heads % kv_heads == 0,
            f"model.num_kv_heads={kv_heads} does not divide model.num_heads={heads}; take one of "
            f"{[n for n in range(1, heads + 1) if heads % n == 0]}.",
        )
        for key, options in (
            ("position", POSITIONS),
            ("norm", NORMS),
            ("norm_placement", PLACEMENTS),
            ("activation", ACTIVATIONS),
            ("initializer", INITIALIZERS),
            ("param_dtype", DTYPES),
            ("compute_dtype", DTYPES),
            ("remat", REMATS),
        ):
            require_in(f"model.{key}", getattr(self, key), options)
        for key in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            value = getattr(self, key)
            require(0 <= value < 1, f"model.{key}={value} must be a probability in [0, 1).")
        require(
            self.position != "sinusoid" or self.d_model % 2 == 0,
            f"model.d_model={self.d_model} is odd, but position='sinusoid' fills pairs of it.",
        )
        require(
            self.position != "rope" or self.head_width % 2 == 0,
            f"model.head_width={self.head_width} is odd, but position='rope' turns pairs of it.",
        )
        require(
            not (self.parallel_block and self.norm_placement != "pre"),
            f"model.parallel_block needs model.norm_placement='pre', not {self.norm_placement!r}.",
        )
