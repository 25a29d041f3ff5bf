"""Llama 1 (arXiv:2302.13971), 2 (arXiv:2307.09288), and 3, 3.1 and 3.2 (arXiv:2407.21783) before
the long-context stage.
Claim: exactly the published architectures and parameter counts, and the published number of tokens.

Llama 2 is the default recipe (configs/common.py). Llama 1: the same in sequences of 2048, eps 1e-8
(section 2.3 gives none). Llama 3: peak learning rates of 8B, 70B and 405B are published (table 3);
warm-up of 8000 steps and cosine to 1 % are the 405B's (section 3.4.1), whose batch grew from 4 M to
16 M tokens: here 8 M throughout, for its 1.2 M steps 1.9 M. Llama 3.2 was pruned and distilled from
3.1 by a recipe that is not published: here Llama 3's, for its 9 T tokens. The scaled rotation of
3.1 and 3.2 came with the long-context stage; --config.model.rope_scaling=none trains without.

The sizes took, in A100 hours, 82,432, 135,168, 530,432 and 1,022,362 (Llama 1, table 15), 184,320,
368,640 and 1,720,320 (Llama 2, table 2); in million H100 hours, 1.3, 6.4 and 30.84 (Llama 3 8B, 70B
and 405B, model cards).

    python -m experiments.train --config=configs/llama.py --workdir=runs/llama --config.mesh.fsdp=64
"""

from configs.common import budget, llama_block, preset, presets, tiny_preset


def llama1(tokens, *sizes):
    config = llama2(*sizes, norm_eps=1e-6)
    budget(config, tokens, batch_size=2048, sequence_length=2048)
    config.optim.eps = 1e-8
    return config


def llama2(*sizes, **more):
    return llama_block(32_000, *sizes, **more)


def llama3(*sizes, tokens=15.6e12, **more):
    config = llama_block(128_256, *sizes, num_kv_heads=8, rope_theta=500_000.0, **more)
    budget(config, tokens, batch_size=1024, sequence_length=8192)
    config.optim.update(warmup_steps=8000, final_lr_fraction=0.01)
    return config


def scaled(factor, *sizes, **more):
    """With the rotation of 3.1 and 3.2, made for 128 K tokens."""
    more |= {"rope_scaling": "llama3", "rope_factor": factor, "rope_original_positions": 8192}
    return llama3(*sizes, **more)


def llama3_2(*sizes):
    return scaled(32.0, *sizes, tokens=9e12, tied_embedding=True)


GROUPED = {"num_kv_heads": 8}
llama1_7b = preset("llama1_7b", 6_738_415_616, llama1, 1e12, 32, 4096, 32, 11008)
llama1_13b = preset("llama1_13b", 13_015_864_320, llama1, 1e12, 40, 5120, 40, 13824)
llama1_33b = preset("llama1_33b", 32_528_943_616, llama1, 1.4e12, 60, 6656, 52, 17920, 1.5e-4)
llama1_65b = preset("llama1_65b", 65_285_660_672, llama1, 1.4e12, 80, 8192, 64, 22016, 1.5e-4)
llama2_7b = preset("llama2_7b", 6_738_415_616, llama2, 32, 4096, 32, 11008)
llama2_13b = preset("llama2_13b", 13_015_864_320, llama2, 40, 5120, 40, 13824)
llama2_70b = preset("llama2_70b", 68_976_648_192, llama2, 80, 8192, 64, 28672, 1.5e-4, **GROUPED)
llama3_8b = preset("llama3_8b", 8_030_261_248, llama3, 32, 4096, 32, 14336)
llama3_70b = preset("llama3_70b", 70_553_706_496, llama3, 80, 8192, 64, 28672, peak_lr=1.5e-4)
llama3_1_405b = preset("llama3_1_405b", 405_853_388_800, scaled, 8.0, 126, 16384, 128, 53248, 8e-5)
llama3_2_1b = preset("llama3_2_1b", 1_235_814_400, llama3_2, 16, 2048, 32, 8192)
llama3_2_3b = preset("llama3_2_3b", 3_212_749_824, llama3_2, 28, 3072, 24, 8192)
tiny = tiny_preset(llama3_1_405b, 250_432, num_kv_heads=2, d_ff=176, rope_original_positions=16)
LLAMA1 = (llama1_7b, llama1_13b, llama1_33b, llama1_65b)
LLAMA2 = (llama2_7b, llama2_13b, llama2_70b)
LLAMA3 = (llama3_8b, llama3_70b, llama3_1_405b, llama3_2_1b, llama3_2_3b)
get_config = presets(*LLAMA2, *LLAMA1, *LLAMA3, tiny)
