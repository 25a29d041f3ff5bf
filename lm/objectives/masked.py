"""Masked language modelling: tokens to be found again. BERT, arXiv:1810.04805, section 3.1, task 1.

RoBERTa, arXiv:1907.11692, 4.1 and 4.2: another mask each time, <s> ... </s>, no next sentence.
"""

import numpy as np

from lm.objectives.examples import Framed, ones, order, padded, token


class Masked(Framed):
    """tokens (corrupted), targets, weights (1 where predicted), segments (T,) and, with pairs,
    token_types (T,), 1 in the second text, and next_sentence (1,), its label.
    """

    def __init__(self, kind, objective, data, model, tokenizer):
        self.mask = token("mask", kind, data, tokenizer)
        super().__init__(kind, data, tokenizer, 2 + objective.next_sentence, 5)
        self.objective, self.ordinary = objective, tokenizer.ordinary
        self.copies, self.several_windows = objective.static_masks, objective.next_sentence
        self.starts_V = tokenizer.word_starts() if objective.whole_words else ~self.special_V

    def __call__(self, tokens, rng, another):
        parts = [tokens]
        if self.objective.next_sentence:
            *parts, label = next_sentence(tokens, rng, another)
        ended = [part for text in parts for part in (text, [self.end])]
        row = np.concatenate([[self.begin], *ended]).astype(np.int32)
        places = self._places(row, rng)
        weights = np.zeros(self.length, np.float32)
        weights[places] = 1
        example = {
            "tokens": padded(self._corrupted(row, places, rng), self.length, self.pad),
            "targets": padded(row, self.length, self.pad),
            "weights": weights,
            "segments": ones(len(row), self.length),
        }
        if self.objective.next_sentence:
            example["token_types"] = ones(len(row), self.length, len(parts[0]) + 2)
            example["next_sentence"] = np.array([label], np.int32)
        return example

    def _places(self, row, rng):
        """Which of the row's tokens are predicted: mask_rate of all but the special ones, rounded,
        whole words of one token or more. One that would be too many is passed by, as BERT does.
        """
        special = self.special_V[row]
        starts = self.starts_V[row] | special
        starts[1:] |= special[:-1]  # a word ends before a special token
        first = np.flatnonzero(starts)
        length = np.diff(first, append=len(row))
        words = np.flatnonzero(~special[first])
        left = max(1, round(self.objective.mask_rate * length[words].sum()))
        words = words[order(len(words), rng)]
        if length[words].max(initial=1) == 1:
            return first[words[:left]]
        places = []
        if length[words].min() > left:
            words = words[[length[words].argmin()]]
            left = length[words[0]]
        for word in words:
            if length[word] <= left:
                places.append(np.arange(first[word], first[word] + length[word]))
                left -= length[word]
        return np.concatenate(places)

    def _corrupted(self, row, places, rng):
        """80 % of the places become [MASK], 10 % any token that is not special; 10 % stay."""
        corrupted, share = row.copy(), rng.random(len(places))
        other = self.ordinary[(rng.random(len(places)) * len(self.ordinary)).astype(np.int64)]
        masked = self.objective.mask_token_share
        kept = np.where(share < masked + self.objective.random_token_share, other, row[places])
        corrupted[places] = np.where(share < masked, self.mask, kept)
        return corrupted


def next_sentence(tokens, rng, another):
    """(first, second, label): label 0 if the second goes on where the first ends, 1 if not.

    Half of the time it does not: it is of the same length, from another window. Where the first
    ends is drawn, as BERT's texts are no linguistic sentences either: arXiv:1810.04805, section
    3.1, task 2, and A.2.
    """
    cut = 1 + int(rng.random() * (len(tokens) - 1))
    first, second = tokens[:cut], tokens[cut:]
    if rng.random() < 0.5:
        return first, second, 0
    return first, np.asarray(another(rng))[: len(second)], 1
