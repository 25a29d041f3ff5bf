"""Token stores: a corpus as tokens, built once for a content, a split and a tokenizer, and mapped.

The stream of a part (training or validation): each document is its end-of-text token, if the
tokenizer has one, and then its tokens. So the first token of a text is predicted too, and after
its last, that it ends.
"""

import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lm.data import mixture
from lm.data import tokenizer as tokenizers
from lm.data.cache import cache_root, hash_of, local, published, report
from lm.data.sources import read_corpus, split
from lm.errors import require

FORMAT = 1  # raise it when the same text shall give other files
BATCH = 1 << 21  # characters encoded at once, over all threads
SAMPLE = 1 << 30  # bytes of text from which a tokenizer is trained, about
REPORT_SECONDS = 10
PARTS = ("train", "validation")


@dataclass(frozen=True)
class TokenStore:
    """A part: tokens, uint16 or uint32; starts, int64, of its documents; num_bytes of its text."""

    tokens: np.ndarray
    starts: np.ndarray
    num_bytes: int
    num_tokens = property(lambda self: len(self.tokens))
    num_documents = property(lambda self: len(self.starts))
    stores = property(lambda self: (self,))
    weights = (1,)


@dataclass(frozen=True)
class MixedStore:
    """A part of several sources: TokenStores, and integers in whose proportions they are mixed."""

    stores: tuple
    weights: tuple
    num_tokens = property(lambda self: sum(store.num_tokens for store in self.stores))
    num_documents = property(lambda self: sum(store.num_documents for store in self.stores))
    num_bytes = property(lambda self: sum(store.num_bytes for store in self.stores))


@dataclass(frozen=True)
class Data:
    """What a run reads. Equal keys mean equal tokens: same content, split and tokenizer."""

    tokenizer: tokenizers.Tokenizer
    train: TokenStore | MixedStore
    validation: TokenStore | MixedStore
    key: str


@dataclass(frozen=True)
class Texts:
    """A source: content, a hash; size in bytes; parts() gives two functions, as split() does."""

    path: str
    content: str
    size: int
    parts: Callable


def open_data(config, tokenizer=None):
    """The Data of a DataConfig, built where the cache lacks it. tokenizer: that of the run to
    resume, instead of the one that data.tokenizer names.
    """
    cache = cache_root(config.cache)
    paths, others, weights = _paths(config)
    texts = [_texts(config, *each, cache) for each in zip(paths, others, strict=True)]
    special, _ = tokenizers.special_tokens(config.tokenizer, config.special_tokens)
    tokenizer = tokenizer or tokenizers.find(config.tokenizer)
    if not tokenizer:
        contents = [each.content for each in texts]
        trained = [*contents, config.tokenizer, config.tokenizer_size, special]
        folder = cache / "trained" / hash_of(trained)  # "tokenizers" has others, of older versions
        published(folder, lambda empty: _train(config, texts).save(empty))
        tokenizer = tokenizers.load(local(folder))
    stores = [_stores(each, tokenizer, cache) for each in texts]
    keys, trains, validations = zip(*stores, strict=True)
    if len(texts) == 1:
        return Data(tokenizer, trains[0], validations[0], keys[0])
    train, validation = (MixedStore(stores, weights) for stores in (trains, validations))
    return Data(tokenizer, train, validation, hash_of([keys, weights]))


def _paths(config):
    """(paths, validation paths, weights) of a DataConfig's sources, as many of each."""
    if not config.weights:
        return [config.path], [config.validation_path], (1,)
    weights = mixture.integers("data.weights", config.weights.split(","))
    paths = [path.strip() for path in config.path.split(",")]
    others = [path.strip() for path in config.validation_path.split(",")]
    others = others if config.validation_path else [""] * len(paths)
    for key, found in (("path", paths), ("validation_path", others)):
        told = f"data.weights={config.weights} is for {len(weights)} sources"
        names = f"data.{key} names {len(found)}; separate as many with commas."
        require(len(found) == len(weights), f"{told}, and {names}")
    return paths, others, weights


