"""Denoising: a damaged text in, the whole text out. BART, arXiv:1910.13461, section 2.2."""

import numpy as np

from lm.objectives.examples import SourceTarget, order, token


def poisson(mean, n, rng):
    """n numbers of Poisson's distribution, int64: the inverse of its distribution function."""
    k = np.arange(64 + 4 * int(mean))
    log_k_factorial = np.cumsum(np.log(np.maximum(k, 1)))
    below = np.cumsum(np.exp(k * np.log(mean) - mean - log_k_factorial))
    return np.searchsorted(below, rng.random(n), "right")


def infill(tokens, rate, mean, mask, rng):
    """`rate` of the tokens, rounded, in spans of Poisson(mean) tokens, each of which becomes one
    mask; a span of no token inserts one. Never longer than it was.
    """
    noise = max(1, round(rate * len(tokens)))
    lengths = poisson(mean, noise + 8, rng)
    while lengths.sum() < noise:
        lengths = np.concatenate([lengths, poisson(mean, noise + 8, rng)])
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), noise) + 1]
    lengths[-1] -= lengths.sum() - noise
    empty = lengths == 0  # no more of them than the other spans save
    lengths = lengths[~empty | (np.cumsum(empty) <= noise - (~empty).sum())]
    # Where spans lie among the clean tokens: any arrangement, each as likely.
    clean, spans = len(tokens) - noise, len(lengths)
    before = np.sort(order(clean + spans, rng)[:spans]) - np.arange(spans)
    kept = np.ones(len(tokens), bool)
    kept[np.repeat(before, lengths) + np.arange(noise)] = False
    return np.insert(tokens[kept], before, mask)


class Denoising(SourceTarget):
    """<s> ... </s> on both sides if the tokenizer has <s>, as BART, else </s> at the ends."""

    def __init__(self, kind, objective, data, model, tokenizer):
        super().__init__(kind, objective, data, model, tokenizer)
        self.begin = [tokenizer.special["begin"]] if "begin" in tokenizer.special else []
        self.end = token("end", kind, data, tokenizer)
        self.steps = [getattr(self, f"_{name}") for name in objective.noises()]
        if {"infilling", "masking"} & {*objective.noises()}:
            self.mask = token("mask", kind, data, tokenizer)
        self.sentence_ends_V = tokenizer.sentence_ends()

    def lengths(self, n):
        return n + 2, n + 2, 2 * n + 4

    def split(self, tokens, rng):
        damaged = tokens
        for step in self.steps:
            damaged = step(damaged, rng)
        return tuple(np.concatenate([self.begin, x, [self.end]]) for x in (damaged, tokens))

    def _infilling(self, tokens, rng):
        return infill(tokens, self.objective.noise_rate, self.objective.mean_span, self.mask, rng)

    def _permutation(self, tokens, rng):
        """Sentences in another order."""
        ends = np.flatnonzero(self.sentence_ends_V[tokens[:-1]]) + 1
        parts = np.split(tokens, ends)
        return np.concatenate([parts[i] for i in order(len(parts), rng)])

    def _chosen(self, tokens, rng):
        number = max(1, round(self.objective.noise_rate * len(tokens)))
        return order(len(tokens), rng)[: min(number, len(tokens) - 1)]

    def _deletion(self, tokens, rng):
        return np.delete(tokens, self._chosen(tokens, rng))

    def _rotation(self, tokens, rng):
        return np.roll(tokens, -int(rng.random() * len(tokens)))

    def _masking(self, tokens, rng):
        masked = tokens.copy()
        masked[self._chosen(tokens, rng)] = self.mask
        return masked
