"""Qwen 2 (arXiv:2407.10671) and 3 (arXiv:2505.09388), dense and with experts."""

from lm.hub import mistral
from lm.hub.keys import Key, Rope, Windows, found, keys
from lm.hub.llama import ATTENTION_BIAS, GATED, LAYER, TENSORS, like_llama, sizes
from lm.hub.mistral import ROUTER
from lm.hub.tensors import rows

SIZES = (151936, 32768, 4096, 32, 32, 32, 22016)
# Local are, where config.json does not list them, those from a number on; of Qwen 2 with experts
# every second of those up to it.
BOUND, SWITCH = ("max_window_layers", 28, int, 0), "use_sliding_window"
WINDOWS = Windows(4096, lambda layer, flat: layer >= found(flat, *BOUND), SWITCH)
EARLY = Windows(4096, lambda layer, flat: layer % 2 == 0 and layer < found(flat, *BOUND), SWITCH)

ROWS = (*sizes(*SIZES), Rope(), WINDOWS)
QWEN2 = like_llama("qwen2", "Qwen2ForCausalLM", ROWS, {"qkv_bias": True})
QWEN3 = like_llama(
    "qwen3",
    "Qwen3ForCausalLM",
    (*sizes(*SIZES, head_dim=128), Rope(), *ATTENTION_BIAS, WINDOWS),
    {"query_key_norm": "head"},
)


def routing(chosen, count, width):
    """Keys of experts, by their defaults: how many are chosen of how many, and how wide."""
    return (
        # Qwen 3 has it under both names, by who wrote it.
        Key("num_experts num_local_experts", "num_experts", count),
        *keys(num_experts_per_tok=chosen, moe_intermediate_size=width, norm_topk_prob=False),
        *keys(decoder_sparse_step=1),
    )


PLAIN_EXPERTS = """
experts.{expert}.gate_proj.weight gate_EDF
experts.{expert}.up_proj.weight   up_EDF
experts.{expert}.down_proj.weight down_EFD
"""
EXPERTS = rows(LAYER + "mlp.", "layers/experts/", ROUTER + PLAIN_EXPERTS)
FUSED = rows(LAYER + "mlp.", "layers/experts/", mistral.FUSED)
SHARED_GATE = "shared_expert_gate.weight shared_gate_D=1,D"
SHARED_EXPERT = (
    *rows(LAYER + "mlp.shared_expert.", "layers/experts/shared/", GATED),
    *rows(LAYER + "mlp.", "layers/experts/", SHARED_GATE),
)

QWEN2_MOE = like_llama(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    (
        *sizes(151936, 32768, 2048, 24, 16, 16, 5632),
        *(Rope(), EARLY, *routing(4, 60, 1408)),
        *keys(qkv_bias=True, shared_expert_intermediate_size=5632),
    ),
    {"shared_expert_gate": True},
    required={"mlp_only_layers": []},
    tensors=(*TENSORS, *EXPERTS, *SHARED_EXPERT),
    fused=FUSED,
)

QWEN3_MOE = like_llama(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    (
        *sizes(151936, 32768, 2048, 24, 32, 4, 6144),
        *(Rope(), *ATTENTION_BIAS, Windows(4096, switch=SWITCH)),
        *routing(8, 128, 768),
    ),
    {"query_key_norm": "head"},
    required={"mlp_only_layers": []},
    tensors=(*TENSORS, *EXPERTS),
    fused=FUSED,
)
