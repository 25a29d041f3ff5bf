"""GPT-2 in four sizes (Radford et al. 2019, Language Models are Unsupervised Multitask Learners).

Claim: exactly the published architecture and parameter counts. WebText was never released and
neither was the learning rate, so the recipe is that of GPT-3 at the same sizes (arXiv:2005.14165,
table 2.1 and appendix B): batch and peak learning rate by size, warm-up over 375 M tokens, cosine
to 10 % over 260 B of 300 B tokens. Not run here at full length.

Expected: the loss in nats per token that OpenAI's weights have on OpenWebText, 3.12, 2.84, 2.67 and
2.54 by size (README of github.com/karpathy/nanoGPT, GPT-2's tokenizer), and about 2.85 for `small`
trained on OpenWebText itself.

    python -m experiments.train --config=configs/gpt2.py:small --workdir=runs/gpt2 \\
        --config.data.path=TEXT

TEXT is a file or folder; `--config.data.tokenizer=FILE` takes GPT-2's own tokenizer.json instead of
training one.
"""

from configs import common
from configs.base import base, presets


def small():
    """124,439,808 parameters. Paper, table 3: perplexity 29.41 on WikiText-2, 35.13 on LAMBADA."""
    config = base()
    config.model.update(vocab_size=50257, max_positions=1024, compute_dtype="bfloat16")
    config.data.update(tokenizer_size=50257, batch_size=512, sequence_length=1024)
    config.data.separate_documents = False
    config.optim.update(peak_lr=6e-4, warmup_steps=715, decay_steps=496_000)
    config.train.num_steps = 572_000
    config.checkpoint.every_steps = 1000
    return config


def medium():
    """354,823,168 parameters. Paper, table 3: perplexity 22.76 on WikiText-2, 15.60 on LAMBADA."""
    config = small()
    config.model.update(num_layers=24, d_model=1024, num_heads=16)
    config.optim.peak_lr = 3e-4
    return config


def large():
    """774,030,080 parameters. Paper, table 3: perplexity 19.93 on WikiText-2, 10.87 on LAMBADA."""
    config = small()
    config.model.update(num_layers=36, d_model=1280, num_heads=20)
    config.optim.peak_lr = 2.5e-4
    return config


def xl():
    """1,557,611,200 parameters. Paper, table 3: perplexity 18.34 on WikiText-2, 8.63 on LAMBADA."""
    config = small()
    config.model.update(num_layers=48, d_model=1600, num_heads=25)
    config.data.batch_size = 1024
    config.optim.update(peak_lr=2e-4, warmup_steps=358, decay_steps=248_000)
    config.train.num_steps = 286_000
    return config


def tiny():
    """236,928 parameters, of the same shape, trained in seconds on a CPU."""
    return common.tiny(small())


get_config = presets(small, medium, large, xl, tiny)
