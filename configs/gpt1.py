"""GPT-1 (Radford et al. 2018, Improving Language Understanding by Generative Pre-Training).
Claim: exactly the published architecture and recipe (section 4.1): Adam at 2.5e-4 after 2000 steps
of warm-up, cosine to 0, batches of 64 x 512, dropout 0.1, decay 0.01 of all but norms and biases,
100 epochs. The report does not say how many tokens an epoch has: here 985 M, the words of
BooksCorpus by its authors (arXiv:1506.06724, table 2), which is no longer given out.

    python -m experiments.train --config=configs/gpt1.py --workdir=runs/gpt1
"""

from configs import common


def gpt1():
    """116,534,784 parameters; the report gives none. Norms after the sum, and none at the end."""
    config = common.base()
    common.vocabulary(config, 40_478)
    config.model.update(norm_placement="post", final_norm=False, scaled_residual_init=False)
    config.model.update(embedding_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1)
    config.data.separate_documents = False
    common.budget(config, tokens=100 * 985e6, batch_size=64, sequence_length=512)
    config.optim.update(peak_lr=2.5e-4, warmup_steps=2000, final_lr_fraction=0.0)
    config.optim.update(beta2=0.999, weight_decay=0.01, clip_norm=0.0)
    config.checkpoint.every_steps = 1000
    return config


def tiny():
    """236,800 parameters, of the same shape, trained in seconds on a CPU."""
    config = common.tiny(gpt1())
    # Norms after the sum bear no more, and learn more slowly.
    config.optim.update(peak_lr=2e-3, warmup_steps=50)
    config.train.num_steps = 400
    return config


get_config = common.presets(gpt1, tiny)
