"""Llama 2 (arXiv:2307.09288) and Llama 3 (arXiv:2407.21783).

Claim: exactly the published architectures, parameter counts, batch in tokens and schedule; the data is yours.

    python -m experiments.train --config=configs/llama.py:llama3_8b --workdir=gs://... --config.mesh.fsdp=64 --config.data.path=TEXT
"""

from configs.base import base, presets


def llama2_7b():
    """6,738,415,616 parameters; 4 M tokens a batch, 2 T tokens."""
    config = base()
    config.model.update(vocab_size=32000, d_model=4096, num_layers=32, num_heads=32, d_ff=11008, position="rope")
    config.model.update(norm="rms_norm", norm_bias=False, norm_eps=1e-5, activation="silu", gated=True)
    config.model.update(qkv_bias=False, attention_output_bias=False, feedforward_bias=False, tied_embedding=False)
    config.model.update(scaled_residual_init=False, compute_dtype="bfloat16", remat="full")
    config.objective.logits_chunk = 512
    config.data.update(tokenizer_size=32000, batch_size=1024, sequence_length=4096)
    config.optim.update(peak_lr=3e-4, warmup_steps=2000, beta2=0.95, eps=1e-5, weight_decay=0.1, clip_norm=1.0)
    config.train.num_steps = 500_000
    config.checkpoint.every_steps = 1000
    return config


def llama3_8b():
    """8,030,261,248 parameters; sequences of 8192, 15.6 T tokens. The batch grew from 4 M to 16 M tokens: here 8 M."""
    config = llama2_7b()
    config.model.update(vocab_size=128256, num_kv_heads=8, d_ff=14336, rope_theta=500_000.0)
    config.data.update(tokenizer_size=128256, batch_size=1024, sequence_length=8192)
    config.optim.update(warmup_steps=8000, final_lr_fraction=8e-7 / 3e-4, decay_steps=1_200_000)
    config.train.num_steps = 1_200_000
    return config


def llama3_70b():
    """70,553,706,496 parameters."""
    config = llama3_8b()
    config.model.update(d_model=8192, num_layers=80, num_heads=64, d_ff=28672)
    config.optim.update(peak_lr=1.5e-4, final_lr_fraction=8e-7 / 1.5e-4)
    return config


get_config = presets(llama2_7b, llama3_8b, llama3_70b)
