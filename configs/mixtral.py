"""Mixtral 8x7B and 8x22B (Jiang et al. 2024, arXiv:2401.04088): Mistral with 8 experts, of which
every token takes 2.
Claim: exactly the published architectures and parameter counts. Of the training nothing is
published but the lengths (32,768 and 65,536) and, with the release, a coefficient of 0.02 of the
router's balance loss: the rest is the default recipe (configs/common.py), 2 T tokens included.

    python -m experiments.train --config=configs/mixtral.py --workdir=runs/a --config.mesh.fsdp=128
"""

from configs.common import budget, llama_block, preset, presets, tiny_preset


def sized(sequence_length, *sizes):
    config = llama_block(32_000, *sizes, peak_lr=1.5e-4, num_kv_heads=8, rope_theta=1e6)
    config.model.update(num_experts=8, experts_per_token=2, router_renormalise=True)
    config.objective.router_aux_loss = 0.02
    budget(config, 2e12, 2**22 // sequence_length, sequence_length)
    return config


COUNT = "46,702,792,704 parameters, of which a token uses 12,879,925,248."
mixtral_8x7b = preset("mixtral_8x7b", COUNT, sized, 32_768, 32, 4096, 32, 14336)
mixtral_8x22b = preset("mixtral_8x22b", 140_620_634_112, sized, 65_536, 56, 6144, 48, 16384)
tiny = tiny_preset(mixtral_8x7b, 510_528, num_kv_heads=2, d_ff=64)
get_config = presets(mixtral_8x7b, mixtral_8x22b, tiny)
