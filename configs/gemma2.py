"""Gemma 2 in three sizes (Gemma Team 2024, arXiv:2408.00118).
Claim: exactly the published architectures and parameter counts, and the published number of tokens
(2, 8 and 13 T) in sequences of 8192. Batch and optimiser are not published: here the default recipe
(configs/common.py). 2B and 9B were distilled from a larger model: here they learn from text alone.

    python -m experiments.train --config=configs/gemma2.py --workdir=runs/a --config.mesh.fsdp=64
"""

from configs import gemma
from configs.common import preset, presets, tiny_preset


def sized(scored_width, *sizes):
    """Gemma with a norm on both sides of a branch, caps, and a window in every second layer.
    scored_width: scores are divided by its square root; of 27B it is d_model / num_heads.
    """
    config = gemma.sized(*sizes)
    config.model.update(norm_placement="sandwich", attention_cap=50.0, logit_cap=30.0)
    config.model.update(attention_pattern="local,full", window=4096)
    config.model.attention_scale = scored_width**-0.5
    return config


gemma2_2b = preset("gemma2_2b", 2_614_341_888, sized, 256, 26, 2304, 8, 4, 256, 9216, 2e12)
gemma2_9b = preset("gemma2_9b", 9_241_705_984, sized, 256, 42, 3584, 16, 8, 256, 14336, 8e12)
gemma2_27b = preset("gemma2_27b", 27_227_128_320, sized, 144, 46, 4608, 32, 16, 128, 36864, 13e12)
# As of 27B, scores are divided by sqrt(d_model / num_heads).
TINY = {"num_kv_heads": 2, "head_width": 32, "d_ff": 256, "window": 16}
tiny = tiny_preset(gemma2_27b, 328_768, embedding_scale=8.0, attention_scale=0.25, **TINY)
get_config = presets(gemma2_2b, gemma2_9b, gemma2_27b, tiny)
