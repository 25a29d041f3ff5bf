"""Where documents come from: files, folders, JSON lines, Parquet, or Python's standard library.

A Source is one file; a Document is one text, read in pieces, so that no text need fit in memory.
Two corpora are equal if the bytes of their files are, in order; names, places and dates may differ.
"""

import codecs
import collections
import functools
import hashlib
import itertools
import json
import os
import re
import sysconfig
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lm.data.cache import hash_of, published, report
from lm.errors import UserError, optional, require
from lm.paths import as_path, explained, files_below, is_url

BLOCK = 1 << 18  # bytes read at once
PIECE = 1 << 16  # characters encoded at once, at least
REMEMBERED = 1 << 22  # bytes of a corpus from which on its hashes are remembered
# GPT-2's pre-tokenization parts a text here anyway: after a lone newline, before a lone space.
SAFE_CUT = re.compile(r"(?<=\S\n)(?=\S)|(?<=\S)(?= \S)")
ROWS = {".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
NOT_LIBRARY = ("site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data")


class NotText(UserError):
    """A file that is not UTF-8."""

    def __init__(self, source, at):
        super().__init__(f"{source.name} is not UTF-8 at byte {at}; convert it or leave it out.")


@dataclass(frozen=True)
class Source:
    """A file, and what messages call it; or, without a path, a text. tag: changes when it does."""

    name: str
    path: Path | None
    size: int
    tag: int | str | None
    text: bytes = b""

    @property
    def packing(self):
        return self.path.suffix if self.path and self.path.suffix in (".gz", ".zst") else ""

    @property
    def rows(self):
        """What its documents are: rows of "json" or of "parquet"; "": it is one document."""
        return ROWS.get(Path(self.name.removesuffix(self.packing)).suffix, "") if self.path else ""

    def raw(self):
        """Its bytes as they are, in parts that are not empty."""
        if not self.path:
            yield self.text
            return
        try:
            with explained(self.name), self.path.open("rb") as file:
                yield from iter(lambda: file.read(BLOCK), b"")
        except OSError as error:
            reason = f"{self.name} cannot be read ({error.strerror})"
            raise UserError(f"{reason}; make it readable or leave it out.") from None

    def unpacked(self):
        """Its bytes without the packing, which may be several streams one after the other."""
        if not self.packing:
            yield from self.raw()
            return
        if self.packing == ".gz":
            new_stream, failure = lambda: zlib.decompressobj(31), zlib.error
        else:
            library = optional("zstandard", self.name, "zstandard")
            new_stream, failure = library.ZstdDecompressor().decompressobj, library.ZstdError
        stream = None
        try:
            for block in self.raw():
                while block:
                    stream = stream or new_stream()
                    yield stream.decompress(block)
                    block = stream.unused_data
                    stream = None if stream.eof else stream
            whole = not stream
        except failure:
            whole = False
        require(whole, f"{self.name} is a truncated or damaged {self.packing} file; copy it again.")


@dataclass(frozen=True)
class Document:
    """A text: `rank`, a 64-bit hash of its content, and `pieces()`, its parts in order."""

    rank: int
    pieces: Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Corpus:
    """hashes: of the bytes of each Source, in order; text_key: the member of a row that is text."""

    hashes: dict
    text_key: str
    size = property(lambda self: sum(source.size for source in self.hashes))

    @property
    def hash(self):
        """What the documents depend on."""
        kinds = [source.rows and f"{source.rows} {self.text_key}" for source in self.hashes]
        return hash_of([list(self.hashes.values()), kinds])

    def documents(self):
        for source, file_hash in self.hashes.items():
            if not source.rows:
                pieces = functools.partial(lambda source: cut(decoded(source)), source)
                yield Document(int(file_hash[:16], 16), pieces)
                continue
            texts = _json_texts if source.rows == "json" else _parquet_texts
            for text in filter(None, texts(source, self.text_key)):
                # JSON can spell half a surrogate pair; UTF-8, and so a tokenizer, cannot.
                text = re.sub("[\ud800-\udfff]", "\ufffd", text)
                yield Document(int(hash_of(text)[:16], 16), functools.partial(cut, [text]))


def read_corpus(key, path, text_key, cache):
    """The Corpus at a path, the value of config key `key`; "" is the standard library's. Of a
    folder, hidden files and those that are not UTF-8 are left out, the latter reported; a file that
    was named must be text. cache: where the hashes of large files are remembered.
    """
    if path:
        root, remedy = as_path(path, key), "name a text file, JSONL, or a folder of them."
        require(root.is_file() or root.is_dir(), f"{key}={path} does not exist; {remedy}")
        walk = _objects if is_url(root) else _walk
        files = walk(root) if root.is_dir() or is_url(root) else [_file(root, path)]
    else:
        files = _standard_library()
    files = [source for source in files if source.size]
    require(files, f"{key}={path} is empty; name a file or a folder that holds text.")
    hashes = dict(zip(files, _hashes(files, cache), strict=True))
    whole = {source: found for source, found in hashes.items() if found}
    if not whole:
        collections.deque(decoded(files[0]), maxlen=0)  # raises what is wrong with it
    if left_out := len(files) - len(whole):
        report(f"{key}={path}: {left_out} of {len(files)} files are not UTF-8 and were left out.")
    return Corpus(whole, text_key)


def _walk(root, left_out=()):
    """The files below a folder in order; no hidden ones, and none in folders named `left_out`."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n not in left_out)
        for path in (Path(folder, n) for n in sorted(names) if not n.startswith(".")):
            if path.is_file():
                yield _file(path, str(path))


def _file(path, name):
    status = path.stat()
    return Source(name, path, status.st_size, status.st_mtime_ns)


def _objects(url):
    """The object that a URL names, or those below it, as `_walk` would give them."""

    def source(path, info):
        return Source(str(path), path, info["size"], info.get("ETag") or info.get("etag"))

    found = files_below(url)
    if url.is_file():
        return [source(url, info) for info in found.values()]
    names = [name.split("/") for name in found if "/." not in f"/{name}"]
    # A folder's files before its folders.
    names.sort(key=lambda parts: [*((1, folder) for folder in parts[:-1]), (0, parts[-1])])
    return [source(url / path, found[path]) for path in map("/".join, names)]


def _standard_library():
    """The topics of Python's help, and the library's source without its tests."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield Source(f"help topic {name}", None, len(text.encode()), hash_of(text), text.encode())
    for source in _walk(Path(sysconfig.get_path("stdlib")), NOT_LIBRARY):
        if source.path.suffix == ".py":
            yield source


def _hashes(files, cache):
    """The hash of each file's bytes, or None if it should be text and is not. Those of a large
    corpus are remembered, once it is old enough for its dates to tell a change.
    """
    places = [str(s.path.absolute() if isinstance(s.path, Path) else s.name) for s in files]
    listing = [[place, s.size, s.tag] for place, s in zip(places, files, strict=True)]
    newest = max((source.tag for source in files if type(source.tag) is int), default=0)
    if sum(source.size for source in files) < REMEMBERED or newest > (time.time() - 2) * 1e9:
        return [_hash(source) for source in files]
    folder = cache / "hashes" / hash_of(listing)
    return published(folder, lambda _: [_hash(source) for source in files])


def _hash(source):
    """The hash of a source's bytes; None if it is one document and not UTF-8."""
    try:
        collections.deque(() if source.rows else decoded(source), maxlen=0)
    except NotText:
        return None
    digest = hashlib.blake2b(digest_size=16)
    for block in source.raw():
        digest.update(block)
    return digest.hexdigest()


def decoded(source):
    """The text of a source in str blocks, without a byte order mark."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    for block in itertools.chain(filter(None, source.unpacked()), [b""]):
        start = done - len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise NotText(source, start + error.start) from None
        yield text if done else text.removeprefix("\ufeff")
        done += len(block)


def _json_texts(source, key):
    rest, at, number = b"", 0, 0
    for block in itertools.chain(source.unpacked(), [b"\n"]):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            number += 1
            try:
                row = json.loads(line) if line.strip() else None
            except UnicodeDecodeError as error:
                raise NotText(source, at + error.start) from None
            except ValueError as error:
                reason = f"{source.name}, line {number}, is not JSON ({error})"
                raise UserError(f"{reason}; mend it or leave it out.") from None
            if line.strip():
                yield _text(row, key, f"{source.name}, line {number}")
            at += len(line) + 1


def _text(row, key, where):
    require(isinstance(row, dict), f"{where}, is not a JSON object; each line must be one.")
    told = f"{where}, lacks data.text_key={key}; its keys are {', '.join(row)}: name one of them."
    require(key in row, told)
    require(isinstance(row[key], str), f"{where}: {key} is {row[key]!r}, not text; mend it.")
    return row[key]


def _parquet_texts(source, key):
    pyarrow = optional("pyarrow", source.name, "parquet")
    parquet = optional("pyarrow.parquet", source.name, "parquet")
    try:
        with source.path.open("rb") as opened, parquet.ParquetFile(opened) as file:
            names = file.schema_arrow.names
            _text(dict.fromkeys(names, ""), key, source.name)
            batches = file.iter_batches(1024, columns=[key])
            values = (value for batch in batches for value in batch.column(0).to_pylist())
            for number, value in enumerate(values, start=1):
                yield _text({key: value}, key, f"{source.name}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        told = f"{source.name} is no whole Parquet file ({error}); copy it again."
        raise UserError(told) from None


def cut(blocks):
    """Parts the text of str blocks into pieces, PIECE to 2 * PIECE characters but for the last.
    Where, depends on the text only: if possible, where a tokenizer sees no difference.
    """
    rest = ""
    for block in blocks:
        text, start = rest + block, 0
        while len(text) - start >= 2 * PIECE:
            found = SAFE_CUT.search(text, start + PIECE, start + 2 * PIECE)
            end = found.start() if found else start + 2 * PIECE
            yield text[start:end]
            start = end
        rest = text[start:]
    if rest:
        yield rest


def split(corpus, validation, fraction):
    """Two functions, each giving the documents of one part: training and validation.

    validation: a Corpus of its own, or None. Then one document is cut at int(characters * (1 -
    fraction)), as nanoGPT does; of several, those are held out whose rank is in the lowest
    `fraction` of all ranks, whatever the others are. Only if that leaves a part empty, the document
    of the lowest or of the highest rank is it.
    """
    if validation:
        return corpus.documents, validation.documents
    lowest, highest, limit, count = 2**64, -1, int(fraction * 2**64), 0
    for document in corpus.documents():
        lowest, highest = min(lowest, document.rank), max(highest, document.rank)
        count += 1
        if lowest < limit <= highest:
            break
    if count == 1:
        length = sum(len(piece) for only in corpus.documents() for piece in only.pieces())
        at = int(length * (1 - fraction))
        return tuple(functools.partial(_part, corpus, *ends) for ends in ((0, at), (at, length)))
    limit = min(max(limit, lowest + 1), highest)
    return (
        lambda: (document for document in corpus.documents() if document.rank >= limit),
        lambda: (document for document in corpus.documents() if document.rank < limit),
    )


def _part(corpus, start, stop):
    """Each document's characters from start to stop (exclusive)."""

    def pieces(document):
        at = 0
        for piece in document.pieces():
            if part := piece[max(start - at, 0) : max(stop - at, 0)]:
                yield part
            at += len(piece)

    for document in corpus.documents():
        yield Document(document.rank, functools.partial(pieces, document))
