"""Qwen2 (Yang et al. 2024, arXiv:2407.10671) with Qwen2.5 (arXiv:2412.15115), Qwen2-57B-A14B and
Qwen1.5-MoE-A2.7B.
Claim: exactly the published architectures and parameter counts, and the published number of tokens
(7 T, 0.5B 12 T; Qwen2.5 18 T) at the length of 4096 before the long-context stage. Batch and
optimiser are not published: here the default recipe (configs/common.py). The experts of 57B-A14B
went on from Qwen2 7B for 4.5 T tokens, and those of A2.7B from Qwen-1.8B for an unpublished number:
here all begin anew, for 4.5 T. The rotation's base of 1e6 and the balance loss's coefficient of
0.001 are those of the release.

    python -m experiments.train --config=configs/qwen2.py:qwen2_1_5b --workdir=runs/qwen2
"""

from configs.common import budget, llama_block, preset, presets, tiny_preset, vocabulary


def sized(num_layers, d_model, num_heads, num_kv_heads, d_ff, tokens, peak_lr=3e-4, **model):
    config = llama_block(151_936, num_layers, d_model, num_heads, d_ff, peak_lr)
    config.model.update(num_kv_heads=num_kv_heads, qkv_bias=True, norm_eps=1e-6, rope_theta=1e6)
    config.model.update(model)
    budget(config, tokens, batch_size=1024, sequence_length=4096)
    return config


def large(*sizes):
    """From 7B on (Qwen2.5: 14B) the embedding has 128 rows more."""
    config = sized(*sizes)
    vocabulary(config, 152_064)
    return config


def with_experts(peak_lr, num_experts, experts_per_token, expert_d_ff, shared_d_ff, *sizes):
    """One more expert, of width shared_d_ff, is for all tokens, behind a gate."""
    config = sized(*sizes, None, 4.5e12, peak_lr, shared_expert_gate=True)
    config.model.update(num_experts=num_experts, experts_per_token=experts_per_token)
    config.model.update(expert_d_ff=expert_d_ff, shared_expert_d_ff=shared_d_ff)
    config.objective.router_aux_loss = 0.001
    return config


TIED = {"tied_embedding": True}
qwen2_0_5b = preset("qwen2_0_5b", 494_032_768, sized, 24, 896, 14, 2, 4864, 12e12, **TIED)
qwen2_1_5b = preset("qwen2_1_5b", 1_543_714_304, sized, 28, 1536, 12, 2, 8960, 7e12, **TIED)
qwen2_7b = preset("qwen2_7b", 7_615_616_512, large, 28, 3584, 28, 4, 18944, 7e12)
qwen2_72b = preset("qwen2_72b", 72_706_203_648, large, 80, 8192, 64, 8, 29568, 7e12, 1.5e-4)
qwen2_5_3b = preset("qwen2_5_3b", 3_085_938_688, sized, 36, 2048, 16, 2, 11008, 18e12, **TIED)
qwen2_5_14b = preset("qwen2_5_14b", 14_770_033_664, large, 48, 5120, 40, 8, 13824, 18e12)
qwen2_5_32b = preset("qwen2_5_32b", 32_763_876_352, large, 64, 5120, 40, 8, 27648, 18e12, 1.5e-4)
A14B = (1.5e-4, 64, 8, 2560, 20480, 28, 3584, 28, 4)
A2_7B = (3e-4, 60, 4, 1408, 5632, 24, 2048, 16, 16)
qwen2_57b_a14b = preset("qwen2_57b_a14b", 57_408_658_944, with_experts, *A14B)
qwen1_5_moe_a2_7b = preset("qwen1_5_moe_a2_7b", 14_315_784_192, with_experts, *A2_7B)
tiny = tiny_preset(qwen2_0_5b, 218_176, num_kv_heads=2, d_ff=176)
TINY = {"num_experts": 8, "experts_per_token": 2, "expert_d_ff": 32, "shared_expert_d_ff": 64}
tiny_moe = tiny_preset(qwen2_57b_a14b, 363_840, "tiny_moe", num_kv_heads=2, **TINY)
QWEN2 = (qwen2_0_5b, qwen2_1_5b, qwen2_7b, qwen2_72b)
QWEN2_5 = (qwen2_5_3b, qwen2_5_14b, qwen2_5_32b)
get_config = presets(*QWEN2, *QWEN2_5, qwen2_57b_a14b, qwen1_5_moe_a2_7b, tiny, tiny_moe)
