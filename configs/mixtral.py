"""Mixtral 8x7B and 8x22B (Jiang et al. 2024, arXiv:2401.04088): Mistral with 8 experts, of which
every token takes 2.

Claim: exactly the published architectures and parameter counts. Of the training nothing is
published but the lengths (32,768 and 65,536) and, with the release, a coefficient of 0.02 of the
router's balance loss: the rest is the default recipe (configs/common.py), 2 T tokens included. The
data is yours. Not run here at full length.

Expected: MMLU with 5 examples 70.6 (8x7B, table 2).

    python -m experiments.train --config=configs/mixtral.py --workdir=/mnt/BUCKET/mixtral \\
        --config.data.path=TEXT --config.mesh.fsdp=128
"""

from configs import common
from configs.base import presets


def sized(num_layers, d_model, num_heads, d_ff, sequence_length):
    config = common.llama_block()
    common.vocabulary(config, 32_000)
    config.model.update(num_layers=num_layers, d_model=d_model, num_heads=num_heads, d_ff=d_ff)
    config.model.update(num_kv_heads=8, rope_theta=1e6)
    config.model.update(num_experts=8, experts_per_token=2, router_renormalise=True)
    config.objective.router_aux_loss = 0.02
    batch_size = 2**22 // sequence_length
    common.budget(config, tokens=2e12, batch_size=batch_size, sequence_length=sequence_length)
    config.optim.peak_lr = 1.5e-4
    return config


def mixtral_8x7b():
    """46,702,792,704 parameters, of which a token uses 12,879,925,248."""
    return sized(32, 4096, 32, 14336, sequence_length=32_768)


def mixtral_8x22b():
    """140,620,634,112 parameters."""
    return sized(56, 6144, 48, 16384, sequence_length=65_536)


def tiny():
    """510,528 parameters, of the same shape, trained in seconds on a CPU: 2 of 8 experts."""
    return common.tiny(mixtral_8x7b(), num_kv_heads=2, d_ff=64)


get_config = presets(mixtral_8x7b, mixtral_8x22b, tiny)
