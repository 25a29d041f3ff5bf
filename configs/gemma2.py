"""Gemma 2 in three sizes (Gemma Team 2024, arXiv:2408.00118).

Claim: exactly the published architectures and parameter counts, and the published number of tokens
(2, 8 and 13 T) in sequences of 8192. Batch and optimiser are not published: here the default recipe
(configs/common.py). 2B and 9B were distilled from a larger model: here they learn from text alone.
The data is yours. Not run here at full length.

Expected: MMLU with 5 examples 71.3 (9B) and 75.2 (27B), in the report's tables of base models.

    python -m experiments.train --config=configs/gemma2.py --workdir=/mnt/BUCKET/gemma2 \\
        --config.data.path=TEXT --config.mesh.fsdp=64
"""

from configs import common, gemma
from configs.base import presets


def sized(*sizes, scored_width=256, **more):
    """Gemma with a norm on both sides of a branch, caps, and a window in every second layer.

    scored_width: scores are divided by its square root.
    """
    config = gemma.sized(*sizes, **more)
    config.model.update(norm_placement="sandwich", attention_cap=50.0, logit_cap=30.0)
    config.model.update(attention_pattern="local,full", window=4096)
    config.model.attention_scale = scored_width**-0.5
    return config


def gemma2_2b():
    """2,614,341,888 parameters; 2 T tokens."""
    return sized(26, 2304, 8, 4, 256, 9216, tokens=2e12)


def gemma2_9b():
    """9,241,705,984 parameters; 8 T tokens."""
    return sized(42, 3584, 16, 8, 256, 14336, tokens=8e12)


def gemma2_27b():
    """27,227,128,320 parameters; 13 T tokens; scores divided by sqrt(d_model / num_heads)."""
    return sized(46, 4608, 32, 16, 128, 36864, tokens=13e12, scored_width=144)


def tiny():
    """328,768 parameters, of the shape of 27B, trained in seconds on a CPU: a window of 16, scores
    divided by sqrt(d_model / num_heads), not by that of the heads' width.
    """
    sizes = {"num_kv_heads": 2, "head_width": 32, "d_ff": 256, "window": 16}
    return common.tiny(gemma2_27b(), embedding_scale=8.0, attention_scale=0.25, **sizes)


get_config = presets(gemma2_2b, gemma2_9b, gemma2_27b, tiny)
