"""DeepSeek V2 (arXiv:2405.04434) and V3 (arXiv:2412.19437): latent attention, fine experts.

Rotated pairs are neighbours. V3 may have a layer more, for multi-token prediction.
"""

import dataclasses

from lm.errors import require_in
from lm.hub.family import HEADS_DIVIDE
from lm.hub.keys import Key, Rope, keys, shifted, without
from lm.hub.llama import ENDS, FEEDFORWARD, GATED, LAYER, PRE_NORMS, like_llama, sizes
from lm.hub.qwen import EXPERTS, FUSED
from lm.hub.tensors import rows

LATENT = """
q_a_proj.weight           query_down_DQ
q_a_layernorm.weight      query_latent_norm/scale_Q
q_b_proj.weight           query_QNU=N,U,Q query_rope_QNR=N,r,Q joined=1 merged=0
q_proj.weight             query_DNU=N,U,D query_rope_DNR=N,r,D joined=1 merged=0
kv_a_proj_with_mqa.weight latent_down_DC=C,D key_rope_DR=r,D
kv_a_layernorm.weight     latent_norm/scale_C
kv_b_proj.weight          key_CNU=N,U,C value_CNW=N,W,C joined=1 merged=0
o_proj.weight             output_NWD
"""
TENSORS = (
    *(*rows("", "", ENDS), *rows(LAYER, "layers/", PRE_NORMS)),
    *(*rows(LAYER + "self_attn.", "layers/attention/", LATENT), *FEEDFORWARD, *EXPERTS),
    *rows(LAYER + "mlp.shared_experts.", "layers/experts/shared/", GATED),
)
PREDICTION = """
enorm.weight            embedding_norm/scale_D
hnorm.weight            hidden_norm/scale_D
eh_proj.weight          projection_ID
shared_head.norm.weight final_norm/scale_D
"""
SELECTION = "gate.e_score_correction_bias selection_bias_E=E"


@dataclasses.dataclass(frozen=True)
class Groups:
    """V2's groups of experts: those of config.json count only with one topk_method."""

    names = ("topk_method", "n_group", "topk_group")

    def read(self, flat, model):
        method = flat.get("topk_method") or "greedy"
        require_in("topk_method", method, ("greedy", "group_limited_greedy"))
        if method == "greedy":
            return {"router_groups": 1, "router_groups_kept": 1}
        groups, kept = keys(n_group=1, topk_group=1)
        return groups.read(flat, model) | kept.read(flat, model)

    def write(self, config):
        groups, kept = config.router_groups, config.router_groups_kept
        method = "greedy" if groups == 1 else "group_limited_greedy"
        return {"topk_method": method, "n_group": groups, "topk_group": kept}


def latent(defaults, shared, experts, chosen, width, dense, scale):
    """The rows that both have, by what V2's and V3's defaults are."""
    return (
        *without(sizes(*defaults), "head_dim"),
        *keys(qk_rope_head_dim=64, v_head_dim=128, kv_lora_rank=512),
        shifted("qk_nope_head_dim", "head_width", lambda x: 128 + x["rope_width"], "rope_width"),
        Key("q_lora_rank", "query_latent", 1536, null=0),
        Rope(scale_scores=True),
        *keys(n_routed_experts=experts, num_experts_per_tok=chosen, moe_intermediate_size=width),
        *keys(first_k_dense_replace=dense, routed_scaling_factor=scale),
        Key(
            "n_shared_experts",
            "shared_expert_d_ff",
            lambda model: shared * model["expert_d_ff"],
            to_ours=lambda count, model: count * model["expert_d_ff"],
            to_theirs=lambda width, model: width // model["expert_d_ff"],
        ),
    )


REQUIRED = {"attention_bias": False, "moe_layer_freq": 1}

DEEPSEEK_V2 = like_llama(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    (*latent((102400, 2048, 4096, 32, 32, None, 11008), 2, 64, 1, 1407, 0, 1.0), Groups()),
    required=REQUIRED | {"mlp_bias": False, "norm_topk_prob": False, "scoring_func": "softmax"},
    limits=HEADS_DIVIDE,
    tensors=TENSORS,
    fused=FUSED,
)

DEEPSEEK_V3 = like_llama(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    (
        *latent((129280, 4096, 7168, 61, 128, None, 18432), 1, 256, 8, 2048, 3, 2.5),
        *keys(n_group=8, topk_group=4, norm_topk_prob=True, num_nextn_predict_layers=1),
    ),
    {"router_score": "sigmoid", "router_group_score": "top2", "router_selection_bias": True},
    required=REQUIRED
    | {"rope_interleave": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    tensors=(
        *TENSORS,
        *rows(LAYER + "mlp.", "layers/experts/", SELECTION),
        *rows(LAYER, "mtp/", PREDICTION),
    ),
    fused=FUSED,
    # The layer of multi-token prediction comes with copies of the embedding and the head.
    ignored=r"model\.layers\.\d+\.(self_attn\.rotary_emb\.inv_freq|embed_tokens\.weight|"
    r"shared_head\.head\.weight)",
)
