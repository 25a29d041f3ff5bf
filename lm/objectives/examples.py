"""What the examples of all objectives share. All on the host, in numpy, one example at a time.

An objective's examples are made of `raw_length` tokens of the stream each, or fewer at its end but
never below 2. Calling one with (tokens, rng, another) gives a dictionary of arrays (width,), int32
or for weights float32, of widths that do not depend on the tokens. rng: a numpy Generator, of which
only random() is read, whose numbers no version of numpy changes. another(rng): the tokens of
another window.
"""

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
        remedy = f"data.special_tokens={REMEDIES.get(role, 'end')}"
        raise UserError(
            f"objective.kind={kind!r} needs the special token {NAMES[role]}, which data.tokenizer="
            f"{data.tokenizer!r} lacks; train one that has it: data.tokenizer=bpe {remedy}."
        )
    return tokenizer.special[role]


def padded(values, width, fill=0):
    """int32 (width,): the values, no more than fit, and then `fill`."""
    row = np.full(width, fill, np.int32)
    row[: len(values)] = values
    return row


def order(n, rng):
    """A random permutation of range(n)."""
    return np.argsort(rng.random(n), kind="stable")


class SourceTarget(Examples):
    """An objective that turns tokens into a source and a target, for two kinds of model.

    Encoder-decoder: source, source_segments (S,), tokens, targets, weights (T,), the tokens being
    the targets moved right after model.start_token. Decoder: one row of both; tokens, targets,
    weights (1 on what predicts the target), segments, prefix (1 on the source) (T,).

    lengths(objective, data, n): the most (of the source, of the target, of both) that n raw tokens
    can give; `split` keeps to it.
    """

    def __init__(self, kind, objective, data, model, tokenizer):
        self.kind, self.objective, self.data, self.model = kind, objective, data, model
        self.raw_length, self.target_length = fit(type(self), kind, objective, data, model.stack)
        self.pad = tokenizer.special.get("pad", 0)

    @staticmethod
    def lengths(objective, data, n):
        raise NotImplementedError

    def split(self, tokens, rng):
        """(source, target), integer arrays, of the tokens of a window."""
        raise NotImplementedError

    def __call__(self, tokens, rng, another):
        source, target = self.split(tokens, rng)
        if self.model.stack == "decoder":
            return self._joined(source, target)
        return {
            "source": padded(source, self.data.sequence_length, self.pad),
            "source_segments": padded(np.ones(len(source)), self.data.sequence_length),
            "tokens": padded([self.model.start_token, *target[:-1]], self.target_length, self.pad),
            "targets": padded(target, self.target_length, self.pad),
            "weights": padded(np.ones(len(target)), self.target_length).astype(np.float32),
        }

    def _joined(self, source, target):
        both, length = np.concatenate([source, target]), self.data.sequence_length
        predicted = np.arange(1, len(both)) >= len(source)
        return {
            "tokens": padded(both[:-1], length, self.pad),
            "targets": padded(both[1:], length, self.pad),
            "weights": padded(predicted, length).astype(np.float32),
            "segments": padded(np.ones(len(both) - 1), length),
            "prefix": padded(np.ones(len(source)), length),
        }


def fit(cls, kind, objective, data, stack):
    """(most raw tokens that fit the model, positions of an encoder-decoder's targets or 0)."""

    def fits(n):
        source, target, both = cls.lengths(objective, data, n)
        if stack == "decoder":
            return both <= data.sequence_length + 1  # the last is no input
        return source <= data.sequence_length and target <= (data.target_length or target)

    keys = f"data.sequence_length={data.sequence_length}"
    keys += f" or data.target_length={data.target_length}" if data.target_length else ""
    require(fits(2), f"{keys} is too short for objective.kind={kind!r}; make it longer.")
    n = 2
    while fits(n + 1):
        n += 1
    if stack == "decoder":
        return n, 0
    return n, data.target_length or cls.lengths(objective, data, n)[1]
