"""Qwen3 in six sizes and two with experts (Yang et al. 2025, arXiv:2505.09388).
Claim: exactly the published architectures and parameter counts, and the published number of tokens
(36 T) at the length of 4096 before the long-context stage. Batch and optimiser are not published:
here the default recipe (configs/common.py). Experts are balanced over the whole batch; the
coefficient, 0.001, and the rotation's base of 1e6 are those of the release.

    python -m experiments.train --config=configs/qwen3.py:qwen3_1_7b --workdir=runs/qwen3
"""

from configs import qwen2
from configs.common import preset, presets, tiny_preset


def sized(num_layers, d_model, num_heads, num_kv_heads, d_ff, peak_lr=3e-4, **model):
    sizes = (num_layers, d_model, num_heads, num_kv_heads, d_ff)
    config = qwen2.sized(*sizes, 36e12, peak_lr, head_width=128, **model)
    config.model.update(query_key_norm="head", qkv_bias=False)
    return config


def with_experts(expert_d_ff, *sizes):
    config = sized(*sizes, None, peak_lr=1.5e-4, num_experts=128, experts_per_token=8)
    config.model.update(expert_d_ff=expert_d_ff, router_renormalise=True)
    config.objective.router_aux_loss = 0.001
    return config


TIED = {"tied_embedding": True}
qwen3_0_6b = preset("qwen3_0_6b", 596_049_920, sized, 28, 1024, 16, 8, 3072, **TIED)
qwen3_1_7b = preset("qwen3_1_7b", 1_720_574_976, sized, 28, 2048, 16, 8, 6144, **TIED)
qwen3_4b = preset("qwen3_4b", 4_022_468_096, sized, 36, 2560, 32, 8, 9728, **TIED)
qwen3_8b = preset("qwen3_8b", 8_190_735_360, sized, 36, 4096, 32, 8, 12288)
qwen3_14b = preset("qwen3_14b", 14_768_307_200, sized, 40, 5120, 40, 8, 17408)
qwen3_32b = preset("qwen3_32b", 32_762_123_264, sized, 64, 5120, 64, 8, 25600, 1.5e-4)
A3B = "30,532,122,624 parameters, of which a token uses 3,353,032,704."
A22B = "235,093,634,560 parameters, of which a token uses 22,190,763,520."
qwen3_30b_a3b = preset("qwen3_30b_a3b", A3B, with_experts, 768, 48, 2048, 32, 4)
qwen3_235b_a22b = preset("qwen3_235b_a22b", A22B, with_experts, 1536, 94, 4096, 64, 4)
tiny = tiny_preset(qwen3_8b, 299_840, num_kv_heads=2, head_width=32, d_ff=176)
TINY = {"num_experts": 8, "experts_per_token": 2, "expert_d_ff": 64, "num_kv_heads": 2}
tiny_moe = tiny_preset(qwen3_30b_a3b, 559_936, "tiny_moe", head_width=32, **TINY)
SIZES = (qwen3_0_6b, qwen3_1_7b, qwen3_4b, qwen3_8b, qwen3_14b, qwen3_32b)
get_config = presets(*SIZES, qwen3_30b_a3b, qwen3_235b_a22b, tiny, tiny_moe)
