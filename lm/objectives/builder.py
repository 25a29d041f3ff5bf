"""From the configuration of an objective to what makes its examples."""

import functools

from lm.data import mixture
from lm.objectives.denoise import Denoising
from lm.objectives.examples import Examples
from lm.objectives.masked import Masked
from lm.objectives.sentences import Sentences
from lm.objectives.spans import UL2, Prefix, SpanCorruption

EXAMPLES = {
    "masked": Masked,
    "replaced": Masked,
    "span_corruption": SpanCorruption,
    "denoising": Denoising,
    "prefix": Prefix,
    "ul2": UL2,
    "contrastive": Sentences,
}


def make_examples(objective, data, model, tokenizer):
    """The Examples of an objective, for lm.data.loader; None if it is causal. objective, data,
    model: those sections of the configuration; of model: stack and start_token. Raises UserError
    for what the tokenizer or the lengths cannot do.
    """
    shares = objective.kinds()
    if "causal" in shares:
        return None
    parts = [EXAMPLES[kind](kind, objective, data, model, tokenizer) for kind in shares]
    weights = mixture.integers("objective.kind", shares.values())
    return parts[0] if len(parts) == 1 else Mixed(parts, weights)


class Mixed(Examples):
    """Several objectives in exact proportions; each reads what it needs of the longest window."""

    def __init__(self, parts, weights):
        self.parts, self.weights = parts, weights
        for name in ("raw_length", "target_length", "copies", "several_windows"):
            setattr(self, name, max(getattr(part, name) for part in parts))
        for part in parts:
            part.target_length = self.target_length

    def choose(self, example_B, seed):
        part_B, _ = mixture.assign(example_B, self.weights, seed + (1 << 49))
        return [functools.partial(_first_of, self.parts[part]) for part in part_B]


def _first_of(part, tokens, rng, another):
    return part(tokens[: part.raw_length], rng, another)
