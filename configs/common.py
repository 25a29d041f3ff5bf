"""What presets of several families have in common: a parent, a budget and a size for CPUs.

The data is yours: `--config.data.path=TEXT`. No preset of a published size ran here at full length.
"""

from configs.base import base
from configs.base import presets as presets  # for the files of presets


def llama_block(vocab_size, num_layers, d_model, num_heads, d_ff=None, peak_lr=3e-4, **model):
    """Llama's decoder with Llama 2's recipe (arXiv:2307.09288, section 2.2). `model`: other keys.

    The recipe is also what presets take where nothing is published: 4 M tokens a batch, 2 T of
    them, AdamW 0.9, 0.95 and 1e-5, 3e-4 (1.5e-4 from 30 B parameters on) after 2000 steps of
    warm-up, cosine to 10 %, decay 0.1, clipping at 1.0. They call it the default recipe.
    """
    config = base()
    vocabulary(config, vocab_size)
    config.model.update(num_layers=num_layers, d_model=d_model, num_heads=num_heads, d_ff=d_ff)
    config.model.update(position="rope", norm="rms_norm", norm_bias=False, norm_eps=1e-5)
    config.model.update(activation="silu", gated=True, tied_embedding=False)
    config.model.update(qkv_bias=False, attention_output_bias=False, feedforward_bias=False)
    config.model.update(scaled_residual_init=False, compute_dtype="bfloat16", remat="full")
    config.model.attention_backend = "chunked"
    config.model.update(model)
    # Of about 1024 hidden units, or 8 where the configuration derives how many units there are.
    config.model.feedforward_pieces = max(1, (d_ff or 8192) // 1024)
    config.objective.logits_chunk = 16384
    budget(config, tokens=2e12, batch_size=1024, sequence_length=4096)
    config.optim.update(peak_lr=peak_lr, warmup_steps=2000, eps=1e-5)
    config.checkpoint.every_steps = 1000
    return config


def vocabulary(config, size):
    """As many rows in the embedding as a tokenizer trained here has tokens."""
    config.model.vocab_size = config.data.tokenizer_size = size


def budget(config, tokens, batch_size, sequence_length):
    """The batch, in sequences and their length, and as many steps as `tokens` make."""
    config.data.update(batch_size=batch_size, sequence_length=sequence_length)
    config.train.num_steps = round(tokens / (batch_size * sequence_length))


def tiny(config, **model):
    """`config` in a size that two CPU cores train in seconds: a family's switches, none of its
    recipe but dropout, coefficients of losses and the router's bias. `model`: other sizes.
    """
    bias_step = config.optim.router_bias_step
    vocabulary(config, 512)
    config.model.update(num_layers=4, d_model=64, num_heads=4, num_kv_heads=None, head_width=None)
    config.model.update(d_ff=None, max_positions=None, compute_dtype="float32", remat="none")
    config.model.attention_backend = "plain"
    config.model.update(model)
    config.objective.logits_chunk = 0
    # Evaluation reads all of the held-out part: one hundredth keeps it at seconds.
    config.data.update(batch_size=16, sequence_length=64, validation_fraction=0.01)
    config.data.target_length = min(config.data.target_length, 64)
    config.optim = base().optim
    config.optim.update(peak_lr=3e-3, warmup_steps=20, router_bias_step=bias_step)
    config.train.num_steps = 250
    config.evaluate.every_steps = 125
    config.checkpoint.every_steps = 50
    return config


def tiny_encoder(config, **model):
    """As `tiny`, for what predicts only some tokens of a text and so learns less from each: shorter
    texts, more of them, more steps, no dropout.
    """
    without = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)
    config = tiny(config, **{"num_layers": 2, "initializer_std": 0.05, **without, **model})
    config.data.update(batch_size=64, sequence_length=32)
    config.train.num_steps = 800
    config.evaluate.every_steps = 400
    return config


def preset(name, count, make, *sizes, **more):
    """A preset as a row of a table of sizes: a function of nothing, that is make(*sizes, **more).
    count: its parameters, for the docstring; a number, or a text that begins with it.
    """

    def function():
        return make(*sizes, **more)

    count = f"{count:,} parameters." if isinstance(count, int) else count
    function.__name__, function.__module__, function.__doc__ = name, make.__module__, count
    return function


def tiny_preset(large, count, name="tiny", shrink=tiny, **model):
    """The preset `large` in the size of `tiny`, as a preset of the same file."""
    text = f"{count:,} parameters, of the shape of {large.__name__}, trained in seconds on a CPU."
    function = preset(name, text, lambda: shrink(large(), **model))
    function.__module__ = large.__module__
    return function
