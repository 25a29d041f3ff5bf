"""Gemma 2B and 7B (Gemma Team 2024, arXiv:2403.08295).

Claim: exactly the published architectures and parameter counts, and the published number of tokens
(3 and 6 T) in sequences of 8192. Batch and optimiser are not published: here the default recipe
(configs/common.py). The data is yours. Not run here at full length.

Expected: MMLU with 5 examples 42.3 (2B) and 64.3 (7B) (table 6).

    python -m experiments.train --config=configs/gemma.py --workdir=/mnt/BUCKET/gemma \\
        --config.data.path=TEXT --config.mesh.fsdp=64
"""

from configs import common
from configs.base import presets


def sized(num_layers, d_model, num_heads, num_kv_heads, head_width, d_ff, tokens):
    config = common.llama_block()
    common.vocabulary(config, 256_000)
    config.model.update(num_layers=num_layers, d_model=d_model, d_ff=d_ff)
    config.model.update(num_heads=num_heads, num_kv_heads=num_kv_heads, head_width=head_width)
    config.model.update(norm_eps=1e-6, norm_offset=True, activation="gelu_tanh")
    config.model.update(tied_embedding=True, embedding_scale=d_model**0.5)
    common.budget(config, tokens, batch_size=512, sequence_length=8192)
    return config


def gemma_2b():
    """2,506,172,416 parameters; 3 T tokens; one key head."""
    return sized(18, 2048, 8, 1, 256, 16384, tokens=3e12)


def gemma_7b():
    """8,537,680,896 parameters; 6 T tokens; the heads' 4096 are not the width, 3072."""
    return sized(28, 3072, 16, 16, 256, 24576, tokens=6e12)


def tiny():
    """311,872 parameters, of the shape of 2B, trained in seconds on a CPU: one key head."""
    sizes = {"num_kv_heads": 1, "head_width": 32, "d_ff": 256}
    return common.tiny(gemma_2b(), embedding_scale=8.0, **sizes)


get_config = presets(gemma_2b, gemma_7b, tiny)
