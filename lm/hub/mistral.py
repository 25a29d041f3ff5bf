"""Mistral (arXiv:2310.06825) and Mixtral (arXiv:2401.04088); rows of experts that others share."""

from lm.hub.keys import Key, Rope, Windows, keys, without
from lm.hub.llama import LAYER, TENSORS, like_llama, sizes
from lm.hub.tensors import rows

SIZES = (32000, 131072, 4096, 32, 32, 8, 14336)

MISTRAL = like_llama("mistral", "MistralForCausalLM", (*sizes(*SIZES), Rope(), Windows(4096)))


# As transformers 5 has experts in memory, for folders that were saved so.
FUSED = """
experts.gate_up_proj gate_EDF=E,F,D up_EDF=E,F,D joined=1
experts.down_proj    down_EFD=E,D,F
"""
ROUTER = """
gate.weight router_DE
"""
EXPERTS = """
experts.{expert}.w1.weight gate_EDF
experts.{expert}.w3.weight up_EDF
experts.{expert}.w2.weight down_EFD
"""
SPARSE = rows(LAYER + "block_sparse_moe.", "layers/experts/", ROUTER + EXPERTS)

MIXTRAL = like_llama(
    "mixtral",
    "MixtralForCausalLM",
    (
        *without(sizes(*SIZES, rms_norm_eps=1e-5), "intermediate_size"),
        # Its only width: no layer is without experts.
        Key("intermediate_size", "expert_d_ff d_ff", 14336),
        *(Rope(1_000_000.0), Windows(None)),
        *keys(num_local_experts=8, num_experts_per_tok=2, router_jitter_noise=0.0),
    ),
    {"router_renormalise": True},
    tensors=(*TENSORS, *SPARSE),
    fused=rows(LAYER + "mlp.", "layers/experts/", FUSED + ROUTER),
)
