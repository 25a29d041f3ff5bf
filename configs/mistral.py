"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825), version 0.1 with its window, and 0.3 without.

Claim: exactly the published architectures and parameter counts. Of the training nothing is
published but the length of 8192: the rest is the default recipe (configs/common.py), 2 T tokens
included. The data is yours. Not run here at full length.

Expected: MMLU with 5 examples 60.1 (table 2).

    python -m experiments.train --config=configs/mistral.py --workdir=/mnt/BUCKET/mistral \\
        --config.data.path=TEXT --config.mesh.fsdp=64
"""

from configs import common
from configs.base import presets


def mistral_7b_v0_1():
    """7,241,732,096 parameters. Every layer sees 4096 tokens."""
    config = common.llama_block()
    common.vocabulary(config, 32_000)
    config.model.update(num_layers=32, d_model=4096, num_heads=32, num_kv_heads=8, d_ff=14336)
    config.model.update(attention_pattern="local", window=4096)
    common.budget(config, tokens=2e12, batch_size=512, sequence_length=8192)
    return config


def mistral_7b_v0_3():
    """7,248,023,552 parameters. Every layer sees all tokens; 768 more of them, for tools."""
    config = mistral_7b_v0_1()
    common.vocabulary(config, 32_768)
    config.model.update(attention_pattern="full", window=0, rope_theta=1e6)
    return config


def tiny():
    """250,432 parameters, of the shape of 0.1, trained in seconds on a CPU: a window of 16."""
    return common.tiny(mistral_7b_v0_1(), num_kv_heads=2, d_ff=176, window=16)


get_config = presets(mistral_7b_v0_1, mistral_7b_v0_3, tiny)
