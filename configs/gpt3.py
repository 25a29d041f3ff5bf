"""GPT-3 in eight sizes (Brown et al. 2020, arXiv:2005.14165).

Claim: the sizes of table 2.1 to the letter, every second layer seeing a window, and the recipe of
appendix B: Adam 0.9, 0.95 and 1e-8, batch and peak learning rate by size, warm-up over 375 M
tokens, cosine to 10 % over 260 B of 300 B tokens, decay 0.1, clipping at 1.0. The data is yours.
Not run here at full length.

Not published: the width of the window; here 256, GPT-Neo's. Two rows of the table contradict
themselves (24 heads of 128 are not 2048, and 40 of 128 are not 5140): they are here as printed, and
repaired as others read them. Not done here: the ramp of the batch over the first 4 to 12 B tokens;
3.2 M tokens are 1536 sequences.

Expected, by size: accuracy on LAMBADA without examples 42.7, 54.3, 60.4, 63.6, 67.1, 70.3, 72.5 and
76.2 % (table H.1).

    python -m experiments.train --config=configs/gpt3.py:gpt3_1_3b --workdir=/mnt/BUCKET/gpt3 \\
        --config.data.path=TEXT --config.mesh.fsdp=16
"""

from configs import common
from configs.base import base, presets


def sized(num_layers, d_model, num_heads, head_width, batch_size, peak_lr):
    """A row of table 2.1; batch_size in sequences of 2048 tokens."""
    config = base()
    common.vocabulary(config, 50257)
    config.model.update(num_layers=num_layers, d_model=d_model)
    config.model.update(num_heads=num_heads, head_width=head_width)
    config.model.update(attention_pattern="full,local", window=256)
    config.model.update(compute_dtype="bfloat16", remat="full")
    config.objective.logits_chunk = 512
    config.data.separate_documents = False
    common.budget(config, tokens=300e9, batch_size=batch_size, sequence_length=2048)
    config.optim.update(peak_lr=peak_lr, warmup_steps=round(375e6 / (batch_size * 2048)))
    config.optim.decay_steps = round(260e9 / (batch_size * 2048))
    config.checkpoint.every_steps = 1000
    return config


def gpt3_125m():
    """125,226,240 parameters; batches of 0.5 M tokens."""
    return sized(12, 768, 12, 64, batch_size=256, peak_lr=6e-4)


def gpt3_350m():
    """355,871,744 parameters; batches of 0.5 M tokens."""
    return sized(24, 1024, 16, 64, batch_size=256, peak_lr=3e-4)


def gpt3_760m():
    """760,300,032 parameters; batches of 0.5 M tokens."""
    return sized(24, 1536, 16, 96, batch_size=256, peak_lr=2.5e-4)


def gpt3_1_3b():
    """1,517,123,584 parameters, as printed: 24 heads of 128. Batches of 1 M tokens."""
    return sized(24, 2048, 24, 128, batch_size=512, peak_lr=2e-4)


def gpt3_1_3b_repaired():
    """1,315,723,264 parameters: 16 heads of 128, which is 2048 and the name's size."""
    return sized(24, 2048, 16, 128, batch_size=512, peak_lr=2e-4)


def gpt3_2_7b():
    """2,651,553,280 parameters; batches of 1 M tokens."""
    return sized(32, 2560, 32, 80, batch_size=512, peak_lr=1.6e-4)


def gpt3_6_7b():
    """6,658,404,352 parameters; batches of 2 M tokens."""
    return sized(32, 4096, 32, 128, batch_size=1024, peak_lr=1.2e-4)


def gpt3_13b():
    """12,936,488,380 parameters, as printed: a width of 5140. Batches of 2 M tokens."""
    return sized(40, 5140, 40, 128, batch_size=1024, peak_lr=1e-4)


def gpt3_13b_repaired():
    """12,853,386,240 parameters: a width of 5120, which is 40 heads of 128."""
    return sized(40, 5120, 40, 128, batch_size=1024, peak_lr=1e-4)


def gpt3_175b():
    """174,604,259,328 parameters; batches of 3.2 M tokens."""
    return sized(96, 12288, 96, 128, batch_size=1536, peak_lr=0.6e-4)


def tiny():
    """236,928 parameters, of the same shape, trained in seconds on a CPU: a window of 16."""
    return common.tiny(gpt3_125m(), window=16)


SIZES = (gpt3_125m, gpt3_350m, gpt3_760m, gpt3_1_3b, gpt3_2_7b, gpt3_6_7b, gpt3_13b, gpt3_175b)
get_config = presets(*SIZES, gpt3_1_3b_repaired, gpt3_13b_repaired, tiny)
