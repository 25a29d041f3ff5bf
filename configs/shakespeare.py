"""nanoGPT's CPU configuration on Tiny Shakespeare, character by character.
Claim: the same model, batch, schedule and number of steps as the command under "I only have a
macbook" in the README of github.com/karpathy/nanoGPT.

Expected: validation loss of at most 1.90 nats per character over the whole split, mean of three
seeds; nanoGPT itself, measured in the same way, reaches 1.892, 1.903 and 1.913. About a minute on
two CPU cores.

    python -m experiments.train --config=configs/shakespeare.py --workdir=runs/shakespeare \\
        --config.data.path=tinyshakespeare.txt

The text is 1.1 MB: github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt.
"""

from configs.base import base, presets


def cpu():
    """0.8 M parameters, of which 65 characters by 128 in the embedding."""
    config = base()
    config.model.update(num_layers=4, num_heads=4, d_model=128, norm_bias=False)
    config.model.update(qkv_bias=False, attention_output_bias=False, feedforward_bias=False)
    config.data.update(tokenizer="characters", batch_size=12, sequence_length=64)
    config.data.separate_documents = False
    config.optim.update(peak_lr=1e-3, beta2=0.99)
    # Four layers compile fast unrolled, and then run faster on CPUs.
    config.model.scan_layers = False
    config.train.num_steps = 2000
    config.evaluate.every_steps = 500
    config.checkpoint.every_steps = 500
    return config


get_config = presets(cpu)
