"""Token stores: a corpus as tokens, built once for a content, a split and a tokenizer, and mapped.

The stream of a part (training or validation): each document is its end-of-text token, if the
tokenizer has one, and then its tokens. So the first token of a text is predicted too, and after
its last, that it ends.
"""

import functools
import itertools
import time
from dataclasses import dataclass

import numpy as np

from lm.data import tokenizer as tokenizers
from lm.data.cache import cache_root, hash_of, published, report
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

    @property
    def num_tokens(self):
        return len(self.tokens)

    @property
    def num_documents(self):
        return len(self.starts)


@dataclass(frozen=True)
class Data:
    """What a run reads. Equal keys mean equal tokens: same content, split and tokenizer."""

    tokenizer: tokenizers.Tokenizer
    train: TokenStore
    validation: TokenStore
    key: str


def open_data(config, tokenizer=None):
    """The Data of a DataConfig, built where the cache lacks it.

    tokenizer: that of the run to resume, instead of the one that data.tokenizer names.
    """
    cache = cache_root(config.cache)
    corpus = read_corpus("data.path", config.path, config.text_key, cache)
    other, held_out = None, config.validation_fraction
    if path := config.validation_path:
        other = read_corpus("data.validation_path", path, config.text_key, cache)
        held_out = other.hash
    content = hash_of([FORMAT, corpus.hash, held_out])
    parts = functools.cache(lambda: split(corpus, other, config.validation_fraction))
    tokenizer = tokenizer or tokenizers.find(config.tokenizer)
    if not tokenizer:
        folder = cache / "tokenizers" / hash_of([content, config.tokenizer, config.tokenizer_size])
        published(folder, lambda empty: _train(config, corpus.size, *parts()).save(empty))
        tokenizer = tokenizers.load(folder)
    key = hash_of([content, tokenizer.fingerprint])
    folder = cache / "tokens" / key
    num_bytes = published(folder, lambda empty: _write(empty, parts(), tokenizer))
    train, validation = (_open(folder, part, tokenizer, num_bytes[part]) for part in PARTS)
    require(
        train.num_tokens and validation.num_tokens,
        f"data.path={config.path} gives {train.num_tokens} tokens for training and "
        f"{validation.num_tokens} for validation; name more text, or a data.validation_path.",
    )
    return Data(tokenizer, train, validation, key)


def _train(config, num_bytes, train, validation):
    """A tokenizer learns from the training part, but an alphabet must do for both."""
    if config.tokenizer == "characters":
        pieces = _pieces(itertools.chain(train(), validation()), "collecting characters")
    else:
        pieces = _pieces(train(), "reading text for the tokenizer")
        pieces = itertools.islice(pieces, 0, None, 1 + num_bytes // SAMPLE)
    texts = (piece for _, piece in pieces)
    return tokenizers.train_tokenizer(config.tokenizer, texts, config.tokenizer_size)


def _dtype(tokenizer):
    return np.uint16 if tokenizer.size <= 2**16 else np.uint32


def _write(folder, parts, tokenizer):
    """Writes the streams and where their documents start; returns the bytes of each one's text."""
    return {
        part: _write_part(folder / part, part, documents(), tokenizer)
        for part, documents in zip(PARTS, parts, strict=True)
    }


def _write_part(path, part, documents, tokenizer):
    num_bytes, num_tokens, opening = 0, 0, False
    end_of_text = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    with (
        open(path.with_suffix(".tokens"), "wb") as tokens_file,
        open(path.with_suffix(".starts"), "wb") as starts_file,
    ):
        for batch in _batches(_pieces(documents, f"writing {part} tokens")):
            texts, arrays, starts = [piece for _, piece in batch], [], []
            for (opens, _), tokens in zip(batch, tokenizer.encode_many(texts), strict=True):
                opening |= opens
                if opening:
                    tokens = np.concatenate([np.array(end_of_text, np.int32), tokens])
                    starts += [num_tokens] if len(tokens) else []
                    opening = not len(tokens)
                arrays.append(tokens)
                num_tokens += len(tokens)
            tokens_file.write(np.concatenate(arrays).astype(_dtype(tokenizer)).tobytes())
            starts_file.write(np.array(starts, np.int64).tobytes())
            num_bytes += sum(len(text.encode()) for text in texts)
    return num_bytes


def _open(folder, part, tokenizer, num_bytes):
    tokens = _mapped(folder / f"{part}.tokens", _dtype(tokenizer))
    return TokenStore(tokens, _mapped(folder / f"{part}.starts", np.int64), num_bytes)


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
                report(
                    f"{what}: {done:.0f} million characters, {done / (now - begun):.1f} a second"
                )
                shown = now


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
