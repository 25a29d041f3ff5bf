"""GPT-OSS 20B and 120B (OpenAI 2025, arXiv:2508.10925).

Claim: exactly the published architectures and parameter counts, of the weights before they are put
into 4 bits. Of the training only the length of 4096 is known, from the release's YaRN, which takes
it to 131,072: the rest is the default recipe (configs/common.py), 2 T tokens included, and 0.01 of
the router's balance loss (arXiv:2101.03961). The data is yours. Not run here at full length.

Expected: nothing can be given, as no base model was released.

    python -m experiments.train --config=configs/gpt_oss.py --workdir=/mnt/BUCKET/gpt_oss \\
        --config.data.path=TEXT --config.mesh.fsdp=64
"""

from configs import common
from configs.base import presets


def sized(num_layers, num_experts, peak_lr):
    config = common.llama_block()
    common.vocabulary(config, 201_088)
    config.model.update(num_layers=num_layers, d_model=2880)
    config.model.update(num_heads=64, num_kv_heads=8, head_width=64, d_ff=2880)
    config.model.update(qkv_bias=True, attention_output_bias=True, feedforward_bias=True)
    config.model.update(attention_sinks=True, attention_pattern="local,full", window=128)
    config.model.update(rope_theta=150_000.0, rope_scaling="yarn", rope_factor=32.0)
    config.model.update(rope_original_positions=4096, rope_truncate=False)
    config.model.update(num_experts=num_experts, experts_per_token=4, activation="clamped_silu")
    config.model.update(router_bias=True, router_renormalise=True)
    config.objective.router_aux_loss = 0.01
    config.optim.peak_lr = peak_lr
    return config


def gpt_oss_20b():
    """20,914,757,184 parameters, of which a token uses 3,608,307,264 besides the embedding."""
    return sized(24, 32, peak_lr=3e-4)


def gpt_oss_120b():
    """116,829,156,672 parameters, of which a token uses 5,132,849,472 besides the embedding."""
    return sized(36, 128, peak_lr=1.5e-4)


def tiny():
    """567,152 parameters, of the same shape, trained in seconds on a CPU: 2 of 8 experts, a window
    of 16, heads wider than d_model, and a rotation stretched from 16 positions to 64.
    """
    experts = {"num_experts": 8, "experts_per_token": 2, "d_ff": 64}
    rotation = {"rope_factor": 4.0, "rope_original_positions": 16}
    heads = {"num_kv_heads": 2, "head_width": 32, "window": 16}
    return common.tiny(gpt_oss_20b(), **experts, **rotation, **heads)


get_config = presets(gpt_oss_20b, gpt_oss_120b, tiny)
