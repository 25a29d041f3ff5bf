"""Qwen 2 (arXiv:2407.10671) and 3 (arXiv:2505.09388), dense and with experts."""

from lm.hub.family import Family
from lm.hub.keys import Key, Rope, Windows, altered, checked
from lm.hub.llama import (
    ALWAYS,
    ATTENTION,
    ATTENTION_BIAS,
    ENDS,
    FEEDFORWARD,
    LAYER,
    PRE_NORMS,
    SIZES,
    TENSORS,
)
from lm.hub.mistral import FUSED, ROUTER, experts
from lm.hub.tensors import Tensor

QWEN_SIZES = altered(
    SIZES, vocab_size=151936, intermediate_size=22016, max_position_embeddings=32768
)
QWEN2_SIZES = altered(QWEN_SIZES, num_key_value_heads=32)
NORMS = (
    Tensor(LAYER + "self_attn.q_norm.weight", {"layers/attention/query_norm/scale_H": "H"}),
    Tensor(LAYER + "self_attn.k_norm.weight", {"layers/attention/key_norm/scale_H": "H"}),
)


def late(number, flat):
    """Whether a layer is local where config.json does not list them: those from a number on."""
    return number >= _bound(flat)


def early(number, flat):
    """The same of Qwen 2 with experts: every second of those up to a number."""
    return number % 2 == 0 and number < _bound(flat)


def _bound(flat):
    return checked("max_window_layers", flat.get("max_window_layers", 28), int, 0)


WINDOWS = Windows(4096, late, switch="use_sliding_window")

QWEN2 = Family(
    model_type="qwen2",
    architectures={"Qwen2ForCausalLM": {}},
    keys=(*QWEN2_SIZES, Rope(), WINDOWS),
    always={**ALWAYS, "qkv_bias": True},
    tensors=TENSORS,
)

QWEN3 = Family(
    model_type="qwen3",
    architectures={"Qwen3ForCausalLM": {}},
    keys=(*altered(QWEN2_SIZES, head_dim=128), Rope(), ATTENTION_BIAS, WINDOWS),
    always={**ALWAYS, "query_key_norm": "head"},
    tensors=(*TENSORS, *NORMS),
)


def routing(chosen, count, width):
    """Keys of experts, by their defaults: how many are chosen of how many, and how wide."""
    return (
        Key("num_experts_per_tok", "experts_per_token", chosen),
        # Qwen 3 has it under both names, by who wrote it.
        Key(("num_experts", "num_local_experts"), "num_experts", count),
        Key("moe_intermediate_size", "expert_d_ff", width),
        Key("norm_topk_prob", "router_renormalise", False),
        Key("decoder_sparse_step", "experts_every", 1),
    )


EXPERTS = (ROUTER, *experts(LAYER + "mlp.experts", "gate_proj", "up_proj", "down_proj"))
SHARED = LAYER + "mlp.shared_expert."
SHARED_EXPERT = (
    Tensor(SHARED + "gate_proj.weight", {"layers/experts/shared/gate_DF": "F,D"}),
    Tensor(SHARED + "up_proj.weight", {"layers/experts/shared/up_DF": "F,D"}),
    Tensor(SHARED + "down_proj.weight", {"layers/experts/shared/down_FD": "D,F"}),
    Tensor(LAYER + "mlp.shared_expert_gate.weight", {"layers/experts/shared_gate_D": "1,D"}),
)
MIXED = (*ENDS, *PRE_NORMS, *ATTENTION, *FEEDFORWARD, *EXPERTS)

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    architectures={"Qwen2MoeForCausalLM": {}},
    keys=(
        *altered(
            QWEN_SIZES,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_key_value_heads=16,
        ),
        Rope(),
        Windows(4096, early, switch="use_sliding_window"),
        Key("qkv_bias", "qkv_bias", True),
        *routing(4, 60, 1408),
        Key("shared_expert_intermediate_size", "shared_expert_d_ff", 5632),
    ),
    always={**ALWAYS, "shared_expert_gate": True},
    required={"mlp_only_layers": []},
    tensors=(*MIXED, *SHARED_EXPERT),
    fused=FUSED,
)

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architectures={"Qwen3MoeForCausalLM": {}},
    keys=(
        *altered(
            QWEN_SIZES,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=24,
            num_key_value_heads=4,
        ),
        *(Rope(), ATTENTION_BIAS, Windows(4096, switch="use_sliding_window")),
        *routing(8, 128, 768),
    ),
    always={**ALWAYS, "query_key_norm": "head"},
    required={"mlp_only_layers": []},
    tensors=(*MIXED, *NORMS),
    fused=FUSED,
)
