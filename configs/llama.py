"""Llama 2 (arXiv:2307.09288) and Llama 3 (arXiv:2407.21783), without the later long-context stage.

Claim: exactly the published architectures and parameter counts, and the published number of tokens;
the data is yours. Not run here at full length.

Llama 2: peak learning rate 3e-4 (7B), 2000 warm-up steps, cosine to 10 %, AdamW 0.9, 0.95 and 1e-5,
decay 0.1, clipping at 1.0, 4 M tokens a batch (section 2.2). Llama 3: peak learning rates of 8B and
70B are published (table 3); warm-up of 8000 steps and cosine to 1 % are the 405B's (section 3.4.1),
whose batch grew from 4 M to 16 M tokens: here 8 M throughout.

Expected, of the published base models, MMLU with 5 examples: 45.7 (Llama 2 7B), 66.6 (Llama 3 8B)
and 79.5 (Llama 3 70B), from github.com/meta-llama/llama3, MODEL_CARD.md.

    python -m experiments.train --config=configs/llama.py:llama3_8b --workdir=/mnt/BUCKET/llama \\
        --config.data.path=TEXT --config.mesh.fsdp=64
"""

from configs.base import base, presets


def llama2_7b():
    """6,738,415,616 parameters; 2 T tokens; 184,320 A100 hours in the paper (table 2)."""
    config = base()
    config.model.update(vocab_size=32000, d_model=4096, num_layers=32, num_heads=32, d_ff=11008)
    config.model.update(position="rope", norm="rms_norm", norm_bias=False, norm_eps=1e-5)
    config.model.update(activation="silu", gated=True, tied_embedding=False)
    config.model.update(qkv_bias=False, attention_output_bias=False, feedforward_bias=False)
    config.model.update(scaled_residual_init=False, compute_dtype="bfloat16", remat="full")
    config.objective.logits_chunk = 512
    config.data.update(tokenizer_size=32000, batch_size=1024, sequence_length=4096)
    config.optim.update(peak_lr=3e-4, warmup_steps=2000, beta1=0.9, beta2=0.95, eps=1e-5)
    config.optim.update(final_lr_fraction=0.1, weight_decay=0.1, clip_norm=1.0)
    config.train.num_steps = 477_000
    config.checkpoint.every_steps = 1000
    return config


def llama3_8b():
    """8,030,261,248 parameters; 15.6 T tokens; 1.3 M H100 hours by the model card."""
    config = llama2_7b()
    config.model.update(vocab_size=128256, num_kv_heads=8, d_ff=14336, rope_theta=500_000.0)
    config.data.update(tokenizer_size=128256, batch_size=1024, sequence_length=8192)
    config.optim.update(warmup_steps=8000, final_lr_fraction=0.01)
    config.train.num_steps = 1_860_000
    return config


def llama3_70b():
    """70,553,706,496 parameters; 15.6 T tokens; 6.4 M H100 hours by the model card."""
    config = llama3_8b()
    config.model.update(d_model=8192, num_layers=80, num_heads=64, d_ff=28672)
    config.optim.peak_lr = 1.5e-4
    return config


get_config = presets(llama2_7b, llama3_8b, llama3_70b)
