"""Mistral (arXiv:2310.06825) and Mixtral (arXiv:2401.04088); rows of experts that others share."""

from lm.hub.family import Family
from lm.hub.keys import Key, Rope, Windows, altered, without
from lm.hub.llama import ALWAYS, ATTENTION, ENDS, LAYER, PRE_NORMS, SIZES, TENSORS
from lm.hub.tensors import Tensor

MISTRAL_SIZES = altered(
    SIZES, intermediate_size=14336, max_position_embeddings=131072, num_key_value_heads=8
)

MISTRAL = Family(
    model_type="mistral",
    architectures={"MistralForCausalLM": {}},
    keys=(*MISTRAL_SIZES, Rope(), Windows(4096)),
    always=ALWAYS,
    tensors=TENSORS,
)


def experts(start, gate, up, down):
    """Rows of experts, a tensor for each, by the names of their three matrices."""
    return (
        Tensor(f"{start}.{{expert}}.{gate}.weight", {"layers/experts/gate_EDF": "F,D"}),
        Tensor(f"{start}.{{expert}}.{up}.weight", {"layers/experts/up_EDF": "F,D"}),
        Tensor(f"{start}.{{expert}}.{down}.weight", {"layers/experts/down_EFD": "D,F"}),
    )


# As transformers 5 has experts in memory, for folders that were saved so.
FUSED = (
    Tensor(
        LAYER + "mlp.experts.gate_up_proj",
        {"layers/experts/gate_EDF": "E,F,D", "layers/experts/up_EDF": "E,F,D"},
        joined=1,
    ),
    Tensor(LAYER + "mlp.experts.down_proj", {"layers/experts/down_EFD": "E,D,F"}),
)
ROUTER = Tensor(LAYER + "mlp.gate.weight", {"layers/experts/router_DE": "E,D"})
SPARSE = LAYER + "block_sparse_moe."

MIXTRAL = Family(
    model_type="mixtral",
    architectures={"MixtralForCausalLM": {}},
    keys=(
        *without(altered(MISTRAL_SIZES, rms_norm_eps=1e-5), "intermediate_size"),
        # Its only width: no layer is without experts.
        Key("intermediate_size", ("expert_d_ff", "d_ff"), 14336),
        Rope(1_000_000.0),
        Windows(None),
        Key("num_local_experts", "num_experts", 8),
        Key("num_experts_per_tok", "experts_per_token", 2),
        Key("router_jitter_noise", "router_jitter", 0.0),
    ),
    always={**ALWAYS, "router_renormalise": True},
    tensors=(
        *(*ENDS, *PRE_NORMS, *ATTENTION),
        Tensor(SPARSE + "gate.weight", {"layers/experts/router_DE": "E,D"}),
        *experts(SPARSE + "experts", "w1", "w3", "w2"),
    ),
    fused=(*FUSED, ROUTER),
)
