"""From the configuration of an objective to what makes its examples."""

import functools

from lm.data import mixture
from lm.errors import require, require_in
from lm.objectives.denoise import Denoising
from lm.objectives.examples import Examples, fit
from lm.objectives.masked import Masked
from lm.objectives.sentences import Sentences
from lm.objectives.spans import UL2, Prefix, SpanCorruption

# Of these one batch can hold several.
SOURCE_TARGET = {
    "span_corruption": SpanCorruption,
    "denoising": Denoising,
    "prefix": Prefix,
    "ul2": UL2,
}
ENCODER = {"masked": Masked, "replaced": Masked, "contrastive": Sentences}
KINDS = ("causal", *ENCODER, *SOURCE_TARGET)


def parse_kind(kind):
    """(names, weights) of objective.kind: "prefix", or a mixture, "span_corruption=3,prefix=1"."""
    names, given = [], []
    for part in kind.split(","):
        name, equals, weight = part.partition("=")
        require_in("objective.kind", name.strip(), KINDS)
        names.append(name.strip())
        given.append(weight if equals else "1")
    weights = mixture.integers("objective.kind", given)
    others = [name for name in names if name not in SOURCE_TARGET]
    require(
        len(names) == 1 or not others,
        f"objective.kind={kind!r} mixes batches of two forms; only {', '.join(SOURCE_TARGET)} can "
        "be mixed.",
    )
    require(
        len({*names}) == len(names), f"objective.kind={kind!r} names one twice; add their weights."
    )
    return tuple(names), weights


def target_length(objective, data, stack):
    """Positions of an encoder-decoder's targets: data.target_length, or what the objective needs;
    0 for other models.
    """
    names, _ = parse_kind(objective.kind)
    if stack != "encoder_decoder" or names[0] not in SOURCE_TARGET:
        return 0
    return max(fit(SOURCE_TARGET[name], name, objective, data, stack)[1] for name in names)


def make_examples(objective, data, model, tokenizer):
    """The Examples of an objective, for lm.data.loader; None if it is causal.

    objective, data, model: with the attributes of those sections of the configuration; of model:
    stack and start_token. Raises UserError for what the model, the tokenizer or the data cannot do.
    """
    names, weights = parse_kind(objective.kind)
    if names == ("causal",):
        return None
    require(
        not data.separate_documents,
        f"objective.kind={objective.kind!r} reads one long stream of documents; set "
        "data.separate_documents=False.",
    )
    stacks = ("encoder",) if names[0] in ENCODER else ("encoder_decoder", "decoder")
    require(
        model.stack in stacks,
        f"objective.kind={objective.kind!r} is not for model.stack={model.stack!r}; set that to "
        f"{' or '.join(stacks)}, or take another objective.",
    )
    classes = ENCODER | SOURCE_TARGET
    made = [classes[name](name, objective, data, model, tokenizer) for name in names]
    return made[0] if len(made) == 1 else Mixed(made, weights)


class Mixed(Examples):
    """Several objectives in exact proportions; each reads what it needs of the longest window."""

    def __init__(self, parts, weights):
        self.parts, self.weights = parts, weights
        self.raw_length = max(part.raw_length for part in parts)
        self.target_length = max(part.target_length for part in parts)
        for part in parts:
            part.target_length = self.target_length

    def choose(self, example_B, seed):
        part_B, _ = mixture.assign(example_B, self.weights, seed + (1 << 49))
        return [functools.partial(_first_of, self.parts[part]) for part in part_B]


def _first_of(part, tokens, rng, another):
    return part(tokens[: part.raw_length], rng, another)
