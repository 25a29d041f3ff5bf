"""What the tests of examples share: a configuration, and a tokenizer whose tokens are numbers."""

import functools
import types

import numpy as np

from configs.base import base
from lm.config import DataConfig, ObjectiveConfig

NAMES = {"mask": 0, "begin": 1, "end": 2, "pad": 3, "unknown": 4}
MODES = {"[NLU]": 5, "[S2S]": 6, "[NLG]": 7}
SIZE = 5000
SENTINELS = list(range(SIZE - 1, SIZE - 1001, -1))
FIRST, STOP = 8, SIZE - 1000  # ordinary tokens


class Numbers:
    """A tokenizer: words are of five tokens each, and sentences of four words."""

    kind, size = "numbers", SIZE
    ordinary = np.arange(FIRST, STOP, dtype=np.int32)

    def __init__(self, without=()):
        special = {**NAMES, "modes": MODES, "sentinels": SENTINELS}
        self.special = {role: found for role, found in special.items() if role not in without}

    def word_starts(self):
        return np.arange(SIZE) % 5 == 0

    def sentence_ends(self):
        return np.arange(SIZE) % 20 == 19


def objective(kind, **changes):
    return ObjectiveConfig(**{**base().objective, "kind": kind, **changes})


def data(**changes):
    keys = {"tokenizer": "numbers", "sequence_length": 64, "separate_documents": False}
    return DataConfig(**{**base().data, **keys, **changes})


def model(stack="encoder_decoder", start_token=9):
    return types.SimpleNamespace(stack=stack, start_token=start_token, vocab_size=SIZE)


def generator(*key):
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))


class OnlyRandom:
    """A generator that has but the method whose numbers every version of numpy keeps."""

    def __init__(self, key):
        self.random = generator(0, key).random


def window(length, start=FIRST):
    """Tokens that are all different, in order."""
    return np.arange(start, start + length, dtype=np.int32)


def examples_of(make, count, length=None, tokens=None):
    """`count` examples of the same tokens, or of windows that begin at random places."""
    length = length or make.raw_length
    for key in range(count):
        start = FIRST + int(generator(1, key).random() * (STOP - FIRST - length))
        read = window(length, start) if tokens is None else tokens
        another = functools.partial(lambda rng, at: window(make.raw_length, at), at=FIRST)
        yield read, make(read, OnlyRandom(key), another)
