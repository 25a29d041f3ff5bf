"""Spans to be found again: T5's span corruption, prefix language modelling, and UL2's mixture."""

import numpy as np

from lm.errors import require
from lm.objectives.examples import SourceTarget, order, token

# UL2's mode, mean span length (None: one span, at the end) and rate of noise of each denoiser.
# arXiv:2205.05131, table 1; all as often as each other.
UL2_DENOISERS = (
    ("[NLU]", 3, 0.15),
    ("[NLU]", 8, 0.15),
    ("[S2S]", None, 0.25),
    ("[NLG]", 3, 0.5),
    ("[NLG]", 8, 0.5),
    ("[NLG]", 64, 0.15),
    ("[NLG]", 64, 0.5),
)


def span_counts(n, rate, mean):
    """(noise tokens, spans) of n tokens: rounded, at least one of each, and as many clean spans.
    mean: None for one span. arXiv:1910.10683, 3.1.4; random_spans_noise_mask of T5's code.
    """
    noise = min(max(round(n * rate), 1), n - 1)
    spans = 1 if mean is None else min(max(round(noise / mean), 1), noise, n - noise)
    return noise, spans


def partition(total, parts, rng):
    """Lengths of 1 or more, (parts,), that add up to the total; all such are equally likely."""
    cuts = order(total - 1, rng)[: parts - 1] + 1
    return np.diff(np.sort(cuts), prepend=0, append=total)


def corrupt(tokens, clean_K, noise_K, sentinels):
    """(source, target) of spans that alternate, a clean one first; K spans of each. A sentinel
    takes the place of each noise span in the source, of each clean one in the target.
    """
    spans = len(clean_K)
    lengths = np.stack([clean_K, noise_K], 1).ravel()
    noise = np.repeat(np.arange(2 * spans) % 2 == 1, lengths)
    names = np.asarray(sentinels[:spans], np.int32)
    source = np.insert(tokens[~noise], np.cumsum(clean_K), names)
    target = np.insert(tokens[noise], np.cumsum(noise_K) - noise_K, names)
    return source, target


class SpanCorruption(SourceTarget):
    """Both end with </s>, which their lengths include: 568 tokens give 512 and 114."""

    def __init__(self, kind, objective, data, model, tokenizer, denoisers=None):
        """denoisers: (mode or None, mean span length, rate) of each, all as often as each other."""
        self.denoisers = denoisers or ((None, objective.mean_span, objective.noise_rate),)
        super().__init__(kind, objective, data, model, tokenizer)
        self.modes = {}
        self.end = token("end", kind, data, tokenizer)
        self.sentinels = token("sentinels", kind, data, tokenizer)
        most = max(span_counts(self.raw_length, rate, mean)[1] for _, mean, rate in self.denoisers)
        there, tokens = len(self.sentinels), f"{self.raw_length} tokens"
        told = f"objective.kind={kind!r} makes {most} spans of the {tokens} that fill"
        told += f" data.sequence_length={self.length}, and the tokenizer has {there} sentinels"
        require(most <= there, f"{told}; shorten the sequences or lengthen the spans.")

    def lengths(self, n):
        found = []
        for mode, mean, rate in self.denoisers:
            noise, spans = span_counts(n, rate, mean)
            found.append((n - noise + spans + 1 + bool(mode), noise + spans + 1))
        source, target = map(max, zip(*found, strict=True))
        return source, target, max(map(sum, found))

    def split(self, tokens, rng):
        mode, mean, rate = self.denoisers[int(rng.random() * len(self.denoisers))]
        noise, spans = span_counts(len(tokens), rate, mean)
        noise_K = partition(noise, spans, rng)
        clean_K = partition(len(tokens) - noise, spans, rng)
        source, target = corrupt(tokens, clean_K, noise_K, self.sentinels)
        first = [self.modes[mode]] if mode else []
        return np.concatenate([first, source, [self.end]]), np.append(target, self.end)


class UL2(SpanCorruption):
    """The source begins with the token of its mode: how much is missing, and where."""

    def __init__(self, kind, objective, data, model, tokenizer):
        super().__init__(kind, objective, data, model, tokenizer, UL2_DENOISERS)
        self.modes = token("modes", kind, data, tokenizer)


class Prefix(SourceTarget):
    """A text cut in two, anywhere that both parts fit; T5, arXiv:1910.10683, 3.2.1. For an
    encoder-decoder both end with </s>; a decoder reads the text as it is.
    """

    def __init__(self, kind, objective, data, model, tokenizer):
        super().__init__(kind, objective, data, model, tokenizer)
        self.ends = [] if self.joined else [token("end", kind, data, tokenizer)]

    def lengths(self, n):
        return n, min(n, max(2, self.target_length or n)), n

    def split(self, tokens, rng):
        least = 1 if self.joined else max(1, len(tokens) + 1 - self.target_length)
        cut = least + int(rng.random() * (len(tokens) - least))
        return tuple(np.concatenate([part, self.ends]) for part in (tokens[:cut], tokens[cut:]))
