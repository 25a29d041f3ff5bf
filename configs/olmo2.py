"""OLMo 2 in four sizes (OLMo Team 2024, arXiv:2501.00656), without the mid-training stage.
Claim: exactly the published architectures, parameter counts and recipe: 4, 5 and 6 T tokens (7B,
13B, 32B) in batches of 1024 (7B) or 2048 sequences of 4096, AdamW 0.9, 0.95 and 1e-8, peak learning
rates 3e-4, 9e-4 and 6e-4, 2000 steps of warm-up, cosine to 10 %, decay 0.1 but not of the
embeddings, clipping at 1.0, z-loss 1e-5, std 0.02 throughout. The paper has no 1B: here its 4 T
tokens (model card), and the recipe of 7B.

    python -m experiments.train --config=configs/olmo2.py --workdir=runs/olmo2 --config.mesh.fsdp=64
"""

from configs.common import budget, llama_block, preset, presets, tiny_preset


def sized(tokens, batch_size, *sizes, **more):
    config = llama_block(100_352, *sizes, rope_theta=500_000.0, norm_eps=1e-6, **more)
    config.model.update(norm_placement="output", query_key_norm="full")
    config.objective.z_loss = 1e-5
    config.data.tokenizer_size = 100_278  # rows beyond these are for a mesh to divide
    budget(config, tokens, batch_size, sequence_length=4096)
    config.optim.update(eps=1e-8, decay="kernels")
    return config


olmo2_1b = preset("olmo2_1b", 1_484_916_736, sized, 4e12, 1024, 16, 2048, 16, 8192)
olmo2_7b = preset("olmo2_7b", 7_298_617_344, sized, 4e12, 1024, 32, 4096, 32, 11008)
olmo2_13b = preset("olmo2_13b", 13_716_198_400, sized, 5e12, 2048, 40, 5120, 40, 13824, 9e-4)
B32 = (6e12, 2048, 64, 5120, 40, 27648, 6e-4)
olmo2_32b = preset("olmo2_32b", 32_234_279_936, sized, *B32, num_kv_heads=8)
tiny = tiny_preset(olmo2_32b, 250_816, num_kv_heads=2, d_ff=176)
get_config = presets(olmo2_7b, olmo2_1b, olmo2_13b, olmo2_32b, tiny)
