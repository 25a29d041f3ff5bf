"""RoBERTa (Liu et al. 2019, arXiv:1907.11692), base and large.
Claim: exactly the published architecture and parameter counts, and the recipe: masks drawn anew, no
pairs, 8192 sequences of 512 for 500,000 steps.

    python -m experiments.train --config=configs/roberta.py --workdir=runs/roberta
"""

from configs import bert, common


def sized(peak_lr, warmup_steps, *sizes):
    config = bert.sized(50_265, *sizes)
    config.model.update(max_positions=514, position_offset=2, position_pad_aware=True)
    config.model.update(token_types=1, norm_eps=1e-5, pooler=False, next_sentence=False)
    config.model.initializer = "normal"
    config.objective.update(next_sentence=False, static_masks=0)
    config.data.update(tokenizer="bpe", special_tokens="mask", batch_size=8192)
    config.optim.update(peak_lr=peak_lr, warmup_steps=warmup_steps, beta2=0.98, clip_norm=0.0)
    config.train.num_steps = 500_000
    return config


roberta_base = common.preset("roberta_base", 124_697_433, sized, 6e-4, 24_000)
roberta_large = common.preset("roberta_large", 355_412_057, sized, 4e-4, 30_000, *bert.LARGE)
tiny = common.tiny_preset(roberta_base, 139_904, shrink=common.tiny_encoder)
get_config = common.presets(roberta_base, roberta_large, tiny)
