"""GPT-OSS (arXiv:2508.10925): sinks, and experts with biases whose gate is clamped.

Experts are not transposed, and gate and up are columns in turn. The hub's files are MXFP4, which
lm does not read; transformers saves them in bfloat16.
"""

from lm.hub.family import Family
from lm.hub.gemma import even
from lm.hub.keys import Key, Rope, Windows, altered, without
from lm.hub.llama import ALWAYS, ATTENTION, ENDS, LAYER, PRE_NORMS, SIZES
from lm.hub.tensors import Tensor

LARGE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
MLP = LAYER + "mlp."

GPT_OSS = Family(
    model_type="gpt_oss",
    architectures={"GptOssForCausalLM": {}},
    keys=(
        *altered(
            without(SIZES, "hidden_act", "intermediate_size"),
            vocab_size=201088,
            max_position_embeddings=131072,
            hidden_size=2880,
            num_hidden_layers=36,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=64,
            rms_norm_eps=1e-5,
        ),
        Key("intermediate_size", ("expert_d_ff", "d_ff"), 2880),
        Key("attention_bias", ("qkv_bias", "attention_output_bias"), True),
        Rope(150_000.0, scaling=LARGE),
        Windows(128, even),
        Key("num_local_experts", "num_experts", 128),
        Key("num_experts_per_tok", "experts_per_token", 4),
    ),
    always={
        **ALWAYS,
        "activation": "clamped_silu",
        "attention_sinks": True,
        "feedforward_bias": True,
        "router_bias": True,
        "router_renormalise": True,
    },
    required={"hidden_act": "silu", "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    tensors=(
        *(*ENDS, *PRE_NORMS, *ATTENTION),
        Tensor(LAYER + "self_attn.sinks", {"layers/attention/sinks_N": "N"}),
        Tensor(MLP + "router.weight", {"layers/experts/router_DE": "E,D"}),
        Tensor(MLP + "router.bias", {"layers/experts/router_bias_E": "E"}),
        Tensor(
            MLP + "experts.gate_up_proj",
            {"layers/experts/gate_EDF": "E,D,F,1", "layers/experts/up_EDF": "E,D,F,1"},
            joined=3,
            merged=2,
        ),
        Tensor(
            MLP + "experts.gate_up_proj_bias",
            {"layers/experts/gate_bias_EF": "E,F,1", "layers/experts/up_bias_EF": "E,F,1"},
            joined=2,
            merged=1,
        ),
        Tensor(MLP + "experts.down_proj", {"layers/experts/down_EFD": "E,F,D"}),
        Tensor(MLP + "experts.down_proj_bias", {"layers/experts/down_bias_ED": "E,D"}),
    ),
)
