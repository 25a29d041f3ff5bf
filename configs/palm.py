"""PaLM in three sizes (Chowdhery et al. 2022, arXiv:2204.02311).

Claim: exactly the published architectures and parameter counts (8.63, 62.50 and 540.35 B), and the
published number of tokens and length; the data is yours. Not run here at full length.

Not the paper's: its optimiser is Adafactor without factoring at 1e-2 for 10,000 steps and then at 1
over the square root of the step, with a decay of the rate squared (section 5). Here AdamW with the
default recipe's peaks (configs/common.py), 10,000 steps of warm-up and the same square root. Its
batch grew from 512 over 1024 to 2048 sequences (after 50,000 and 115,000 of 255,000 steps): here
2048 throughout. The z-loss is the paper's, and so is the model at the first step, with a std of
1 / sqrt(inputs) for kernels and of 1 for embeddings. But the table is kept divided by
sqrt(d_model), so that embeddings are scaled instead of logits: the same function, whose table
Adam's steps, unlike Adafactor's no larger for larger parameters, move as fast as the kernels.

Expected: MMLU with 5 examples 25.3 (8B), 53.7 (62B) and 69.3 (540B) (table 6).

    python -m experiments.train --config=configs/palm.py:palm_8b --workdir=/mnt/BUCKET/palm \\
        --config.data.path=TEXT --config.mesh.fsdp=64
"""

from configs import common
from configs.base import presets


def sized(num_layers, d_model, num_heads, peak_lr=1.5e-4):
    config = common.llama_block()
    common.vocabulary(config, 256_000)
    config.model.update(num_layers=num_layers, d_model=d_model, num_heads=num_heads)
    config.model.update(num_kv_heads=1, head_width=256, d_ff=4 * d_model)
    config.model.update(norm="layer_norm", parallel_block=True, tied_embedding=True)
    config.model.update(initializer="fan_in", embedding_scale=d_model**0.5)
    config.objective.z_loss = 1e-4
    common.budget(config, tokens=780e9, batch_size=2048, sequence_length=2048)
    config.optim.update(peak_lr=peak_lr, warmup_steps=10_000, schedule="inverse_sqrt", eps=1e-8)
    return config


def palm_8b():
    """8,632,012,800 parameters; 780 B tokens."""
    return sized(32, 4096, 16, peak_lr=3e-4)


def palm_62b():
    """62,495,662,080 parameters; 795 B tokens in the paper, here the 780 B of the others."""
    return sized(64, 8192, 32)


def palm_540b():
    """540,356,474,880 parameters; 780 B tokens. The heads' 12,288 are not the width, 18,432."""
    return sized(118, 18432, 48)


def tiny():
    """311,616 parameters, of the same shape, trained in seconds on a CPU; heads exceed d_model."""
    config = palm_8b()
    return common.tiny(config, num_kv_heads=1, head_width=32, d_ff=256, embedding_scale=8.0)


get_config = presets(palm_8b, palm_62b, palm_540b, tiny)
