"""BART (Lewis et al. 2019, arXiv:1910.13461), base and large.
Claim: exactly the published architecture and parameter counts, objective (30 % of tokens in spans
of 3 on average, each now one mask, and sentences in another order) and budget (8000 sequences of
1024, 500,000 steps). The optimiser is not published: here RoBERTa's. The large model had no dropout
in its last tenth.

    python -m experiments.train --config=configs/bart.py --workdir=runs/bart
"""

from configs import bert, common, roberta


def sized(num_layers, peak_lr, *sizes):
    config = roberta.sized(peak_lr, 24_000, num_layers, *sizes)
    config.model.update(stack="encoder_decoder", num_layers=num_layers, max_positions=1026)
    config.model.update(position_pad_aware=False, token_types=0, start_token=2)
    config.model.update(head="linear", head_bias="fixed")
    config.objective.update(kind="denoising", noise_rate=0.3)
    config.data.update(batch_size=8000, sequence_length=1024)
    return config


bart_base = common.preset("bart_base", 139_420_416, sized, 6, 6e-4)
bart_large = common.preset("bart_large", 406_291_456, sized, 12, 4e-4, *bert.LARGE[1:])
tiny = common.tiny_preset(bart_base, 274_944, num_layers=2)
get_config = common.presets(bart_base, bart_large, tiny)
