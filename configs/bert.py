"""BERT (Devlin et al. 2018, arXiv:1810.04805), base and large, uncased and cased.
Claim: exactly the published architecture and parameter counts, both heads of pretraining included,
and the recipe: pairs of texts, 15 % of tokens predicted under 10 fixed masks, 256 sequences for 1 M
steps (the paper's first 90 % had 128 tokens, here all have 512). The data is yours; the tokenizer
trained here is uncased. Not run here at full length.

    python -m experiments.train --config=configs/bert.py --workdir=runs/bert
"""

from configs import common


def sized(vocab_size, num_layers=12, d_model=768, num_heads=12):
    config = common.base()
    common.vocabulary(config, vocab_size)
    config.model.update(stack="encoder", max_positions=512, token_types=2, norm_placement="post")
    config.model.update(num_layers=num_layers, d_model=d_model, num_heads=num_heads)
    config.model.update(final_norm=False, embedding_norm=True, norm_eps=1e-12, activation="gelu")
    config.model.update(head="transform", head_bias="learned", pooler=True, next_sentence=True)
    config.model.update(initializer="truncated_normal", scaled_residual_init=False)
    config.model.update(embedding_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1)
    config.model.compute_dtype = "bfloat16"
    config.objective.update(kind="masked", next_sentence=True, static_masks=10)
    config.data.update(tokenizer="wordpiece", separate_documents=False)
    config.data.update(batch_size=256, sequence_length=512)
    config.optim.update(peak_lr=1e-4, warmup_steps=10_000, schedule="linear", beta2=0.999, eps=1e-6)
    config.optim.update(final_lr_fraction=0.0, weight_decay=0.01)
    config.train.num_steps = 1_000_000
    return config


LARGE = (24, 1024, 16)
base_uncased = common.preset("base_uncased", 110_106_428, sized, 30_522)
large_uncased = common.preset("large_uncased", 336_226_108, sized, 30_522, *LARGE)
base_cased = common.preset("base_cased", 108_932_934, sized, 28_996)
large_cased = common.preset("large_cased", 334_661_958, sized, 28_996, *LARGE)
tiny = common.tiny_preset(base_uncased, 144_130, shrink=common.tiny_encoder)


def tiny_electra():
    """144,065 parameters, of the shape of base_uncased, for ELECTRA's loss (arXiv:2003.10555)."""
    config = common.tiny_encoder(base_uncased(), next_sentence=False, pooler=False, detector=True)
    config.objective.update(kind="replaced", next_sentence=False)
    return config


def tiny_simcse():
    """144,000 parameters, of the shape of base_uncased, for SimCSE's loss (arXiv:2104.08821)."""
    config = common.tiny_encoder(base_uncased(), next_sentence=False, residual_dropout=0.1)
    config.objective.update(kind="contrastive", next_sentence=False, pooling="pooler")
    config.train.num_steps = 250
    return config


SIZES = (base_uncased, large_uncased, base_cased, large_cased)
get_config = common.presets(*SIZES, tiny, tiny_electra, tiny_simcse)
