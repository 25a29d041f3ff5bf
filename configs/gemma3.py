"""Gemma 3 in five sizes, text only (Gemma Team 2025, arXiv:2503.19786).
Claim: exactly the published architectures and parameter counts of the decoder, and the published
number of tokens (2, 4, 12 and 14 T for 1B to 27B; 6 T for 270M by its model card) in sequences of
32,768. Batch and optimiser are not published: here the default recipe (configs/common.py). All were
distilled from a larger model: here they learn from text alone. From 4B on, full layers have the
rotation of the release, 8 times slower, which came at the end of the training;
--config.model.rope_scaling=none trains without.

    python -m experiments.train --config=configs/gemma3.py:gemma3_1b --workdir=runs/gemma3
"""

from configs import gemma
from configs.common import preset, presets, tiny_preset, vocabulary


def sized(*sizes):
    """Gemma with more norms, and a window in five of six layers, which rotate faster."""
    config = gemma.sized(*sizes, length=32_768)
    vocabulary(config, 262_144)
    config.model.update(norm_placement="sandwich", query_key_norm="head")
    config.model.update(attention_pattern="local,local,local,local,local,full", window=512)
    config.model.update(rope_theta=1e6, rope_theta_local=10_000.0)
    return config


def large(*sizes, **model):
    """From 4B on; 64 tokens more are for images."""
    config = sized(*sizes)
    vocabulary(config, 262_208)
    config.model.update(window=1024, rope_scaling="linear", rope_factor=8.0)
    config.model.update(model)
    return config


gemma3_270m = preset("gemma3_270m", 268_098_176, sized, 18, 640, 4, 1, 256, 2048, 6e12)
gemma3_1b = preset("gemma3_1b", 999_885_952, sized, 26, 1152, 4, 1, 256, 6912, 2e12)
gemma3_4b = preset("gemma3_4b", 3_880_263_168, large, 34, 2560, 8, 4, 256, 10240, 4e12)
gemma3_12b = preset("gemma3_12b", 11_766_034_176, large, 48, 3840, 16, 8, 256, 15360, 12e12)
G27B = (62, 5376, 32, 16, 128, 21504, 14e12)  # scores are divided by sqrt(d_model / num_heads)
gemma3_27b = preset("gemma3_27b", 27_009_346_304, large, *G27B, attention_scale=168**-0.5)
TINY = {"num_layers": 6, "num_kv_heads": 2, "head_width": 32, "d_ff": 128, "window": 16}
tiny = tiny_preset(gemma3_27b, 329_664, embedding_scale=8.0, attention_scale=0.25, **TINY)
get_config = presets(gemma3_270m, gemma3_1b, gemma3_4b, gemma3_12b, gemma3_27b, tiny)
