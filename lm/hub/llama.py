"""Llama 1 to 3 as Hugging Face keeps it: LlamaForCausalLM; the rows that others share with it.

arXiv:2302.13971, 2307.09288 and 2407.21783. Its matrices are Linear's, (out, in), and heads are
rotated in halves, as ours are. Meta's own files rotate neighbours: they are another format.
"""

from lm.hub.family import Family
from lm.hub.keys import ACTIVATIONS, Key, Rope
from lm.hub.tensors import Tensor, attention, linear

LAYER = "model.layers.{layer}."

SIZES = (
    Key("vocab_size", "vocab_size", 32000),
    Key("max_position_embeddings", "max_positions", 2048),
    Key("hidden_size", "d_model", 4096),
    Key("num_hidden_layers", "num_layers", 32),
    Key("num_attention_heads", "num_heads", 32),
    Key("num_key_value_heads", "num_kv_heads", lambda model: model["num_heads"]),
    Key("head_dim", "head_width", lambda model: model["d_model"] // model["num_heads"]),
    Key("intermediate_size", "d_ff", 11008),
    Key("hidden_act", "activation", "silu", ACTIVATIONS),
    Key("rms_norm_eps", "norm_eps", 1e-6),
    Key("initializer_range", "initializer_std", 0.02),
    Key("attention_dropout", "attention_dropout", 0.0),
    Key("tie_word_embeddings", "tied_embedding", False),
)
ATTENTION_BIAS = Key("attention_bias", ("qkv_bias", "attention_output_bias"), False)
ALWAYS = {"position": "rope", "norm": "rms_norm", "norm_bias": False, "gated": True}
DIVIDES = {
    "num_attention_heads={num_heads} must divide hidden_size={d_model}": lambda config: (
        config.d_model % config.num_heads == 0
    ),
}
ENDS = (
    Tensor("model.embed_tokens.weight", {"embed/table_VD": "V,D"}),
    Tensor("model.norm.weight", {"final_norm/scale_D": "D"}),
    Tensor("lm_head.weight", {"head/kernel_DV": "V,D"}),
)
PRE_NORMS = (
    Tensor(LAYER + "input_layernorm.weight", {"layers/attention_norm/scale_D": "D"}),
    Tensor(LAYER + "post_attention_layernorm.weight", {"layers/feedforward_norm/scale_D": "D"}),
)
ATTENTION = attention(LAYER + "self_attn.", "layers/attention/")
FEEDFORWARD = (
    *linear(LAYER + "mlp.gate_proj", ("layers/feedforward/gate_DF", "F,D")),
    *linear(LAYER + "mlp.up_proj", ("layers/feedforward/up_DF", "F,D")),
    *linear(LAYER + "mlp.down_proj", ("layers/feedforward/down_FD", "D,F")),
)
TENSORS = (*ENDS, *PRE_NORMS, *ATTENTION, *FEEDFORWARD)

LLAMA = Family(
    model_type="llama",
    architectures={"LlamaForCausalLM": {}},
    keys=(*SIZES, Rope(), ATTENTION_BIAS, Key("mlp_bias", "feedforward_bias", False)),
    always=ALWAYS,
    limits=DIVIDES,
    tensors=TENSORS,
)
