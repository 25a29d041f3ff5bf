"""Qwen2 (Yang et al. 2024, arXiv:2407.10671) with Qwen2.5 (arXiv:2412.15115), Qwen2-57B-A14B and
Qwen1.5-MoE-A2.7B.

Claim: exactly the published architectures and parameter counts, and the published number of tokens
(7 T, 0.5B 12 T; Qwen2.5 18 T) at the length of 4096 before the long-context stage. Batch and
optimiser are not published: here the default recipe (configs/common.py). The experts of 57B-A14B
went on from Qwen2 7B for 4.5 T tokens, and those of A2.7B from Qwen-1.8B for an unpublished number:
here all begin anew, for 4.5 T. The rotation's base of 1e6 is that of the release. The data is
yours. Not run here at full length.

Expected: MMLU 45.4, 56.5, 70.3 and 84.2 (Qwen2 0.5B to 72B), 76.5 (57B-A14B), 65.6, 79.7 and 83.3
(Qwen2.5 3B, 14B and 32B), in the tables of base models of the two reports.

    python -m experiments.train --config=configs/qwen2.py:qwen2_7b --workdir=/mnt/BUCKET/qwen2 \\
        --config.data.path=TEXT --config.mesh.fsdp=64
"""

from configs import common
from configs.base import presets


def sized(num_layers, d_model, num_heads, num_kv_heads, tokens, peak_lr=3e-4, **model):
    config = common.llama_block()
    common.vocabulary(config, 151_936)
    config.model.update(num_layers=num_layers, d_model=d_model)
    config.model.update(num_heads=num_heads, num_kv_heads=num_kv_heads)
    config.model.update(qkv_bias=True, norm_eps=1e-6, rope_theta=1e6)
    config.model.update(model)
    common.budget(config, tokens, batch_size=1024, sequence_length=4096)
    config.optim.peak_lr = peak_lr
    return config


def large(*sizes, **more):
    """From 7B on (Qwen2.5: 14B) the embedding has 128 rows more."""
    config = sized(*sizes, **more)
    common.vocabulary(config, 152_064)
    return config


def with_experts(config, num_experts, experts_per_token, expert_d_ff, shared_expert_d_ff):
    config.model.update(num_experts=num_experts, experts_per_token=experts_per_token)
    config.model.update(expert_d_ff=expert_d_ff, shared_expert_d_ff=shared_expert_d_ff)
    config.model.shared_expert_gate = True
    config.objective.router_aux_loss = 0.001  # the release's
    return config


def qwen2_0_5b():
    """494,032,768 parameters; 12 T tokens; one table for input and output."""
    return sized(24, 896, 14, 2, tokens=12e12, d_ff=4864, tied_embedding=True)


def qwen2_1_5b():
    """1,543,714,304 parameters; 7 T tokens; one table for input and output."""
    return sized(28, 1536, 12, 2, tokens=7e12, d_ff=8960, tied_embedding=True)


def qwen2_7b():
    """7,615,616,512 parameters; 7 T tokens."""
    return large(28, 3584, 28, 4, tokens=7e12, d_ff=18944)


def qwen2_72b():
    """72,706,203,648 parameters; 7 T tokens."""
    return large(80, 8192, 64, 8, tokens=7e12, d_ff=29568, peak_lr=1.5e-4)


def qwen2_5_3b():
    """3,085,938,688 parameters; 18 T tokens; one table for input and output."""
    return sized(36, 2048, 16, 2, tokens=18e12, d_ff=11008, tied_embedding=True)


def qwen2_5_14b():
    """14,770,033,664 parameters; 18 T tokens."""
    return large(48, 5120, 40, 8, tokens=18e12, d_ff=13824)


def qwen2_5_32b():
    """32,763,876,352 parameters; 18 T tokens."""
    return large(64, 5120, 40, 8, tokens=18e12, d_ff=27648, peak_lr=1.5e-4)


def qwen2_57b_a14b():
    """57,408,658,944 parameters; 8 of 64 experts, and one that all tokens take, behind a gate."""
    config = sized(28, 3584, 28, 4, tokens=4.5e12, peak_lr=1.5e-4)
    return with_experts(config, 64, 8, expert_d_ff=2560, shared_expert_d_ff=20480)


def qwen1_5_moe_a2_7b():
    """14,315,784,192 parameters; 4 of 60 experts, and one that all tokens take, behind a gate."""
    config = sized(24, 2048, 16, 16, tokens=4.5e12)
    return with_experts(config, 60, 4, expert_d_ff=1408, shared_expert_d_ff=5632)


def tiny():
    """218,176 parameters, of the same shape, trained in seconds on a CPU."""
    return common.tiny(qwen2_0_5b(), num_kv_heads=2, d_ff=176)


def tiny_moe():
    """363,840 parameters, of the shape of 57B-A14B, trained in seconds on a CPU: 2 of 8 experts."""
    experts = {"num_experts": 8, "experts_per_token": 2, "expert_d_ff": 32}
    return common.tiny(qwen2_57b_a14b(), num_kv_heads=2, shared_expert_d_ff=64, **experts)


QWEN2 = (qwen2_0_5b, qwen2_1_5b, qwen2_7b, qwen2_72b)
QWEN2_5 = (qwen2_5_3b, qwen2_5_14b, qwen2_5_32b)
get_config = presets(*QWEN2, *QWEN2_5, qwen2_57b_a14b, qwen1_5_moe_a2_7b, tiny, tiny_moe)
