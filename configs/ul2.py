"""UL2 20B (Tay et al. 2022, arXiv:2205.05131), and PaLM 2's kind of model (arXiv:2305.10403), tiny.
Claim: exactly UL2's architecture and parameter count, its seven denoisers, 1024 pairs of 512 and
512 tokens, and 2 M steps; Adafactor is replaced as in configs/t5.py. PaLM 2's sizes and mixture are
not published: `tiny_palm2` is PaLM's block under UL2's mixture, which reads what it is given in
both directions.

    python -m experiments.train --config=configs/ul2.py --workdir=runs/ul2 --config.mesh.fsdp=64
"""

from configs import palm, t5
from configs.common import presets, tiny_preset


def ul2_20b():
    """19,591,209,984 parameters; 1 T tokens."""
    config = t5.gated(32, 4096, 16, 256, 16384)
    config.model.activation = "silu"
    config.objective.kind = "ul2"
    config.data.update(batch_size=1024, target_length=512)
    config.train.num_steps = 2_000_000
    return config


def tiny_palm2():
    """311,616 parameters, of the shape of PaLM, trained in seconds on a CPU by UL2's mixture."""
    config = palm.tiny()
    config.model.prefix_attention = True
    config.objective.kind = "ul2"
    config.data.update(tokenizer="unigram", separate_documents=False)
    return config


tiny = tiny_preset(ul2_20b, 275_392, shrink=t5.shrunk, d_ff=176)
get_config = presets(ul2_20b, tiny, tiny_palm2)
