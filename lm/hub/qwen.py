"""Qwen 2 (arXiv:2407.10671) and 3 (arXiv:2505.09388), dense and with experts."""

from lm.hub.family import Family
from lm.hub.keys import Key, Rope, Windows, checked
from lm.hub.llama import (
    ALWAYS,
    ATTENTION,
    ATTENTION_BIAS,
    ENDS,
    FEEDFORWARD,
    LAYER,
    PRE_NORMS,
    TENSORS,
    gated,
    sizes,
)
from lm.hub.mistral import FUSED, ROUTER, experts
from lm.hub.tensors import Tensor, plain

SIZES = (151936, 32768, 4096, 32, 32, 32, 22016)
NORMS = (
    plain(LAYER + "self_attn.q_norm.weight", "layers/attention/query_norm/scale_H"),
    plain(LAYER + "self_attn.k_norm.weight", "layers/attention/key_norm/scale_H"),
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
    keys=(*sizes(*SIZES), Rope(), WINDOWS),
    always={**ALWAYS, "qkv_bias": True},
    tensors=TENSORS,
)

QWEN3 = Family(
    model_type="qwen3",
    architectures={"Qwen3ForCausalLM": {}},
    keys=(*sizes(*SIZES, head_dim=128), Rope(), ATTENTION_BIAS, WINDOWS),
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
SHARED_GATE = Tensor(
    LAYER + "mlp.shared_expert_gate.weight", {"layers/experts/shared_gate_D": "1,D"}
)
MIXED = (*ENDS, *PRE_NORMS, *ATTENTION, *FEEDFORWARD, *EXPERTS)

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    architectures={"Qwen2MoeForCausalLM": {}},
    keys=(
        *sizes(151936, 32768, 2048, 24, 16, 16, 5632),
        Rope(),
        Windows(4096, early, switch="use_sliding_window"),
        Key("qkv_bias", "qkv_bias", True),
        *routing(4, 60, 1408),
        Key("shared_expert_intermediate_size", "shared_expert_d_ff", 5632),
    ),
    always={**ALWAYS, "shared_expert_gate": True},
    required={"mlp_only_layers": []},
    tensors=(*MIXED, SHARED_GATE, *gated(LAYER + "mlp.shared_expert.", "layers/experts/shared/")),
    fused=FUSED,
)

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    architectures={"Qwen3MoeForCausalLM": {}},
    keys=(
        *sizes(151936, 32768, 2048, 24, 32, 4, 6144),
        *(Rope(), ATTENTION_BIAS, Windows(4096, switch="use_sliding_window")),
        *routing(8, 128, 768),
    ),
    always={**ALWAYS, "query_key_norm": "head"},
    required={"mlp_only_layers": []},
    tensors=(*MIXED, *NORMS),
    fused=FUSED,
)
