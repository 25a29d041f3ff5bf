"""GPT-2 in four sizes (Radford et al. 2019, Language Models are Unsupervised Multitask Learners).
Claim: exactly the published architecture and parameter counts. Neither WebText nor the learning
rate was published: the recipe is GPT-3's at the same sizes (arXiv:2005.14165, table 2.1 and
appendix B), warm-up over 375 M tokens and cosine to 10 % over 260 B of 300 B.

    python -m experiments.train --config=configs/gpt2.py:small --workdir=runs/gpt2
"""

from configs.common import base, preset, presets, tiny_preset, vocabulary


def sized(num_layers, d_model, num_heads, peak_lr, batch_size=512):
    config = base()
    vocabulary(config, 50_257)
    config.model.update(num_layers=num_layers, d_model=d_model, num_heads=num_heads)
    config.model.update(max_positions=1024, compute_dtype="bfloat16")
    config.data.update(batch_size=batch_size, sequence_length=1024, separate_documents=False)
    config.optim.update(peak_lr=peak_lr, warmup_steps=round(375e6 / (batch_size * 1024)))
    config.optim.decay_steps = 496_000 * 512 // batch_size
    config.train.num_steps = 572_000 * 512 // batch_size
    config.checkpoint.every_steps = 1000
    return config


small = preset("small", 124_439_808, sized, 12, 768, 12, 6e-4)
medium = preset("medium", 354_823_168, sized, 24, 1024, 16, 3e-4)
large = preset("large", 774_030_080, sized, 36, 1280, 20, 2.5e-4)
xl = preset("xl", 1_557_611_200, sized, 48, 1600, 25, 2e-4, batch_size=1024)
tiny = tiny_preset(small, 236_928)
get_config = presets(small, medium, large, xl, tiny)
