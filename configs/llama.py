"""Llama 1 (arXiv:2302.13971), 2 (arXiv:2307.09288) and 3 (arXiv:2407.21783) with 3.1 and 3.2,
without the later long-context stage.

Claim: exactly the published architectures and parameter counts, and the published number of tokens;
the data is yours. Not run here at full length.

Llama 1: as Llama 2, in sequences of 2048, eps 1e-8 (section 2.3 gives none). Llama 2: peak learning
rate 3e-4 (70B: 1.5e-4), 2000 warm-up steps, cosine to 10 %, AdamW 0.9, 0.95 and 1e-5, decay 0.1,
clipping at 1.0, 4 M tokens a batch (section 2.2). Llama 3: peak learning rates of 8B, 70B and 405B
are published (table 3); warm-up of 8000 steps and cosine to 1 % are the 405B's (section 3.4.1),
whose batch grew from 4 M to 16 M tokens: here 8 M throughout, for its 1.2 M steps 1.9 M. Llama 3.2
was pruned and distilled from 3.1, by a recipe that is not published: here Llama 3's, for its 9 T
tokens. 3.1 and 3.2 have the scaled rotation of their release, which the long-context stage brought;
--config.model.rope_scaling=none trains without.

Expected, of the published base models, MMLU with 5 examples: 35.1, 46.9, 57.8 and 63.4 (Llama 1,
table 9), 45.7 (Llama 2 7B), 66.6 (Llama 3 8B), 79.5 (Llama 3 70B; these from
github.com/meta-llama/llama3, MODEL_CARD.md), 85.2 (Llama 3.1 405B), 32.2 and 58.0 (Llama 3.2 1B and
3B; model cards).

    python -m experiments.train --config=configs/llama.py:llama3_8b --workdir=/mnt/BUCKET/llama \\
        --config.data.path=TEXT --config.mesh.fsdp=64
"""

from configs import common
from configs.base import presets


def llama1(num_layers, d_model, num_heads, d_ff, tokens=1.4e12, peak_lr=1.5e-4):
    config = llama2(num_layers, d_model, num_heads, d_ff, peak_lr=peak_lr)
    config.model.norm_eps = 1e-6
    common.budget(config, tokens, batch_size=2048, sequence_length=2048)
    config.optim.eps = 1e-8
    return config


def llama2(num_layers, d_model, num_heads, d_ff, **optim):
    config = common.llama_block()
    common.vocabulary(config, 32_000)
    config.model.update(num_layers=num_layers, d_model=d_model, num_heads=num_heads, d_ff=d_ff)
    config.optim.update(optim)
    return config


def llama3(num_layers, d_model, num_heads, d_ff, tokens=15.6e12, peak_lr=3e-4):
    config = llama2(num_layers, d_model, num_heads, d_ff, peak_lr=peak_lr)
    common.vocabulary(config, 128_256)
    config.model.update(num_kv_heads=8, rope_theta=500_000.0)
    common.budget(config, tokens, batch_size=1024, sequence_length=8192)
    config.optim.update(warmup_steps=8000, final_lr_fraction=0.01)
    return config


def scaled(config, factor):
    """With the rotation of 3.1 and 3.2, made for 128 K tokens."""
    config.model.update(rope_scaling="llama3", rope_factor=factor, rope_original_positions=8192)
    return config


def llama1_7b():
    """6,738,415,616 parameters; 1 T tokens; 82,432 A100 hours in the paper (table 15)."""
    return llama1(32, 4096, 32, 11008, tokens=1e12, peak_lr=3e-4)


def llama1_13b():
    """13,015,864,320 parameters; 1 T tokens; 135,168 A100 hours in the paper (table 15)."""
    return llama1(40, 5120, 40, 13824, tokens=1e12, peak_lr=3e-4)


def llama1_33b():
    """32,528,943,616 parameters; 1.4 T tokens; 530,432 A100 hours in the paper (table 15)."""
    return llama1(60, 6656, 52, 17920)


def llama1_65b():
    """65,285,660,672 parameters; 1.4 T tokens; 1,022,362 A100 hours in the paper (table 15)."""
    return llama1(80, 8192, 64, 22016)


def llama2_7b():
    """6,738,415,616 parameters; 2 T tokens; 184,320 A100 hours in the paper (table 2)."""
    return llama2(32, 4096, 32, 11008)


def llama2_13b():
    """13,015,864,320 parameters; 2 T tokens; 368,640 A100 hours in the paper (table 2)."""
    return llama2(40, 5120, 40, 13824)


def llama2_70b():
    """68,976,648,192 parameters; 2 T tokens; 1,720,320 A100 hours in the paper (table 2)."""
    config = llama2(80, 8192, 64, 28672, peak_lr=1.5e-4)
    config.model.num_kv_heads = 8
    return config


def llama3_8b():
    """8,030,261,248 parameters; 15.6 T tokens; 1.3 M H100 hours by the model card."""
    return llama3(32, 4096, 32, 14336)


def llama3_70b():
    """70,553,706,496 parameters; 15.6 T tokens; 6.4 M H100 hours by the model card."""
    return llama3(80, 8192, 64, 28672, peak_lr=1.5e-4)


def llama3_1_405b():
    """405,853,388,800 parameters; 15.6 T tokens; 30.84 M H100 hours by the model card."""
    return scaled(llama3(126, 16384, 128, 53248, peak_lr=8e-5), 8.0)


def llama3_2_1b():
    """1,235,814,400 parameters; 9 T tokens; one table for input and output."""
    config = scaled(llama3(16, 2048, 32, 8192, tokens=9e12), 32.0)
    config.model.tied_embedding = True
    return config


def llama3_2_3b():
    """3,212,749,824 parameters; 9 T tokens; one table for input and output."""
    config = scaled(llama3(28, 3072, 24, 8192, tokens=9e12), 32.0)
    config.model.tied_embedding = True
    return config


def tiny():
    """250,432 parameters, of the shape of 3.1, trained in seconds on a CPU: its rotation is scaled
    from 16 positions on.
    """
    config = common.tiny(llama3_1_405b(), num_kv_heads=2, d_ff=176)
    config.model.rope_original_positions = 16
    return config


LLAMA1 = (llama1_7b, llama1_13b, llama1_33b, llama1_65b)
LLAMA2 = (llama2_7b, llama2_13b, llama2_70b)
LLAMA3 = (llama3_8b, llama3_70b, llama3_1_405b, llama3_2_1b, llama3_2_3b)
get_config = presets(*LLAMA2, *LLAMA1, *LLAMA3, tiny)
