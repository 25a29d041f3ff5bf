"""PaLM in three sizes (Chowdhery et al. 2022, arXiv:2204.02311).
Claim: exactly the published architectures and parameter counts (8.63, 62.50 and 540.35 B), length
and number of tokens, 780 B (62B: 795 B, here the others').

Not the paper's: its optimiser is Adafactor without factoring at 1e-2 for 10,000 steps and then at 1
over the square root of the step, with a decay of the rate squared (section 5). Here AdamW with the
default recipe's peaks (configs/common.py), 10,000 steps of warm-up and the same square root. Its
batch grew from 512 over 1024 to 2048 sequences (after 50,000 and 115,000 of 255,000 steps): here
2048 throughout. The z-loss is the paper's, and so is the model at the first step, with a std of
1 / sqrt(inputs) for kernels and of 1 for embeddings. But the table is kept divided by
sqrt(d_model), and embeddings are scaled instead of logits: the same function, whose table Adam's
steps, unlike Adafactor's no larger for larger parameters, move as fast as the kernels.

    python -m experiments.train --config=configs/palm.py --workdir=runs/palm --config.mesh.fsdp=64
"""

from configs.common import budget, llama_block, preset, presets, tiny_preset


def sized(num_layers, d_model, num_heads, peak_lr=1.5e-4):
    config = llama_block(256_000, num_layers, d_model, num_heads, 4 * d_model, peak_lr)
    config.model.update(num_kv_heads=1, head_width=256, norm="layer_norm", parallel_block=True)
    config.model.update(tied_embedding=True, initializer="fan_in", embedding_scale=d_model**0.5)
    config.objective.z_loss = 1e-4
    budget(config, tokens=780e9, batch_size=2048, sequence_length=2048)
    config.optim.update(warmup_steps=10_000, schedule="inverse_sqrt", eps=1e-8)
    return config


palm_8b = preset("palm_8b", 8_632_012_800, sized, 32, 4096, 16, 3e-4)
palm_62b = preset("palm_62b", 62_495_662_080, sized, 64, 8192, 32)
palm_540b = preset("palm_540b", 540_356_474_880, sized, 118, 18432, 48)
tiny = tiny_preset(palm_8b, 311_616, num_kv_heads=1, head_width=32, d_ff=256, embedding_scale=8.0)
get_config = presets(palm_8b, palm_62b, palm_540b, tiny)
