"""T5 1.0 (Raffel et al. 2019, arXiv:1910.10683) and 1.1 in five sizes each.
Claim: exactly the published architectures and parameter counts, objective (spans of 3 tokens, 15 %
of the text, 512 tokens in and 114 out) and budget (2048 sequences, 1 M steps). Not the paper's: its
optimiser is Adafactor at 1 over the square root of max(step, 10,000); here AdamW from 1e-3, after
as many steps of warm-up.

    python -m experiments.train --config=configs/t5.py:t5_base --workdir=runs/t5
"""

from configs import common
from configs.common import base, preset, presets, tiny_preset


def sized(num_layers, d_model, num_heads, head_width, d_ff):
    config = base()
    common.vocabulary(config, 32_128)
    config.model.update(stack="encoder_decoder", num_layers=num_layers, d_model=d_model, d_ff=d_ff)
    config.model.update(num_heads=num_heads, head_width=head_width, attention_scale=1.0)
    config.model.update(position="buckets", norm="rms_norm", norm_bias=False, norm_eps=1e-6)
    config.model.update(qkv_bias=False, attention_output_bias=False, feedforward_bias=False)
    config.model.update(activation="relu", logit_scale=d_model**-0.5, compute_dtype="bfloat16")
    config.model.update(initializer="t5", scaled_residual_init=False, remat="full")
    config.model.update(embedding_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1)
    config.model.update(activation_dropout=0.1, final_dropout=0.1)
    config.objective.kind = "span_corruption"
    config.data.update(tokenizer="unigram", separate_documents=False)
    config.data.update(batch_size=2048, sequence_length=512)
    config.optim.update(peak_lr=1e-3, warmup_steps=10_000, schedule="inverse_sqrt")
    config.optim.weight_decay = 0.0
    config.train.num_steps = 1_000_000
    return config


def gated(*sizes):
    """T5 1.1."""
    config = sized(*sizes)
    config.model.update(activation="gelu_tanh", gated=True, tied_embedding=False, logit_scale=1.0)
    config.model.update(embedding_dropout=0.0, attention_dropout=0.0, residual_dropout=0.0)
    config.model.update(activation_dropout=0.0, final_dropout=0.0)
    return config


def shrunk(config, **model):
    """Heads that are not, together, as wide as the model."""
    return common.tiny(config, num_layers=2, num_heads=3, head_width=16, **model)


t5_small = preset("t5_small", 60_506_624, sized, 6, 512, 8, 64, 2048)
t5_base = preset("t5_base", 222_903_552, sized, 12, 768, 12, 64, 3072)
t5_large = preset("t5_large", 737_668_096, sized, 24, 1024, 16, 64, 4096)
t5_3b = preset("t5_3b", 2_851_598_336, sized, 24, 1024, 32, 128, 16384)
t5_11b = preset("t5_11b", 11_307_321_344, sized, 24, 1024, 128, 128, 65536)
t5_1_1_small = preset("t5_1_1_small", 76_961_152, gated, 8, 512, 6, 64, 1024)
t5_1_1_base = preset("t5_1_1_base", 247_577_856, gated, 12, 768, 12, 64, 2048)
t5_1_1_large = preset("t5_1_1_large", 783_150_080, gated, 24, 1024, 16, 64, 2816)
t5_1_1_xl = preset("t5_1_1_xl", 2_849_757_184, gated, 24, 2048, 32, 64, 5120)
t5_1_1_xxl = preset("t5_1_1_xxl", 11_135_332_352, gated, 24, 4096, 64, 64, 10240)

tiny = tiny_preset(t5_small, 238_528, shrink=shrunk, logit_scale=64**-0.5)
tiny_1_1 = tiny_preset(t5_1_1_small, 275_392, "tiny_1_1", shrink=shrunk, d_ff=176)
T5_1_1 = (t5_1_1_small, t5_1_1_base, t5_1_1_large, t5_1_1_xl, t5_1_1_xxl)
get_config = presets(t5_small, t5_base, t5_large, t5_3b, t5_11b, *T5_1_1, tiny, tiny_1_1)
