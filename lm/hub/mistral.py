"""Mistral (arXiv:2310.06825) and Mixtral (arXiv:2401.04088); rows of experts that others share."""

from lm.hub.keys import Key, Rope, Windows, keys, without
from lm.hub.llama import LAYER, TENSORS, like_llama, sizes
from lm.hub.tensors import Tensor, matrix, under

SIZES = (32000, 131072, 4096, 32, 32, 8, 14336)

MISTRAL = like_llama("mistral", "MistralForCausalLM", (*sizes(*SIZES), Rope(), Windows(4096)))


def experts(start, gate, up, down):
    """Rows of experts, a tensor for each, by the names of their three matrices."""
    return (
        matrix(f"{start}.{{expert}}.{gate}.weight", "layers/experts/gate_EDF"),
        matrix(f"{start}.{{expert}}.{up}.weight", "layers/experts/up_EDF"),
        matrix(f"{start}.{{expert}}.{down}.weight", "layers/experts/down_EFD"),
    )


# As transformers 5 has experts in memory, for folders that were saved so.
FUSED = under(
    LAYER + "mlp.experts.",
    "layers/experts/",
    Tensor("gate_up_proj", {"gate_EDF": "E,F,D", "up_EDF": "E,F,D"}, joined=1),
    Tensor("down_proj", {"down_EFD": "E,D,F"}),
)
ROUTER = matrix(LAYER + "mlp.gate.weight", "layers/experts/router_DE")
SPARSE = LAYER + "block_sparse_moe."

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
    tensors=(
        *TENSORS,
        matrix(SPARSE + "gate.weight", "layers/experts/router_DE"),
        *experts(SPARSE + "experts", "w1", "w3", "w2"),
    ),
    fused=(*FUSED, ROUTER),
)
