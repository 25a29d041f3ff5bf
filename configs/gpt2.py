"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"), its four sizes.

Claim: exactly the published architecture and parameter counts. WebText is not public and the learning rate was never
published; the recipe is the GPT-3 paper's for the same sizes (arXiv:2005.14165, table 2.1), with its batch of 0.5 M tokens.

    python -m experiments.train --config=configs/gpt2.py:small --workdir=runs/gpt2 --config.data.path=TEXT
"""

from configs.base import base, presets


def small():
    """124,439,808 parameters."""
    config = base()
    config.model.update(vocab_size=50257, max_positions=1024)
    config.data.update(tokenizer_size=50257, batch_size=512, sequence_length=1024)
    config.data.separate_documents = False
    config.optim.update(peak_lr=6e-4, warmup_steps=700)
    config.train.num_steps = 600_000
    config.checkpoint.update(every_steps=1000)
    config.model.compute_dtype = "bfloat16"
    return config


def medium():
    """354,823,168 parameters."""
    config = small()
    config.model.update(num_layers=24, d_model=1024, num_heads=16)
    config.optim.peak_lr = 3e-4
    return config


def large():
    """774,030,080 parameters."""
    config = small()
    config.model.update(num_layers=36, d_model=1280, num_heads=20)
    config.optim.peak_lr = 2.5e-4
    return config


def xl():
    """1,557,611,200 parameters."""
    config = small()
    config.model.update(num_layers=48, d_model=1600, num_heads=25)
    config.optim.peak_lr = 2e-4
    return config


get_config = presets(small, medium, large, xl)
