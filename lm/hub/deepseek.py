"""DeepSeek V2 (arXiv:2405.04434) and V3 (arXiv:2412.19437): latent attention, fine experts.

Rotated pairs are neighbours. V3 may have a layer more, for multi-token prediction.
"""

import dataclasses

from lm.errors import require_in
from lm.hub.family import Family
from lm.hub.keys import Key, Rope, altered, without
from lm.hub.llama import ALWAYS, DIVIDES, ENDS, FEEDFORWARD, LAYER, PRE_NORMS, SIZES
from lm.hub.mistral import FUSED
from lm.hub.qwen import EXPERTS, SHARED, SHARED_EXPERT
from lm.hub.tensors import Tensor

SELF = LAYER + "self_attn."
ATTENTION = (
    Tensor(SELF + "q_a_proj.weight", {"layers/attention/query_down_DQ": "Q,D"}),
    Tensor(SELF + "q_a_layernorm.weight", {"layers/attention/query_latent_norm/scale_Q": "Q"}),
    Tensor(
        SELF + "q_b_proj.weight",
        {"layers/attention/query_QNU": "N,U,Q", "layers/attention/query_rope_QNR": "N,r,Q"},
        joined=1,
        merged=0,
    ),
    Tensor(
        SELF + "q_proj.weight",
        {"layers/attention/query_DNU": "N,U,D", "layers/attention/query_rope_DNR": "N,r,D"},
        joined=1,
        merged=0,
    ),
    Tensor(
        SELF + "kv_a_proj_with_mqa.weight",
        {"layers/attention/latent_down_DC": "C,D", "layers/attention/key_rope_DR": "r,D"},
    ),
    Tensor(SELF + "kv_a_layernorm.weight", {"layers/attention/latent_norm/scale_C": "C"}),
    Tensor(
        SELF + "kv_b_proj.weight",
        {"layers/attention/key_CNU": "N,U,C", "layers/attention/value_CNW": "N,W,C"},
        joined=1,
        merged=0,
    ),
    Tensor(SELF + "o_proj.weight", {"layers/attention/output_NWD": "D,NW"}),
)
# Named as Qwen's, but in the plural and without a gate.
SHARED_EXPERTS = tuple(
    dataclasses.replace(row, name=row.name.replace(SHARED, LAYER + "mlp.shared_experts."))
    for row in SHARED_EXPERT[:3]
)
TENSORS = (*ENDS, *PRE_NORMS, *ATTENTION, *FEEDFORWARD, *EXPERTS, *SHARED_EXPERTS)
PREDICTION = (
    Tensor(LAYER + "enorm.weight", {"mtp/embedding_norm/scale_D": "D"}),
    Tensor(LAYER + "hnorm.weight", {"mtp/hidden_norm/scale_D": "D"}),
    Tensor(LAYER + "eh_proj.weight", {"mtp/projection_ID": "D,I"}),
    Tensor(LAYER + "shared_head.norm.weight", {"mtp/final_norm/scale_D": "D"}),
)


@dataclasses.dataclass(frozen=True)
class Groups:
    """V2's groups of experts: those of config.json count only with one topk_method."""

    names = ("topk_method", "n_group", "topk_group")

    def read(self, flat, model):
        method = flat.get("topk_method") or "greedy"
        require_in("topk_method", method, ("greedy", "group_limited_greedy"))
        if method == "greedy":
            return {"router_groups": 1, "router_groups_kept": 1}
        rows = (Key("n_group", "router_groups", 1), Key("topk_group", "router_groups_kept", 1))
        return {ours: value for row in rows for ours, value in row.read(flat, model).items()}

    def write(self, config):
        groups, kept = config.router_groups, config.router_groups_kept
        method = "greedy" if groups == 1 else "group_limited_greedy"
        return {"topk_method": method, "n_group": groups, "topk_group": kept}


def keys(shared, experts, chosen, width, dense, scale):
    """The rows that both have, by what V2's and V3's defaults are."""
    return (
        *without(SIZES, "head_dim"),
        Key("qk_rope_head_dim", "rope_width", 64),
        Key(
            "qk_nope_head_dim",
            "head_width",
            lambda model: 128 + model["rope_width"],
            to_ours=lambda width, model: width + model["rope_width"],
            to_theirs=lambda width, model: width - model["rope_width"],
        ),
        Key("v_head_dim", "value_width", 128),
        Key("kv_lora_rank", "kv_latent", 512),
        Key("q_lora_rank", "query_latent", 1536, null=0),
        Rope(scale_scores=True),
        Key("n_routed_experts", "num_experts", experts),
        Key("num_experts_per_tok", "experts_per_token", chosen),
        Key("moe_intermediate_size", "expert_d_ff", width),
        Key(
            "n_shared_experts",
            "shared_expert_d_ff",
            lambda model: shared * model["expert_d_ff"],
            to_ours=lambda count, model: count * model["expert_d_ff"],
            to_theirs=lambda width, model: width // model["expert_d_ff"],
        ),
        Key("first_k_dense_replace", "dense_layers", dense, least=0),
        Key("routed_scaling_factor", "router_scale", scale),
    )


REQUIRED = {"attention_bias": False, "moe_layer_freq": 1}

DEEPSEEK_V2 = Family(
    model_type="deepseek_v2",
    architectures={"DeepseekV2ForCausalLM": {}},
    keys=(
        *altered(keys(2, 64, 1, 1407, 0, 1.0), vocab_size=102400),
        Groups(),
    ),
    always=ALWAYS,
    required={
        **REQUIRED,
        "mlp_bias": False,
        "norm_topk_prob": False,
        "scoring_func": "softmax",
    },
    limits=DIVIDES,
    tensors=TENSORS,
    fused=FUSED,
)

V3_SIZES = {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "max_position_embeddings": 4096,
}

DEEPSEEK_V3 = Family(
    model_type="deepseek_v3",
    architectures={"DeepseekV3ForCausalLM": {}},
    keys=(
        *altered(keys(1, 256, 8, 2048, 3, 2.5), **V3_SIZES),
        Key("n_group", "router_groups", 8),
        Key("topk_group", "router_groups_kept", 4),
        Key("norm_topk_prob", "router_renormalise", True),
        Key("num_nextn_predict_layers", "mtp_depth", 1, least=0),
    ),
    always={
        **ALWAYS,
        "router_score": "sigmoid",
        "router_group_score": "top2",
        "router_selection_bias": True,
    },
    required={
        **REQUIRED,
        "rope_interleave": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    tensors=(
        *TENSORS,
        Tensor(
            LAYER + "mlp.gate.e_score_correction_bias", {"layers/experts/selection_bias_E": "E"}
        ),
        *PREDICTION,
    ),
    fused=FUSED,
    # The layer of multi-token prediction comes with copies of the embedding and the head.
    ignored=r"model\.layers\.\d+\.(self_attn\.rotary_emb\.inv_freq|embed_tokens\.weight|"
    r"shared_head\.head\.weight)",
)
