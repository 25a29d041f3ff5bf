"""GPT-Neo in three sizes (Black et al. 2021, doi:10.5281/zenodo.5297715): GPT-3 without scaling of
scores and without biases of queries, keys and values.
Claim: exactly the published architectures and parameter counts. Tokens (300, 380 and 420 B) and
steps are those of the model cards; the rest is from the repository's configs/ of the released 1.3B
and 2.7B: Adam 0.9, 0.95 and 1e-8, no decay, clipping at 1.0, 3000 steps of warm-up, cosine to 10 %
at step 300,000. For 125M there are none: here GPT-3's. Their data was the Pile.

    python -m experiments.train --config=configs/gpt_neo.py:gpt_neo_1_3b --workdir=runs/gpt_neo
"""

from configs import gpt3
from configs.common import preset, presets, tiny_preset


def sized(num_layers, d_model, num_heads, batch_size, peak_lr, num_steps):
    """A size with GPT-3's recipe, for a published number of steps."""
    head_width = d_model // num_heads
    config = gpt3.row(num_layers, d_model, num_heads, head_width, batch_size, peak_lr)
    config.model.update(qkv_bias=False, attention_scale=1.0)
    config.train.num_steps = num_steps
    return config


def released(*sizes):
    config = sized(*sizes)
    config.optim.update(warmup_steps=3000, weight_decay=0.0, decay_steps=300_000)
    return config


gpt_neo_125m = preset("gpt_neo_125m", 125_198_592, sized, 12, 768, 12, 256, 6e-4, 572_300)
gpt_neo_1_3b = preset("gpt_neo_1_3b", 1_315_575_808, released, 24, 2048, 16, 512, 2e-4, 362_000)
gpt_neo_2_7b = preset("gpt_neo_2_7b", 2_651_307_520, released, 32, 2560, 20, 512, 1.6e-4, 400_000)
tiny = tiny_preset(gpt_neo_125m, 236_160, window=16)
get_config = presets(gpt_neo_125m, gpt_neo_1_3b, gpt_neo_2_7b, tiny)
