"""GPT-OSS (arXiv:2508.10925): sinks, and experts with biases whose gate is clamped.

Experts are not transposed, and gate and up are columns in turn. The hub's files are MXFP4, which
lm does not read; transformers saves them in bfloat16.
"""

from lm.hub.keys import Key, Rope, Windows, keys, without
from lm.hub.llama import LAYER, TENSORS, like_llama, sizes
from lm.hub.tensors import rows

YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
YARN |= {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
SIZES = sizes(201088, 131072, 2880, 36, 64, 8, 2880, head_dim=64, rms_norm_eps=1e-5)
EXPERTS = """
router                    router_DE
experts.gate_up_proj      gate_EDF=E,D,F,1 up_EDF=E,D,F,1 joined=3 merged=2
experts.gate_up_proj_bias gate_bias_EF=E,F,1 up_bias_EF=E,F,1 joined=2 merged=1
experts.down_proj         down_EFD=E,F,D
experts.down_proj_bias    down_bias_ED=E,D
"""

GPT_OSS = like_llama(
    "gpt_oss",
    "GptOssForCausalLM",
    (
        *without(SIZES, "hidden_act", "intermediate_size"),
        Key("intermediate_size", "expert_d_ff d_ff", 2880),
        *(Rope(150_000.0, scaling=YARN), Windows(128, lambda layer, flat: layer % 2 == 0)),
        *keys(attention_bias=True, num_local_experts=128, num_experts_per_tok=4),
    ),
    {
        "activation": "clamped_silu",
        **dict.fromkeys(("attention_sinks", "feedforward_bias", "router_bias"), True),
        "router_renormalise": True,
    },
    required={"hidden_act": "silu", "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
    tensors=(
        *TENSORS,
        *rows(LAYER + "self_attn.", "layers/attention/", "sinks sinks_N=N"),
        *rows(LAYER + "mlp.", "layers/experts/", EXPERTS),
    ),
)
