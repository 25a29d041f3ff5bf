"""Gopher in six sizes (Rae et al. 2021, arXiv:2112.11446) and Chinchilla (Hoffmann et al. 2022,
arXiv:2203.15556).
Claim: the published sizes, RMS norms and relative positions of Transformer-XL, and the published
recipe: 300 B tokens (Chinchilla 1.4 T) in sequences of 2048, peak learning rate and batch by size,
1500 steps of warm-up, cosine to 10 %, clipping at 1.0 (0.25 for 7.1B and 280B), Adam without decay
(Chinchilla AdamW).

The exact counts are derived, not published: a projection of the positions in every layer (without
which 280 B cannot be reached), no biases, one embedding for input and output. Neither activation
nor eps is published; here GELU and 1e-5. Where the batch grew (280B: from 3 to 6 M tokens,
Chinchilla: from 1.5 to 3 M), it has its first size throughout.

    python -m experiments.train --config=configs/gopher.py:gopher_1_4b --workdir=runs/gopher
"""

from configs.common import budget, llama_block, preset, presets, tiny_preset


def sized(num_layers, num_heads, head_width, peak_lr, batch_size, clip_norm=1.0, tokens=300e9):
    """batch_size: in sequences of 2048 tokens."""
    d_model = num_heads * head_width
    config = llama_block(32_000, num_layers, d_model, num_heads, 4 * d_model, peak_lr)
    config.model.update(position="relative", tied_embedding=True)
    config.model.update(activation="gelu_tanh", gated=False)
    budget(config, tokens, batch_size, sequence_length=2048)
    config.optim.update(warmup_steps=1500, eps=1e-8, weight_decay=0.0, clip_norm=clip_norm)
    return config


def chinchilla_70b():
    """70,057,992,192 parameters."""
    config = sized(80, 64, 128, peak_lr=1e-4, batch_size=768, tokens=1.4e12)
    config.optim.weight_decay = 0.1
    return config


gopher_44m = preset("gopher_44m", 43_663_872, sized, 8, 16, 32, 6e-4, 128)
gopher_117m = preset("gopher_117m", 116_626_176, sized, 12, 12, 64, 6e-4, 128)
gopher_417m = preset("gopher_417m", 417_277_440, sized, 12, 12, 128, 2e-4, 128)
gopher_1_4b = preset("gopher_1_4b", 1_374_357_504, sized, 24, 16, 128, 2e-4, 128)
gopher_7_1b = preset("gopher_7_1b", 7_110_922_240, sized, 32, 32, 128, 1.2e-4, 1024, 0.25)
gopher_280b = preset("gopher_280b", 279_702_421_504, sized, 80, 128, 128, 4e-5, 1536, 0.25)
tiny = tiny_preset(gopher_44m, 246_848)
SIZES = (gopher_44m, gopher_117m, gopher_417m, gopher_1_4b, gopher_7_1b, gopher_280b)
get_config = presets(*SIZES, chinchilla_70b, tiny)
