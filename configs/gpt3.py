"""GPT-3 in eight sizes (Brown et al. 2020, arXiv:2005.14165).
Claim: the sizes of table 2.1 to the letter, every second layer seeing a window, and the recipe of
appendix B: Adam 0.9, 0.95 and 1e-8, batch and peak learning rate by size, warm-up over 375 M
tokens, cosine to 10 % over 260 B of 300 B tokens, decay 0.1, clipping at 1.0.

Not published: the width of the window; here 256, GPT-Neo's. Two rows of the table contradict
themselves (24 heads of 128 are not 2048, and 40 of 128 are not 5140): they are here as printed, and
repaired as others read them. Not done here: the ramp of the batch over the first 4 to 12 B tokens;
3.2 M tokens are 1536 sequences.

    python -m experiments.train --config=configs/gpt3.py:gpt3_1_3b --workdir=runs/gpt3
"""

from configs import gpt2
from configs.common import budget, preset, presets, tiny_preset


def row(num_layers, d_model, num_heads, head_width, batch_size, peak_lr):
    """A row of table 2.1; batch_size in sequences of 2048 tokens."""
    config = gpt2.sized(num_layers, d_model, num_heads, peak_lr)
    config.model.update(head_width=head_width, attention_pattern="full,local", window=256)
    config.model.update(max_positions=None, remat="full")
    config.objective.logits_chunk = 8192
    budget(config, tokens=300e9, batch_size=batch_size, sequence_length=2048)
    config.optim.warmup_steps = round(375e6 / (batch_size * 2048))
    config.optim.decay_steps = round(260e9 / (batch_size * 2048))
    return config


gpt3_125m = preset("gpt3_125m", 125_226_240, row, 12, 768, 12, 64, 256, 6e-4)
gpt3_350m = preset("gpt3_350m", 355_871_744, row, 24, 1024, 16, 64, 256, 3e-4)
gpt3_760m = preset("gpt3_760m", 760_300_032, row, 24, 1536, 16, 96, 256, 2.5e-4)
gpt3_1_3b = preset("gpt3_1_3b", 1_517_123_584, row, 24, 2048, 24, 128, 512, 2e-4)
gpt3_2_7b = preset("gpt3_2_7b", 2_651_553_280, row, 32, 2560, 32, 80, 512, 1.6e-4)
gpt3_6_7b = preset("gpt3_6_7b", 6_658_404_352, row, 32, 4096, 32, 128, 1024, 1.2e-4)
gpt3_13b = preset("gpt3_13b", 12_936_488_380, row, 40, 5140, 40, 128, 1024, 1e-4)
gpt3_175b = preset("gpt3_175b", 174_604_259_328, row, 96, 12288, 96, 128, 1536, 0.6e-4)
gpt3_1_3b_repaired = preset("gpt3_1_3b_repaired", 1_315_723_264, row, 24, 2048, 16, 128, 512, 2e-4)
gpt3_13b_repaired = preset("gpt3_13b_repaired", 12_853_386_240, row, 40, 5120, 40, 128, 1024, 1e-4)
tiny = tiny_preset(gpt3_125m, 236_928, window=16)
SIZES = (gpt3_125m, gpt3_350m, gpt3_760m, gpt3_1_3b, gpt3_2_7b, gpt3_6_7b, gpt3_13b, gpt3_175b)
get_config = presets(*SIZES, gpt3_1_3b_repaired, gpt3_13b_repaired, tiny)
