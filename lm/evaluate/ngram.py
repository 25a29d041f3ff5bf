"""Unigram and bigram models of tokens: what a language model must beat to have learned anything."""

import math

import numpy as np


class Unigram:
    """Token frequencies with one added to each count, so that none is impossible."""

    def __init__(self, tokens, vocab_size):
        counts = np.bincount(tokens, minlength=vocab_size) + 1.0
        self.probability_V = counts / counts.sum()

    def __call__(self, previous, token):
        """The probability of each of `token` (any shape); `previous` is not looked at."""
        return self.probability_V[token]


class Bigram:
    """Counts of pairs, interpolated with the unigram by Witten and Bell's rule. p(w | v) = (c(v, w)
    + d(v) u(w)) / (c(v) + d(v)), where d(v) is how many different tokens follow v. Chen and Goodman
    1998, section 2.6.
    """

    def __init__(self, tokens, vocab_size):
        self.unigram, self.size = Unigram(tokens, vocab_size), vocab_size
        tokens = np.asarray(tokens, np.int64)
        pairs = tokens[:-1] * vocab_size + tokens[1:]
        self.pairs, self.counts = np.unique(pairs, return_counts=True)
        first = self.pairs // vocab_size
        self.followers_V = np.bincount(first, minlength=vocab_size)
        self.total_V = np.bincount(first, self.counts, minlength=vocab_size)

    def __call__(self, previous, token):
        """The probability of each of `token` after each of `previous` (equal shapes)."""
        pair = np.asarray(previous, np.int64) * self.size + token
        place = np.minimum(np.searchsorted(self.pairs, pair), len(self.pairs) - 1)
        count = np.where(self.pairs[place] == pair, self.counts[place], 0)
        followers = np.maximum(self.followers_V[previous], 1)
        weighed = count + followers * self.unigram(previous, token)
        return weighed / (self.total_V[previous] + followers)


def bits_per_byte(model, tokens, num_bytes):
    """Of a stream of tokens and the bytes of its text: comparable between tokenizers and models."""
    tokens = np.asarray(tokens)
    return -np.log(model(tokens[:-1], tokens[1:])).sum() / math.log(2) / num_bytes
