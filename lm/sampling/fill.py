"""Fill the blanks of a text with an encoder's guesses."""

import dataclasses

import numpy as np

from lm.errors import require
from lm.sampling.sample import framed


@dataclasses.dataclass(frozen=True)
class Blank:
    """The likeliest tokens of a blank, best first: their texts, numbers and probabilities."""

    texts: list[str]
    tokens: list[int]
    probabilities: list[float]


def fill(model, text, top_k=5):
    """(the text with the likeliest token in each blank, a Blank for each).

    model: an lm.model.LanguageModel with an encoder alone. text: with the name of the mask, [MASK]
    or <mask>, where a token is missing; each is guessed beside the other blanks, not after them.
    Raises UserError for a model or a text without blanks.
    """
    tokenizer, stack, most = model.tokenizer, model.config.stack, model.config.vocab_size
    told = f"a model of stack {stack!r} fills no blanks; lm.generate(model, ...) continues."
    require(stack == "encoder", told)
    told = "the model has no tokenizer with a mask, and so no blanks; give it tokens."
    require(tokenizer is not None and "mask" in tokenizer.special, told)
    require(1 <= top_k <= most, f"top_k={top_k} is not possible; it must be from 1 to {most}.")
    tokens = framed(tokenizer, text)
    places = np.flatnonzero(tokens == tokenizer.special["mask"])
    name = tokenizer.library.id_to_token(tokenizer.special["mask"])
    require(places.size, f"{text!r} has no blank; write {name} where a token is missing.")
    logits_KV = np.asarray(model(tokens[None])[0], np.float64)[places][:, : tokenizer.size]
    odds_KV = np.exp(logits_KV - logits_KV.max(-1, keepdims=True))
    odds_KV /= odds_KV.sum(-1, keepdims=True)
    best_KN = np.argsort(-odds_KV, -1, kind="stable")[:, :top_k]
    blanks = []
    for odds_V, best_N in zip(odds_KV, best_KN, strict=True):
        texts = [tokenizer.decode([token]) for token in best_N]
        blanks.append(Blank(texts, best_N.tolist(), odds_V[best_N].tolist()))
    filled = tokens.copy()
    filled[places] = best_KN[:, 0]
    return tokenizer.decode(filled), blanks
