"""Gemma 3 in five sizes, text only (Gemma Team 2025, arXiv:2503.19786).

Claim: exactly the published architectures and parameter counts of the decoder, and the published
number of tokens (2, 4, 12 and 14 T for 1B to 27B; 6 T for 270M by its model card) in sequences of
32,768. Batch and optimiser are not published: here the default recipe (configs/common.py). All were
distilled from a larger model: here they learn from text alone. From 4B on, full layers have the
rotation of the release, 8 times slower, which came at the end of the training;
--config.model.rope_scaling=none trains without. The data is yours. Not run here at full length.

Expected: MMLU with 5 examples 59.6 (4B), 74.5 (12B) and 78.6 (27B), by the model card.

    python -m experiments.train --config=configs/gemma3.py:gemma3_4b --workdir=/mnt/BUCKET/gemma3 \\
        --config.data.path=TEXT --config.mesh.fsdp=64
"""

from configs import common, gemma
from configs.base import presets

PATTERN = "local,local,local,local,local,full"


def sized(*sizes, tokens, window=512):
    """Gemma with a norm on both sides of a branch and of each head's queries and keys, and a window
    in five of six layers, which rotate faster.
    """
    config = gemma.sized(*sizes, tokens=tokens)
    common.vocabulary(config, 262_144)
    config.model.update(norm_placement="sandwich", query_key_norm="head")
    config.model.update(attention_pattern=PATTERN, window=window)
    config.model.update(rope_theta=1e6, rope_theta_local=10_000.0)
    common.budget(config, tokens, batch_size=128, sequence_length=32_768)
    return config


def large(*sizes, tokens):
    """From 4B on; 64 tokens more are for images."""
    config = sized(*sizes, tokens=tokens, window=1024)
    common.vocabulary(config, 262_208)
    config.model.update(rope_scaling="linear", rope_factor=8.0)
    return config


def gemma3_270m():
    """268,098,176 parameters; 6 T tokens."""
    return sized(18, 640, 4, 1, 256, 2048, tokens=6e12)


def gemma3_1b():
    """999,885,952 parameters; 2 T tokens."""
    return sized(26, 1152, 4, 1, 256, 6912, tokens=2e12)


def gemma3_4b():
    """3,880,263,168 parameters; 4 T tokens."""
    return large(34, 2560, 8, 4, 256, 10240, tokens=4e12)


def gemma3_12b():
    """11,766,034,176 parameters; 12 T tokens."""
    return large(48, 3840, 16, 8, 256, 15360, tokens=12e12)


def gemma3_27b():
    """27,009,346,304 parameters; 14 T tokens; scores divided by sqrt(d_model / num_heads)."""
    config = large(62, 5376, 32, 16, 128, 21504, tokens=14e12)
    config.model.attention_scale = 168**-0.5
    return config


def tiny():
    """329,664 parameters, of the shape of 27B, trained in seconds on a CPU: a window of 16, scores
    divided by sqrt(d_model / num_heads), not by that of the heads' width.
    """
    sizes = {"num_layers": 6, "num_kv_heads": 2, "head_width": 32, "d_ff": 128, "window": 16}
    return common.tiny(gemma3_27b(), embedding_scale=8.0, attention_scale=0.25, **sizes)


get_config = presets(gemma3_270m, gemma3_1b, gemma3_4b, gemma3_12b, gemma3_27b, tiny)
