"""Sentences, one to a row, for contrastive learning: SimCSE, arXiv:2104.08821, section 3."""

import numpy as np

from lm.objectives.examples import Framed, ones, padded

SHORTEST = 4  # tokens; a shorter sentence is taken only if there is no other


class Sentences(Framed):
    """tokens, [CLS] ... [SEP] and padding, segments (T,), 0 in the padding, and weights (1,). The
    sentence is drawn from those that lie whole in the window, which is as long as fits a row.
    """

    def __init__(self, kind, objective, data, model, tokenizer):
        super().__init__(kind, data, tokenizer, 2, 4)
        self.ends_V = tokenizer.sentence_ends()

    def __call__(self, tokens, rng, another):
        parts = np.split(tokens, np.flatnonzero(self.ends_V[tokens[:-1]]) + 1)
        parts = [part[~self.special_V[part]] for part in parts]
        whole = parts[1:-1]  # the first and the last go on outside the window
        long = [part for part in whole if len(part) >= SHORTEST] or [max(parts, key=len)]
        row = [self.begin, *long[int(rng.random() * len(long))], self.end]
        return {
            "tokens": padded(row, self.length, self.pad),
            "segments": ones(len(row), self.length),
            "weights": np.ones(1, np.float32),
        }
