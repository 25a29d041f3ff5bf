"""Language models in JAX: one configurable Transformer, one train step, a laptop or a pod.

Arrays carry their dims as a suffix, x_BTD:

    B batch, T query position, S key position, D model, N query heads, K key heads, H head width,
    F hidden, V vocabulary, E experts, L layers

In a notebook: `model = lm.load("runs/a"); logits_BTV = model(tokens_BT); lm.generate(model, ...)`.
"""

import importlib

__version__ = "0.1.0"

# Imported when first used: `import lm` costs nothing, and `lm.errors` needs no jax.
_HOMES = {
    "LanguageModel": "lm.model",
    "TransformerConfig": "lm.nn.config",
    "fill": "lm.sampling.fill",
    "generate": "lm.sampling.sample",
    "load": "lm.model",
}
__all__ = ["LanguageModel", "TransformerConfig", "fill", "generate", "load"]


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_HOMES])
