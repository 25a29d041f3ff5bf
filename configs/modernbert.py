"""ModernBERT (Warner et al. 2024, arXiv:2412.13663), base and large.
Claim: exactly the published architecture and parameter counts, and of the recipe 30 % of tokens
masked and 1.7 T tokens in sequences of 1024. Not the paper's: its optimiser is StableAdamW, batches
grew from 768 (large 448), large went on at 5e-5 after 900 B tokens, and both saw 300 B more of
length 8192 and a decay at the end.

    python -m experiments.train --config=configs/modernbert.py --workdir=runs/modernbert
"""

from configs import bert
from configs.common import budget, preset, presets, tiny_encoder, tiny_preset


def sized(num_layers, d_model, num_heads, d_ff, peak_lr, batch_size):
    config = bert.sized(50_368, num_layers, d_model, num_heads)
    config.model.update(d_ff=d_ff, position="rope", rope_theta=160_000.0, rope_theta_local=10_000.0)
    config.model.update(max_positions=8192, attention_pattern="full,local,local", window=128)
    config.model.update(token_types=0, pooler=False, next_sentence=False, gated=True)
    config.model.update(norm_placement="pre", norm_bias=False, norm_eps=1e-5, final_norm=True)
    config.model.update(skip_first_norm=True, scaled_residual_init=True, feedforward_bias=False)
    config.model.update(qkv_bias=False, attention_output_bias=False)
    config.model.update(embedding_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
    config.objective.update(next_sentence=False, static_masks=0, mask_rate=0.3)
    config.data.update(tokenizer="bpe", special_tokens="mask")
    budget(config, tokens=1.7e12, batch_size=batch_size, sequence_length=1024)
    warmup_steps = round(3e9 / (batch_size * 1024))
    config.optim.update(schedule="constant", peak_lr=peak_lr, warmup_steps=warmup_steps, beta2=0.98)
    config.optim.weight_decay = 1e-5
    return config


modernbert_base = preset("modernbert_base", 149_655_232, sized, 22, 768, 12, 1152, 8e-4, 4608)
modernbert_large = preset("modernbert_large", 395_881_664, sized, 28, 1024, 16, 2624, 5e-4, 4928)
TINY = {"num_layers": 4, "d_ff": 96, "window": 16}
tiny = tiny_preset(modernbert_base, 177_280, shrink=tiny_encoder, **TINY)
get_config = presets(modernbert_base, modernbert_large, tiny)