def _texts(config, path, validation_path, cache):
    corpus = read_corpus("data.path", path, config.text_key, cache)
    other, held_out = None, config.validation_fraction
    if validation_path:
        other = read_corpus("data.validation_path", validation_path, config.text_key, cache)
        held_out = other.hash
    parts = functools.cache(lambda: split(corpus, other, config.validation_fraction))
    return Texts(path, hash_of([FORMAT, corpus.hash, held_out]), corpus.size, parts)


def _stores(texts, tokenizer, cache):
    """(key, training part, validation part) of a source."""
    # [SEP] stands between WordPiece's documents, which it did not always.
    between = ["[SEP]"] if tokenizer.kind == "wordpiece" else []
    key = hash_of([texts.content, tokenizer.fingerprint, *between])
    folder = cache / "tokens" / key
    dtype = np.uint16 if tokenizer.size <= 2**16 else np.uint32

    def write(empty):
        pairs = zip(PARTS, texts.parts(), strict=True)
        return {part: _write(empty / part, of(), tokenizer, dtype) for part, of in pairs}

    num_bytes, here = published(folder, write), local(folder)

    def mapped(part):
        starts = _mapped(here / f"{part}.starts", np.int64)
        return TokenStore(_mapped(here / f"{part}.tokens", dtype), starts, num_bytes[part])

    train, validation = map(mapped, PARTS)
    counts = f"{train.num_tokens} tokens for training and {validation.num_tokens} for validation"
    told = f"data.path={texts.path} gives {counts}; name more text, or a data.validation_path."
    require(train.num_tokens and validation.num_tokens, told)
    return key, train, validation


def _train(config, texts):
    """A tokenizer learns from the training parts, but an alphabet must do for all."""
    trains, validations = zip(*(each.parts() for each in texts), strict=True)
    alphabet = config.tokenizer == "characters"
    parts = (*trains, *validations) if alphabet else trains
    every = 1 if alphabet else 1 + sum(each.size for each in texts) // SAMPLE
    documents = itertools.chain.from_iterable(part() for part in parts)
    pieces = itertools.islice(_pieces(documents, "reading text for the tokenizer"), 0, None, every)
    kind, size, special = config.tokenizer, config.tokenizer_size, config.special_tokens
    return tokenizers.train_tokenizer(kind, (piece for _, piece in pieces), size, special)


def _write(path, documents, tokenizer, dtype):
    """Writes the stream of a part and where documents start; returns the bytes of its text."""
    num_bytes, num_tokens, opening = 0, 0, False
    end_of_text = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    with (
        open(path.with_suffix(".tokens"), "wb") as tokens_file,
        open(path.with_suffix(".starts"), "wb") as starts_file,
    ):
        for batch in _batches(_pieces(documents, f"writing {path.name} tokens")):
            texts, arrays, starts = [piece for _, piece in batch], [], []
            for (opens, _), tokens in zip(batch, tokenizer.encode_many(texts), strict=True):
                opening |= opens
                if opening:
                    tokens = np.concatenate([np.array(end_of_text, np.int32), tokens])
                    starts += [num_tokens] if len(tokens) else []
                    opening = not len(tokens)
                arrays.append(tokens)
                num_tokens += len(tokens)
            tokens_file.write(np.concatenate(arrays).astype(dtype).tobytes())
            starts_file.write(np.array(starts, np.int64).tobytes())
            num_bytes += sum(len(text.encode()) for text in texts)
    return num_bytes


def _mapped(path, dtype):
    empty = not path.stat().st_size  # and so cannot be mapped
    return np.empty(0, dtype) if empty else np.asarray(np.memmap(path, dtype, "r"))


def _pieces(documents, what):
    """(whether it opens a document, piece) for all in order; reports what takes long."""
    begun = shown = time.monotonic()
    done = 0
    for document in documents:
        opens = True
        for piece in document.pieces():
            yield opens, piece
            opens, done, now = False, done + len(piece) / 1e6, time.monotonic()
            if now > shown + REPORT_SECONDS:
                shown, speed = now, done / (now - begun)
                report(f"{what}: {done:.0f} million characters, {speed:.1f} a second")


def _batches(pieces):
    batch, size = [], 0
    for item in pieces:
        batch.append(item)
        size += len(item[1])
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
