"""Qwen3 in six sizes and two with experts (Yang et al. 2025, arXiv:2505.09388).

Claim: exactly the published architectures and parameter counts, and the published number of tokens
(36 T) at the length of 4096 before the long-context stage. Batch and optimiser are not published:
here the default recipe (configs/common.py). Experts are balanced over the whole batch; the
coefficient, 0.001, is the release's. The rotation's base of 1e6 is that of the release. The data is
yours. Not run here at full length.

Expected, MMLU of the base models: 52.8, 62.6, 73.0, 76.9, 81.1 and 83.6 (0.6B to 32B), 81.4
(30B-A3B) and 87.8 (235B-A22B) (section 3.3).

    python -m experiments.train --config=configs/qwen3.py:qwen3_8b --workdir=/mnt/BUCKET/qwen3 \\
        --config.data.path=TEXT --config.mesh.fsdp=64
"""

from configs import common
from configs.base import presets


def sized(num_layers, d_model, num_heads, num_kv_heads, peak_lr=3e-4, **model):
    config = common.llama_block()
    common.vocabulary(config, 151_936)
    config.model.update(num_layers=num_layers, d_model=d_model)
    config.model.update(num_heads=num_heads, num_kv_heads=num_kv_heads, head_width=128)
    config.model.update(query_key_norm="head", norm_eps=1e-6, rope_theta=1e6)
    config.model.update(model)
    common.budget(config, tokens=36e12, batch_size=1024, sequence_length=4096)
    config.optim.peak_lr = peak_lr
    return config


def with_experts(*sizes, expert_d_ff, **more):
    config = sized(*sizes, **more)
    config.model.update(num_experts=128, experts_per_token=8, expert_d_ff=expert_d_ff)
    config.model.router_renormalise = True
    config.objective.router_aux_loss = 0.001
    return config


def qwen3_0_6b():
    """596,049,920 parameters; one table for input and output, as up to 4B."""
    return sized(28, 1024, 16, 8, d_ff=3072, tied_embedding=True)


def qwen3_1_7b():
    """1,720,574,976 parameters."""
    return sized(28, 2048, 16, 8, d_ff=6144, tied_embedding=True)


def qwen3_4b():
    """4,022,468,096 parameters."""
    return sized(36, 2560, 32, 8, d_ff=9728, tied_embedding=True)


def qwen3_8b():
    """8,190,735,360 parameters."""
    return sized(36, 4096, 32, 8, d_ff=12288)


def qwen3_14b():
    """14,768,307,200 parameters."""
    return sized(40, 5120, 40, 8, d_ff=17408)


def qwen3_32b():
    """32,762,123,264 parameters."""
    return sized(64, 5120, 64, 8, d_ff=25600, peak_lr=1.5e-4)


def qwen3_30b_a3b():
    """30,532,122,624 parameters, of which a token uses 3,353,032,704."""
    return with_experts(48, 2048, 32, 4, expert_d_ff=768, peak_lr=1.5e-4)


def qwen3_235b_a22b():
    """235,093,634,560 parameters, of which a token uses 22,190,763,520."""
    return with_experts(94, 4096, 64, 4, expert_d_ff=1536, peak_lr=1.5e-4)


def tiny():
    """299,840 parameters, of the same shape, trained in seconds on a CPU; heads exceed d_model."""
    return common.tiny(qwen3_8b(), num_kv_heads=2, head_width=32, d_ff=176)


def tiny_moe():
    """559,936 parameters, of the shape of 30B-A3B, trained in seconds on a CPU: 2 of 8 experts."""
    experts = {"num_experts": 8, "experts_per_token": 2, "expert_d_ff": 64}
    return common.tiny(qwen3_30b_a3b(), num_kv_heads=2, head_width=32, **experts)


SIZES = (qwen3_0_6b, qwen3_1_7b, qwen3_4b, qwen3_8b, qwen3_14b, qwen3_32b)
get_config = presets(*SIZES, qwen3_30b_a3b, qwen3_235b_a22b, tiny, tiny_moe)
