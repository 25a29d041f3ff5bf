"""nanoGPT's CPU configuration on Tiny Shakespeare: characters, 4 layers, 4 heads, width 128, context 64, batch 12.

Claim: validation loss of at most 1.90 nats per character after 2000 steps, mean of three seeds, over the whole split;
nanoGPT itself reaches 1.892, 1.903 and 1.913. About a minute on two CPU cores.

    python -m experiments.train --config=configs/shakespeare.py --workdir=runs/shakespeare --config.data.path=tinyshakespeare.txt
"""

from configs.base import base, presets


def cpu():
    config = base()
    config.model.update(num_layers=4, num_heads=4, d_model=128, norm_bias=False)
    config.model.update(qkv_bias=False, attention_output_bias=False, feedforward_bias=False)
    config.data.update(tokenizer="characters", batch_size=12, sequence_length=64, separate_documents=False)
    config.optim.update(peak_lr=1e-3, final_lr_fraction=0.1, warmup_steps=100, beta1=0.9, beta2=0.99, weight_decay=0.1)
    config.train.num_steps = 2000
    config.evaluate.every_steps = 500
    config.checkpoint.every_steps = 500
    return config


get_config = presets(cpu)
