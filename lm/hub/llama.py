"""Llama 1 to 3 as Hugging Face keeps it: LlamaForCausalLM; the rows that others share with it.

arXiv:2302.13971, 2307.09288 and 2407.21783. Its matrices are Linear's, (out, in), and heads are
rotated in halves, as ours are. Meta's own files rotate neighbours: they are another format.
"""

from lm.hub.family import Family
from lm.hub.keys import ACTIVATIONS, Key, Rope
from lm.hub.tensors import Tensor

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
ATTENTION = (
    Tensor(LAYER + "self_attn.q_proj.weight", {"layers/attention/query_DNH": "NH,D"}),
    Tensor(LAYER + "self_attn.k_proj.weight", {"layers/attention/key_DKH": "KH,D"}),
    Tensor(LAYER + "self_attn.v_proj.weight", {"layers/attention/value_DKH": "KH,D"}),
    Tensor(LAYER + "self_attn.o_proj.weight", {"layers/attention/output_NHD": "D,NH"}),
    Tensor(LAYER + "self_attn.q_proj.bias", {"layers/attention/query_bias_NH": "NH"}),
    Tensor(LAYER + "self_attn.k_proj.bias", {"layers/attention/key_bias_KH": "KH"}),
    Tensor(LAYER + "self_attn.v_proj.bias", {"layers/attention/value_bias_KH": "KH"}),
    Tensor(LAYER + "self_attn.o_proj.bias", {"layers/attention/output_bias_D": "D"}),
)
FEEDFORWARD = (
    Tensor(LAYER + "mlp.gate_proj.weight", {"layers/feedforward/gate_DF": "F,D"}),
    Tensor(LAYER + "mlp.up_proj.weight", {"layers/feedforward/up_DF": "F,D"}),
    Tensor(LAYER + "mlp.down_proj.weight", {"layers/feedforward/down_FD": "D,F"}),
)
FEEDFORWARD_BIASES = (
    Tensor(LAYER + "mlp.gate_proj.bias", {"layers/feedforward/gate_bias_F": "F"}),
    Tensor(LAYER + "mlp.up_proj.bias", {"layers/feedforward/up_bias_F": "F"}),
    Tensor(LAYER + "mlp.down_proj.bias", {"layers/feedforward/down_bias_D": "D"}),
)
TENSORS = (*ENDS, *PRE_NORMS, *ATTENTION, *FEEDFORWARD)

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    keys=(*SIZES, Rope(), ATTENTION_BIAS, Key("mlp_bias", "feedforward_bias", False)),
    always=ALWAYS,
    limits=DIVIDES,
    tensors=(*TENSORS, *FEEDFORWARD_BIASES),
)
