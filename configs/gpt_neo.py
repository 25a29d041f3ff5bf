"""GPT-Neo in three sizes (Black et al. 2021, doi:10.5281/zenodo.5297715): GPT-3 without scaling of
scores and without biases of queries, keys and values.

Claim: exactly the published architectures and parameter counts. Tokens and steps are those of the
model cards; the rest is from the repository's configs/ of the released 1.3B and 2.7B: Adam 0.9,
0.95 and 1e-8, no decay, clipping at 1.0, 3000 steps of warm-up, cosine to 10 % at step 300,000. For
125M there are none: here GPT-3's. The data is yours; theirs was the Pile. Not run here at full
length.

Expected: perplexity on LAMBADA's words 7.50 (1.3B) and 5.63 (2.7B), accuracy 57.2 and 62.2 %
(README of github.com/EleutherAI/gpt-neo).

    python -m experiments.train --config=configs/gpt_neo.py:gpt_neo_1_3b \\
        --workdir=/mnt/BUCKET/gpt_neo --config.data.path=TEXT --config.mesh.fsdp=16
"""

from configs import common, gpt3
from configs.base import presets


def sized(num_layers, d_model, num_heads, batch_size, peak_lr, num_steps):
    """A size with GPT-3's recipe, for a published number of steps."""
    head_width = d_model // num_heads
    config = gpt3.sized(num_layers, d_model, num_heads, head_width, batch_size, peak_lr)
    config.model.update(qkv_bias=False, attention_scale=1.0)
    config.train.num_steps = num_steps
    return config


def released(*sizes, **more):
    config = sized(*sizes, **more)
    config.optim.update(warmup_steps=3000, weight_decay=0.0, decay_steps=300_000)
    return config


def gpt_neo_125m():
    """125,198,592 parameters; 300 B tokens."""
    return sized(12, 768, 12, batch_size=256, peak_lr=6e-4, num_steps=572_300)


def gpt_neo_1_3b():
    """1,315,575,808 parameters; 380 B tokens."""
    return released(24, 2048, 16, batch_size=512, peak_lr=2e-4, num_steps=362_000)


def gpt_neo_2_7b():
    """2,651,307,520 parameters; 420 B tokens."""
    return released(32, 2560, 20, batch_size=512, peak_lr=1.6e-4, num_steps=400_000)


def tiny():
    """236,160 parameters, of the same shape, trained in seconds on a CPU: a window of 16."""
    return common.tiny(gpt_neo_125m(), window=16)


get_config = presets(gpt_neo_125m, gpt_neo_1_3b, gpt_neo_2_7b, tiny)
