"""Longformer (Beltagy et al. 2020, arXiv:2004.05150), base and large.
Claim: exactly the published architecture and parameter counts, and the recipe: 64 sequences of 4096
for 65,000 steps. It went on from RoBERTa's weights, and its rate fell with the third power: here it
begins anew, and falls in a line.

    python -m experiments.train --config=configs/longformer.py --workdir=runs/longformer
"""

from configs import bert, common, roberta


def sized(*sizes):
    config = roberta.sized(3e-5, 500, *sizes)
    config.model.update(attention_pattern="local", window=512, global_attention=True)
    config.model.max_positions = 4098
    config.data.update(batch_size=64, sequence_length=4096)
    config.train.num_steps = 65_000
    return config


longformer_base = common.preset("longformer_base", 148_711_257, sized)
longformer_large = common.preset("longformer_large", 434_653_273, sized, *bert.LARGE)
tiny = common.tiny_preset(longformer_base, 164_864, shrink=common.tiny_encoder, window=16)
get_config = common.presets(longformer_base, longformer_large, tiny)
