"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825), version 0.1 with its window of 4096 in every
layer, and 0.3 without, which has 768 more tokens, for tools.
Claim: exactly the published architectures and parameter counts. Of the training nothing is
published but the length of 8192: the rest is the default recipe (configs/common.py), 2 T tokens
included.

    python -m experiments.train --config=configs/mistral.py --workdir=runs/a --config.mesh.fsdp=64
"""

from configs.common import budget, llama_block, preset, presets, tiny_preset


def sized(vocab_size, **model):
    config = llama_block(vocab_size, 32, 4096, 32, 14336, num_kv_heads=8, **model)
    budget(config, tokens=2e12, batch_size=512, sequence_length=8192)
    return config


LOCAL = {"attention_pattern": "local", "window": 4096}
mistral_7b_v0_1 = preset("mistral_7b_v0_1", 7_241_732_096, sized, 32_000, **LOCAL)
mistral_7b_v0_3 = preset("mistral_7b_v0_3", 7_248_023_552, sized, 32_768, rope_theta=1e6)
tiny = tiny_preset(mistral_7b_v0_1, 250_432, num_kv_heads=2, d_ff=176, window=16)
get_config = presets(mistral_7b_v0_1, mistral_7b_v0_3, tiny)
