"""Gemma 2B and 7B (Gemma Team 2024, arXiv:2403.08295).
Claim: exactly the published architectures and parameter counts, and the published number of tokens
(3 and 6 T) in sequences of 8192. Batch and optimiser are not published: here the default recipe
(configs/common.py).

    python -m experiments.train --config=configs/gemma.py --workdir=runs/gemma --config.mesh.fsdp=64
"""

from configs.common import budget, llama_block, preset, presets, tiny_preset


def sized(num_layers, d_model, num_heads, num_kv_heads, head_width, d_ff, tokens, length=8192):
    config = llama_block(256_000, num_layers, d_model, num_heads, d_ff)
    config.model.update(num_kv_heads=num_kv_heads, head_width=head_width)
    config.model.update(norm_eps=1e-6, norm_offset=True, activation="gelu_tanh")
    config.model.update(tied_embedding=True, embedding_scale=d_model**0.5)
    budget(config, tokens, batch_size=2**22 // length, sequence_length=length)
    return config


gemma_2b = preset("gemma_2b", 2_506_172_416, sized, 18, 2048, 8, 1, 256, 16384, 3e12)
gemma_7b = preset("gemma_7b", 8_537_680_896, sized, 28, 3072, 16, 16, 256, 24576, 6e12)
tiny = tiny_preset(gemma_2b, 311_872, num_kv_heads=1, head_width=32, d_ff=256, embedding_scale=8.0)
get_config = presets(gemma_2b, gemma_7b, tiny)
