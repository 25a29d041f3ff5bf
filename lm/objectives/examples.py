"""What the examples of all objectives share. All on the host, in numpy, one example at a time.

An objective's examples are made of `raw_length` tokens of the stream each, or fewer at its end but
never below 2. Calling one with (tokens, rng, another) gives a dictionary of arrays (width,), int32
or for weights float32, of widths that do not depend on the tokens. rng: a numpy Generator, of which
only random() is read, whose numbers no version of numpy changes. another(rng): the tokens of
another window.
"""

import itertools
from collections.abc import Callable

import numpy as np

from lm.errors import UserError, require

REMEDIES = {"sentinels": "sentinels", "modes": "sentinels", "mask": "mask", "begin": "mask"}
NAMES = {"sentinels": "<extra_id_0> to <extra_id_99>", "modes": "[NLU], [S2S] and [NLG]"}
NAMES |= {"mask": "[MASK] or <mask>", "begin": "[CLS] or <s>", "end": "[SEP] or </s>"}


class Examples:
    """copies: 0, or after how many epochs the noise of a window repeats; several_windows: whether
    an example may read another; target_length: of an encoder-decoder's targets, else 0.
    """

    copies = 0
    several_windows = False
    target_length = 0

    def choose(self, example_B, seed):
        """What makes each of the examples of these numbers: a list."""
        return [self] * len(example_B)


def token(role, kind, data, tokenizer):
    """The special token, or tokens, of a role; UserError if the tokenizer has none."""
    if role not in tokenizer.special:
        told = f"objective.kind={kind!r} needs the special token {NAMES[role]}, which"
        remedy = f"data.tokenizer=bpe data.special_tokens={REMEDIES.get(role, 'end')}."
        lacks = f"data.tokenizer={data.tokenizer!r} lacks; train one that has it"
        raise UserError(f"{told} {lacks}: {remedy}")
    return tokenizer.special[role]


def padded(values, width, fill):
    """int32 (width,): the values, no more than fit, and then `fill`."""
    row = np.full(width, fill, np.int32)
    row[: len(values)] = values
    return row


def ones(stop, width, start=0):
    """int32 (width,): 1 from start to stop (exclusive), else 0."""
    place = np.arange(width)
    return ((start <= place) & (place < stop)).astype(np.int32)


def order(n, rng):
    """A random permutation of range(n)."""
    return np.argsort(rng.random(n), kind="stable")


class Framed(Examples):
    """An objective of rows of one text, or two, between what begins and what ends each."""

    def __init__(self, kind, data, tokenizer, frame, least):
        """frame: how many special tokens; least: the shortest row."""
        self.length, self.raw_length = data.sequence_length, data.sequence_length - frame
        self.begin, self.end = (token(role, kind, data, tokenizer) for role in ("begin", "end"))
        self.pad = tokenizer.special.get("pad", 0)
        told = f"data.sequence_length={self.length} is too short for objective.kind={kind!r}"
        require(self.raw_length >= 2, f"{told}; make it {least} or more.")
        self.special_V = np.ones(tokenizer.size, bool)
        self.special_V[tokenizer.ordinary] = False


class SourceTarget(Examples):
    """An objective that turns tokens into a source and a target, for two kinds of model.

    Encoder-decoder: source, source_segments (S,), tokens, targets, weights (T,), the tokens being
    the targets moved right after model.start_token. Decoder: one row of both; tokens, targets,
    weights (1 on what predicts the target), segments, prefix (1 on the source) (T,).
    lengths(n): the most (of the source, of the target, of both) that n raw tokens can give.
    split(tokens, rng): (source, target), integer arrays, of the tokens of a window.
    """

    lengths: Callable
    split: Callable

    def __init__(self, kind, objective, data, model, tokenizer):
        self.objective, self.start_token = objective, model.start_token
        self.length, self.target_length = data.sequence_length, data.target_length
        self.joined, self.pad = model.stack == "decoder", tokenizer.special.get("pad", 0)
        keys = f"data.sequence_length={self.length}"
        keys += f" or data.target_length={self.target_length}" if self.target_length else ""
        require(self._fit(2), f"{keys} is too short for objective.kind={kind!r}; make it longer.")
        self.raw_length = next(n for n in itertools.count(2) if not self._fit(n + 1))
        needed = 0 if self.joined else self.lengths(self.raw_length)[1]
        self.target_length = self.target_length or needed

    def _fit(self, n):
        source, target, both = self.lengths(n)
        if self.joined:
            return both <= self.length + 1  # the last is no input
        return source <= self.length and target <= (self.target_length or target)

    def __call__(self, tokens, rng, another):
        source, target = self.split(tokens, rng)
        if self.joined:
            both = np.concatenate([source, target])
            return {
                "tokens": padded(both[:-1], self.length, self.pad),
                "targets": padded(both[1:], self.length, self.pad),
                "weights": ones(len(both) - 1, self.length, len(source) - 1).astype(np.float32),
                "segments": ones(len(both) - 1, self.length),
                "prefix": ones(len(source), self.length),
            }
        return {
            "source": padded(source, self.length, self.pad),
            "source_segments": ones(len(source), self.length),
            "tokens": padded([self.start_token, *target[:-1]], self.target_length, self.pad),
            "targets": padded(target, self.target_length, self.pad),
            "weights": ones(len(target), self.target_length).astype(np.float32),
        }
