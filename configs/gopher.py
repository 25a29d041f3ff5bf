"""Gopher in six sizes (Rae et al. 2021, arXiv:2112.11446) and Chinchilla (Hoffmann et al. 2022,
arXiv:2203.15556).

Claim: the published sizes, RMS norms and relative positions of Transformer-XL, and the published
recipe: 300 B tokens (Chinchilla 1.4 T) in sequences of 2048, peak learning rate and batch by size,
1500 steps of warm-up, cosine to 10 %, clipping at 1.0 (0.25 for 7.1B and 280B), Adam without decay
(Chinchilla AdamW). The data is yours. Not run here at full length.

The exact counts are derived, not published: a projection of the positions in every layer (without
which 280 B cannot be reached), no biases, one embedding for input and output. Neither activation
nor eps is published; here GELU and 1e-5. Where the batch grew (280B: from 3 to 6 M tokens,
Chinchilla: from 1.5 to 3 M), it has its first size throughout.

Expected: MMLU with 5 examples 60.0 (Gopher 280B) and 67.6 (Chinchilla) (Chinchilla, table 6).

    python -m experiments.train --config=configs/gopher.py:gopher_1_4b \\
        --workdir=/mnt/BUCKET/gopher --config.data.path=TEXT --config.mesh.fsdp=16
"""

from configs import common
from configs.base import presets


def sized(num_layers, num_heads, head_width, peak_lr, batch_size, clip_norm=1.0):
    """batch_size: in sequences of 2048 tokens."""
    config = common.llama_block()
    common.vocabulary(config, 32_000)
    d_model = num_heads * head_width
    config.model.update(num_layers=num_layers, num_heads=num_heads, d_model=d_model)
    config.model.update(d_ff=4 * d_model, position="relative", tied_embedding=True)
    config.model.update(activation="gelu_tanh", gated=False)
    common.budget(config, tokens=300e9, batch_size=batch_size, sequence_length=2048)
    config.optim.update(peak_lr=peak_lr, warmup_steps=1500, eps=1e-8)
    config.optim.update(weight_decay=0.0, clip_norm=clip_norm)
    return config


def gopher_44m():
    """43,663,872 parameters; 0.25 M tokens a batch."""
    return sized(8, 16, 32, peak_lr=6e-4, batch_size=128)


def gopher_117m():
    """116,626,176 parameters; 0.25 M tokens a batch."""
    return sized(12, 12, 64, peak_lr=6e-4, batch_size=128)


def gopher_417m():
    """417,277,440 parameters; 0.25 M tokens a batch."""
    return sized(12, 12, 128, peak_lr=2e-4, batch_size=128)


def gopher_1_4b():
    """1,374,357,504 parameters; 0.25 M tokens a batch."""
    return sized(24, 16, 128, peak_lr=2e-4, batch_size=128)


def gopher_7_1b():
    """7,110,922,240 parameters; 2 M tokens a batch."""
    return sized(32, 32, 128, peak_lr=1.2e-4, batch_size=1024, clip_norm=0.25)


def gopher_280b():
    """279,702,421,504 parameters; 3 M tokens a batch."""
    return sized(80, 128, 128, peak_lr=4e-5, batch_size=1536, clip_norm=0.25)


def chinchilla_70b():
    """70,057,992,192 parameters; 1.4 T tokens, 1.5 M a batch."""
    config = sized(80, 64, 128, peak_lr=1e-4, batch_size=768)
    common.budget(config, tokens=1.4e12, batch_size=768, sequence_length=2048)
    config.optim.weight_decay = 0.1
    return config


def tiny():
    """246,848 parameters, of the same shape, trained in seconds on a CPU."""
    return common.tiny(gopher_44m())


SIZES = (gopher_44m, gopher_117m, gopher_417m, gopher_1_4b, gopher_7_1b, gopher_280b)
get_config = presets(*SIZES, chinchilla_70b, tiny)
