"""GPT-OSS 20B and 120B (OpenAI 2025, arXiv:2508.10925).
Claim: exactly the published architectures and parameter counts, of the weights before they are put
into 4 bits. Of the training only the length of 4096 is known, from the release's YaRN, which takes
it to 131,072: the rest is the default recipe (configs/common.py), 2 T tokens included, and 0.01 of
the router's balance loss (arXiv:2101.03961).

    python -m experiments.train --config=configs/gpt_oss.py --workdir=runs/a --config.mesh.fsdp=64
"""

from configs.common import llama_block, preset, presets, tiny_preset


def sized(num_layers, num_experts, peak_lr):
    config = llama_block(201_088, num_layers, 2880, 64, 2880, peak_lr)
    config.model.update(num_kv_heads=8, head_width=64)
    config.model.update(qkv_bias=True, attention_output_bias=True, feedforward_bias=True)
    config.model.update(attention_sinks=True, attention_pattern="local,full", window=128)
    config.model.update(rope_theta=150_000.0, rope_scaling="yarn", rope_factor=32.0)
    config.model.update(rope_original_positions=4096, rope_truncate=False)
    config.model.update(num_experts=num_experts, experts_per_token=4, activation="clamped_silu")
    config.model.update(router_bias=True, router_renormalise=True)
    config.objective.router_aux_loss = 0.01
    return config


SMALL = "20,914,757,184 parameters, of which a token uses 3,608,307,264 besides the embedding."
LARGE = "116,829,156,672 parameters, of which a token uses 5,132,849,472 besides the embedding."
gpt_oss_20b = preset("gpt_oss_20b", SMALL, sized, 24, 32, 3e-4)
gpt_oss_120b = preset("gpt_oss_120b", LARGE, sized, 36, 128, 1.5e-4)
TINY = {"rope_factor": 4.0, "rope_original_positions": 16, "num_kv_heads": 2, "head_width": 32}
TINY |= {"window": 16, "num_experts": 8, "experts_per_token": 2, "d_ff": 64}
tiny = tiny_preset(gpt_oss_20b, 567_152, **TINY)
get_config = presets(gpt_oss_20b, gpt_oss_120b, tiny)
