"""Switch Transformers (Fedus et al. 2021, arXiv:2101.03961): the released base with 8 to 256
experts, and the paper's large, XXL and C.
Claim: exactly the released architecture and parameter counts, and of the paper's recipe capacity
1.25, balance loss 0.01 and noise of 1 %; objective, budget and optimiser are configs/t5.py's. The
paper's base has other, gated experts (7 B with 128 of them); XXL has its 395 B with 128 experts,
where table 9 says 64.

    python -m experiments.train --config=configs/switch.py --workdir=runs/switch
"""

from configs import t5
from configs.common import preset, presets, tiny_preset


def sized(make, num_experts, every, *sizes):
    """make: the T5 whose feed-forward is the experts'; every: of how many layers one has them."""
    config = make(*sizes)
    config.model.update(num_experts=num_experts, experts_every=every, router_jitter=0.01)
    config.model.expert_capacity_factor = 1.25
    config.objective.router_aux_loss = 0.01
    return config


def released(num_experts):
    return sized(t5.sized, num_experts, 2, 12, 768, 12, 64, 3072)


base_8 = preset("base_8", 619_339_008, released, 8)
base_16 = preset("base_16", 1_072_397_568, released, 16)
base_32 = preset("base_32", 1_978_514_688, released, 32)
base_64 = preset("base_64", 3_790_748_928, released, 64)
base_128 = preset("base_128", 7_415_217_408, released, 128)
base_256 = preset("base_256", 14_664_154_368, released, 256)
large = preset("large", 27_153_787_904, sized, t5.gated, 128, 2, 24, 1024, 16, 64, 2816)
xxl = preset("xxl", 394_675_073_024, sized, t5.gated, 128, 2, 24, 4096, 64, 64, 10240)
c = preset("c", 1_571_308_972_448, sized, t5.sized, 2048, 1, 15, 2080, 32, 64, 6144)
TINY = {"num_experts": 4, "d_ff": 128, "logit_scale": 64**-0.5}
tiny = tiny_preset(base_8, 271_808, shrink=t5.shrunk, **TINY)
BASE = (base_8, base_16, base_32, base_64, base_128, base_256)
get_config = presets(*BASE, large, xxl, c, tiny)
