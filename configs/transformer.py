"""The Transformer of 2017 (Vaswani et al., arXiv:1706.03762), base and big.
Claim: the architecture of its authors' code, without biases in attention (the paper rounds to 65
and 213 M parameters), and the recipe: 25,000 tokens of source and of target a batch, 100,000 and
300,000 steps, label smoothing 0.1. It translated pairs of sentences; here its source is the first
part of a text, and its target the rest.

    python -m experiments.train --config=configs/transformer.py --workdir=runs/2017
"""

from configs import common


def sized(d_model, num_heads, dropout, num_steps):
    config = common.base()
    common.vocabulary(config, 37_000)
    config.model.update(stack="encoder_decoder", num_layers=6, d_model=d_model, num_heads=num_heads)
    config.model.update(position="sinusoid", norm_placement="post", final_norm=False)
    config.model.update(activation="relu", qkv_bias=False, attention_output_bias=False)
    config.model.update(embedding_scale=d_model**0.5, initializer="glorot")
    config.model.update(scaled_residual_init=False)
    config.model.update(embedding_dropout=dropout, residual_dropout=dropout)
    config.objective.update(kind="prefix", label_smoothing=0.1)
    config.data.update(tokenizer="bpe", special_tokens="sentinels", separate_documents=False)
    config.data.update(batch_size=98, sequence_length=256, target_length=256)
    config.optim.update(peak_lr=(d_model * 4000) ** -0.5, warmup_steps=4000, beta2=0.98, eps=1e-9)
    config.optim.update(schedule="inverse_sqrt", weight_decay=0.0, clip_norm=0.0)
    config.train.num_steps = num_steps
    return config


transformer_base = common.preset("transformer_base", 63_045_632, sized, 512, 8, 0.1, 100_000)
transformer_big = common.preset("transformer_big", 214_171_648, sized, 1024, 16, 0.3, 300_000)


def tiny():
    """264,704 parameters, of the shape of base, trained in seconds on a CPU."""
    config = common.tiny(transformer_base(), num_layers=2, embedding_scale=8.0)
    # Norms after the sum learn more slowly.
    config.train.num_steps = 500
    return config


get_config = common.presets(transformer_base, transformer_big, tiny)
