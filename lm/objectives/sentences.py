"""Sentences, one to a row, for contrastive learning: SimCSE, arXiv:2104.08821, section 3."""

import numpy as np

from lm.errors import require
from lm.objectives.examples import Examples, ones, padded, token

SHORTEST = 4  # tokens; a shorter sentence is taken only if there is no other


class Sentences(Examples):
    """tokens, [CLS] ... [SEP] and padding, segments (T,), 0 in the padding, and weights (1,).

    The sentence is drawn from those that lie whole in the window, which is as long as fits a row.
    """

    def __init__(self, kind, objective, data, model, tokenizer):
        self.length = data.sequence_length
        self.begin, self.end = (token(role, kind, data, tokenizer) for role in ("begin", "end"))
        self.pad = tokenizer.special.get("pad", 0)
        self.raw_length = self.length - 2
        require(
            self.raw_length >= 2,
            f"data.sequence_length={self.length} is too short for objective.kind={kind!r}; make it "
            "4 or more.",
        )
        self.ends_V = tokenizer.sentence_ends()
        self.ordinary_V = np.zeros(tokenizer.size, bool)
        self.ordinary_V[tokenizer.ordinary] = True

    def __call__(self, tokens, rng, another):
        parts = np.split(tokens, np.flatnonzero(self.ends_V[tokens[:-1]]) + 1)
        parts = [part[self.ordinary_V[part]] for part in parts]
        whole = parts[1:-1]  # the first and the last go on outside the window
        long = [part for part in whole if len(part) >= SHORTEST] or [max(parts, key=len)]
        row = [self.begin, *long[int(rng.random() * len(long))], self.end]
        return {
            "tokens": padded(row, self.length, self.pad),
            "segments": ones(len(row), self.length),
            "weights": np.ones(1, np.float32),
        }
