"""OLMo 2 in four sizes (OLMo Team 2024, arXiv:2501.00656), without the mid-training stage.

Claim: exactly the published architectures, parameter counts and recipe: 4, 5 and 6 T tokens (7B,
13B, 32B) in batches of 1024 (7B) or 2048 sequences of 4096, AdamW 0.9, 0.95 and 1e-8, peak learning
rates 3e-4, 9e-4 and 6e-4, 2000 steps of warm-up, cosine to 10 %, decay 0.1 but not of the
embeddings, clipping at 1.0, z-loss 1e-5, std 0.02 throughout. The paper has no 1B: here its 4 T
tokens (model card), and the recipe of 7B. The data is yours. Not run here at full length.

Expected, after mid-training: MMLU 63.7 (7B), 67.5 (13B) and 74.9 (32B), in the paper's and the
model cards' tables of base models.

    python -m experiments.train --config=configs/olmo2.py:olmo2_7b --workdir=/mnt/BUCKET/olmo2 \\
        --config.data.path=TEXT --config.mesh.fsdp=64
"""

from configs import common
from configs.base import presets


def sized(num_layers, d_model, num_heads, d_ff, tokens=4e12, batch_size=1024, peak_lr=3e-4):
    config = common.llama_block()
    config.model.update(vocab_size=100_352, num_layers=num_layers, d_model=d_model)
    config.model.update(num_heads=num_heads, d_ff=d_ff, rope_theta=500_000.0, norm_eps=1e-6)
    config.model.update(norm_placement="output", query_key_norm="full")
    config.objective.z_loss = 1e-5
    config.data.tokenizer_size = 100_278  # rows beyond these are for a mesh to divide
    common.budget(config, tokens, batch_size, sequence_length=4096)
    config.optim.update(peak_lr=peak_lr, eps=1e-8, decay="kernels")
    return config


def olmo2_1b():
    """1,484,916,736 parameters; 4 T tokens."""
    return sized(16, 2048, 16, 8192)


def olmo2_7b():
    """7,298,617,344 parameters; 4 T tokens."""
    return sized(32, 4096, 32, 11008)


def olmo2_13b():
    """13,716,198,400 parameters; 5 T tokens."""
    return sized(40, 5120, 40, 13824, tokens=5e12, batch_size=2048, peak_lr=9e-4)


def olmo2_32b():
    """32,234,279,936 parameters; 6 T tokens; 8 key heads."""
    config = sized(64, 5120, 40, 27648, tokens=6e12, batch_size=2048, peak_lr=6e-4)
    config.model.num_kv_heads = 8
    return config


def tiny():
    """250,816 parameters, of the shape of 32B, trained in seconds on a CPU."""
    return common.tiny(olmo2_32b(), num_kv_heads=2, d_ff=176)


get_config = presets(olmo2_7b, olmo2_1b, olmo2_13b, olmo2_32b, tiny)
