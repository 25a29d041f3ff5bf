"""Text to tokens and back: byte-level BPE or any tokenizer.json of Hugging Face, bytes, characters.

A tokenizer is its definition, a JSON text: `save` writes that text, `load` reads it, the
fingerprint is its hash. For bytes and characters it is tagged with "kind"; all else is the format
of the library `tokenizers`.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from lm.errors import UserError, did_you_mean, require, require_in

KINDS = ("bpe", "bytes", "characters")
END_OF_TEXT = "<|endoftext|>"
# What other tokenizers call it, in the order in which they are looked for.
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")


class Tokenizer:
    """What all kinds share.

    kind: "bytes", "characters", or the library's name of its model: "bpe", "unigram" and so on.
    size: one more than the largest token. end_of_text: the token that opens each document, or None.
    fingerprint: hash of the definition; equal fingerprints mean equal tokens.
    """

    def __init__(self, kind, size, end_of_text, definition):
        self.kind, self.size, self.end_of_text = kind, size, end_of_text
        self.definition = definition
        self.fingerprint = hashlib.blake2b(definition.encode(), digest_size=16).hexdigest()

    def encode(self, text):
        """int32 tokens of a text; the name of a special token in it is ordinary text."""
        return self.encode_many([text.encode(errors="replace").decode()])[0]

    def encode_many(self, texts):
        """A list of int32 arrays, one for each text, in parallel; half a surrogate is no text."""
        raise NotImplementedError

    def decode(self, tokens):
        """The text of an array or list of tokens.

        Half a character becomes U+FFFD; special tokens and numbers of no token become nothing.
        """
        raise NotImplementedError

    def save(self, folder):
        """Writes folder/tokenizer.json, whole or not at all."""
        half = Path(folder) / "tokenizer.json.half"
        half.write_text(self.definition, encoding="utf-8")
        half.replace(Path(folder) / "tokenizer.json")


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8, and 256 for end of text."""

    def __init__(self):
        super().__init__("bytes", 257, 256, json.dumps({"kind": "bytes"}))

    def encode_many(self, texts):
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def decode(self, tokens):
        return bytes(i for i in np.asarray(tokens).tolist() if 0 <= i < 256).decode(
            errors="replace"
        )


class CharacterTokenizer(Tokenizer):
    """Each of a sorted set of characters is a token; no end of text, as in nanoGPT's 65 symbols."""

    def __init__(self, characters):
        definition = json.dumps({"kind": "characters", "characters": characters})
        super().__init__("characters", len(characters), None, definition)
        self.characters = characters
        points = [ord(character) for character in characters]
        # The token of each code point: -1 if it has none, as the point after the last.
        self.token_of = np.full(max(points, default=0) + 2, -1, np.int32)
        self.token_of[points] = np.arange(len(points))

    def encode_many(self, texts):
        return [self._encode(text) for text in texts]

    def _encode(self, text):
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        tokens = self.token_of[np.minimum(points, len(self.token_of) - 1)]
        if tokens.min(initial=0) < 0:
            unknown = chr(points[tokens.argmin()])
            raise UserError(
                f"the character {unknown!r} (U+{ord(unknown):04X}) is not one of the {self.size} "
                "of the tokenizer; leave it out, or train with data.tokenizer=bytes."
            )
        return tokens

    def decode(self, tokens):
        return "".join(
            self.characters[i] for i in np.asarray(tokens).tolist() if 0 <= i < self.size
        )


class LibraryTokenizer(Tokenizer):
    """What the library `tokenizers` makes of a tokenizer.json.

    Raises UserError if the library cannot read it, or if it has no tokens.
    """

    def __init__(self, definition):
        import tokenizers

        try:
            library = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:
            if type(error) is not Exception:  # all that the library raises is of this very class
                raise
            raise UserError(f"the library tokenizers refuses it: {error}") from error
        require(library.get_vocab(), "it has no tokens")
        library.no_padding()
        library.no_truncation()
        library.encode_special_tokens = True  # their names in a text are ordinary text
        added = library.get_added_tokens_decoder().items()
        special = {token.content: number for number, token in added if token.special}
        end_of_text = next((special[name] for name in END_OF_TEXT_NAMES if name in special), None)
        kind = type(library.model).__name__.lower()
        # Not get_vocab_size(): some vocabularies have gaps.
        super().__init__(kind, max(library.get_vocab().values()) + 1, end_of_text, definition)
        self.library = library

    def encode_many(self, texts):
        encodings = self.library.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, tokens):
        return self.library.decode([i for i in np.asarray(tokens).tolist() if i >= 0])


def load(path):
    """The Tokenizer of a tokenizer.json, ours or Hugging Face's, or of the folder that holds it."""
    path = Path(path).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    require(
        path.is_file(), f"there is no tokenizer at {path}; name a tokenizer.json or its folder."
    )
    try:
        definition = path.read_text(encoding="utf-8")
        keys = json.loads(definition)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); it must be a tokenizer.json.") from None
    keys = keys if isinstance(keys, dict) else {}
    if keys.get("kind") == "bytes":
        return ByteTokenizer()
    if keys.get("kind") == "characters" and isinstance(keys.get("characters"), str):
        return CharacterTokenizer(keys["characters"])
    require(
        isinstance(keys.get("model"), dict),
        f"{path} is not a tokenizer.json: it names no kind that we know, and no model.",
    )
    try:
        return LibraryTokenizer(definition)
    except UserError as error:
        reason = f"{path} is not a tokenizer.json that we can read ({error})"
        raise UserError(f"{reason}; copy or save it again.") from error


def find(name):
    """The Tokenizer that data.tokenizer names; None if it is a kind that must see the text."""
    if name == "bytes":
        return ByteTokenizer()
    if name in KINDS:
        return None
    require(
        Path(name).expanduser().exists(),
        f"data.tokenizer={name!r} is neither a kind of tokenizer nor the path of a tokenizer.json."
        f"{did_you_mean(name, KINDS)}",
    )
    return load(name)


def train_tokenizer(kind, texts, size):
    """A Tokenizer for the texts, an iterable of str.

    "bpe": byte-level, at most `size` tokens, GPT-2's pre-tokenization (Radford et al. 2019, section
    2.2); the same texts give the same tokenizer. "characters": those that occur. "bytes": always
    the same.
    """
    require_in("data.tokenizer", kind, KINDS)
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "characters":
        characters = set()
        for text in texts:
            characters.update(text)
        return CharacterTokenizer("".join(sorted(characters)))
    require(
        size >= 257,
        f"data.tokenizer_size={size} is too small for bpe; bytes and end of text need 257 or more.",
    )
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,  # a pair seen once is no regularity
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return LibraryTokenizer(library.to_str())
