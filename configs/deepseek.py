"""DeepSeek-V2, V2-Lite (arXiv:2405.04434) and V3 (arXiv:2412.19437).
Claim: exactly the published architectures, parameter counts and number of tokens, the length of
4096, AdamW 0.9 and 0.95, 2000 steps of warm-up, decay 0.1, clipping at 1.0 and std 0.006.

Not the papers': V2's rate falls to 0.316 of itself after 60 and after 90 % of the tokens; here a
cosine to the same tenth. V3's is constant for 10 T tokens, falls to a tenth over 4.3 T and ends
lower still; here it falls, in a line, from 10 T on. Batches grow from 2304 to 9216 sequences (V2)
and from 3072 to 15,360 (V3) over the first 225 and 469 B tokens: here they have their last size
throughout. V2's balance losses of devices and of communication (0.05, 0.02) are left out; that of
experts is within each sequence. V3's second token has weight 0.3 throughout, which became 0.1 after
10 T, and its selection bias moves to the end, not only for 14.3 T. The rotation is the release's,
stretched 40 times by YaRN after the training; --config.model.rope_scaling=none
--config.model.rope_mscale=0.0 train without.

    python -m experiments.train --config=configs/deepseek.py --workdir=runs/a --config.mesh.fsdp=64
"""

from configs.common import budget, llama_block, presets, tiny_preset


def sized(vocab_size, *sizes, rope_mscale, tokens, batch_size, **model):
    """Latent attention, a first dense layer, and YaRN from 4096 positions to 163,840."""
    config = llama_block(vocab_size, *sizes, norm_eps=1e-6, initializer_std=0.006)
    config.model.update(kv_latent=512, head_width=192, rope_width=64, value_width=128)
    config.model.update(rope_scaling="yarn", rope_factor=40.0, rope_original_positions=4096)
    config.model.update(rope_attention_factor=1.0, rope_mscale=rope_mscale, dense_layers=1)
    config.model.update(model)
    budget(config, tokens, batch_size, sequence_length=4096)
    config.optim.eps = 1e-8
    return config


def v2(*sizes, **more):
    config = sized(102_400, *sizes, rope_mscale=0.707, experts_per_token=6, **more)
    config.objective.router_sequence_loss = 0.003
    return config


def deepseek_v2_lite():
    """15,706,484,224 parameters, of which a token uses 2,661,150,208."""
    experts = {"num_experts": 64, "expert_d_ff": 1408, "shared_expert_d_ff": 2 * 1408}
    return v2(27, 2048, 16, 10944, 4.2e-4, tokens=5.7e12, batch_size=4608, **experts)


def deepseek_v2():
    """235,741,434,880 parameters, of which a token uses 21,375,800,320."""
    config = v2(60, 5120, 128, 12288, 2.4e-4, tokens=8.1e12, batch_size=9216, query_latent=1536)
    config.model.update(num_experts=160, expert_d_ff=1536, shared_expert_d_ff=2 * 1536)
    config.model.update(router_scale=16.0, router_groups=8, router_groups_kept=3)
    return config


def deepseek_v3():
    """682,636,472,320 parameters with, 671,026,404,352 without the module for a second token, of
    which a token uses 37,552,282,624.
    """
    data = {"tokens": 14.8e12, "batch_size": 15_360}
    config = sized(129_280, 61, 7168, 128, 18432, 2.2e-4, rope_mscale=1.0, **data)
    config.model.update(query_latent=1536, dense_layers=3, mtp_depth=1)
    config.model.update(num_experts=256, experts_per_token=8, expert_d_ff=2048)
    config.model.update(shared_expert_d_ff=2048, router_renormalise=True, router_scale=2.5)
    config.model.update(router_score="sigmoid", router_selection_bias=True)
    config.model.update(router_groups=8, router_groups_kept=4, router_group_score="top2")
    config.objective.update(router_sequence_loss=1e-4, mtp_loss=0.3)
    config.optim.update(schedule="wsd", cooldown_fraction=4.8 / 14.8, router_bias_step=0.001)
    return config


# 2 of 8 experts, heads of 16 + 8, and a rotation stretched from 16 positions to 64.
TINY = {"rope_factor": 4.0, "rope_original_positions": 16, "num_layers": 3, "dense_layers": 1}
TINY |= {"num_experts": 8, "experts_per_token": 2, "d_ff": 176, "expert_d_ff": 64}
TINY |= {"shared_expert_d_ff": 64, "kv_latent": 32}
TINY |= {"head_width": 24, "rope_width": 8, "value_width": 16}
GROUPED = TINY | {"query_latent": 48, "router_groups": 4, "router_groups_kept": 2}
tiny_v2_lite = tiny_preset(deepseek_v2_lite, 372_768, "tiny_v2_lite", **TINY)
tiny_v2 = tiny_preset(deepseek_v2, 377_520, "tiny_v2", **GROUPED)
tiny = tiny_preset(deepseek_v3, 515_648, **GROUPED)
get_config = presets(deepseek_v2_lite, deepseek_v2, deepseek_v3, tiny, tiny_v2, tiny_v2_lite)
