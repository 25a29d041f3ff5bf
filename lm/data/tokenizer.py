"""Text to tokens and back: bytes, characters, BPE, WordPiece, Unigram, or any tokenizer.json.

A tokenizer is its definition, a JSON text in the format of the library `tokenizers`: `save` writes
that text, `load` reads it, the fingerprint is its hash.
"""

import collections
import functools
import hashlib
import itertools
import json

import numpy as np
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from lm.errors import UserError, did_you_mean, require, require_in
from lm.paths import as_path, write

KINDS = ("bpe", "wordpiece", "unigram", "bytes", "characters")
END_OF_TEXT = "<|endoftext|>"
# What other tokenizers call it, in the order in which they are looked for.
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")
# What special tokens are for, and what tokenizers call them, in the order of search.
ROLES = {
    "mask": ("[MASK]", "<mask>"),
    "begin": ("[CLS]", "<s>"),
    "end": ("[SEP]", "</s>", *END_OF_TEXT_NAMES),
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
}
MODES = ("[NLU]", "[S2S]", "[NLG]")  # UL2's denoisers R, S and X: arXiv:2205.05131, 3.1.2
SENTINELS = 100  # T5's
# data.special_tokens, the default first: the special tokens that open a vocabulary trained here,
# and those that end it.
BERT = (("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), ())
ROBERTA = (("<s>", "<pad>", "</s>", "<unk>"), ("<mask>",))
BLANKS = tuple(f"<extra_id_{i}>" for i in reversed(range(SENTINELS)))
T5 = (("<pad>", "</s>", "<unk>"), (*MODES, *BLANKS))
SPECIAL_TOKENS = {
    "bpe": {"end": ((END_OF_TEXT,), ()), "mask": ROBERTA, "sentinels": T5},
    "wordpiece": {"mask": BERT, "sentinels": T5},
    "unigram": {"sentinels": T5, "mask": ROBERTA},
}
# GPT-2's pre-tokenization, as a pattern; no contractions.
PARTS = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TWICE = {"min_frequency": 2, "show_progress": False}  # a pair seen once is no regularity
SPACE = "▁"  # SentencePiece's
# How a token begins that begins a word: white space as text, as SentencePiece's, as byte-level's.
WORD_STARTS = tuple(f" \n\t\r{SPACE}ĠĊĉč")
SENTENCE_ENDS = (".", "!", "?", "。", "！", "？", "\n", "Ċ")


class Tokenizer:
    """What the library `tokenizers` makes of a tokenizer.json.

    kind: the library's name of its model: "bpe", "unigram" and so on. size: one more than the
    largest token. end_of_text: the token that opens each document, or None; </s> of T5's and
    RoBERTa's, [SEP] of WordPiece's. special: {role: token} of those ROLES that it has, and, where
    it has them, "sentinels": list of tokens, and "modes": {name: token}. fingerprint: hash of the
    definition; equal fingerprints mean equal tokens.
    Raises UserError if the library cannot read it, or if it has no tokens.
    """

    def __init__(self, definition):
        try:
            library = Library.from_str(definition)
        except Exception as error:
            if type(error) is not Exception:  # all that the library raises is of this very class
                raise
            raise UserError(f"the library tokenizers refuses it: {error}") from error
        require(library.get_vocab(), "it has no tokens")
        library.no_padding()
        library.no_truncation()
        library.encode_special_tokens = True  # their names in a text are ordinary text
        self.library, self.definition = library, definition
        self.fingerprint = hashlib.blake2b(definition.encode(), digest_size=16).hexdigest()
        added = library.get_added_tokens_decoder().items()
        self.added = {token.content: number for number, token in added if token.special}
        self.kind = type(library.model).__name__.lower()
        self.size = max(library.get_vocab().values()) + 1  # some vocabularies have gaps
        wordpiece = ["[SEP]"] if self.kind == "wordpiece" else []
        self.end_of_text = self._first([*END_OF_TEXT_NAMES, *wordpiece])
        special = {role: self._first(names) for role, names in ROLES.items()}
        numbered = (self.added.get(f"<extra_id_{i}>") for i in itertools.count())
        special["sentinels"] = [*itertools.takewhile(lambda token: token is not None, numbered)]
        special["modes"] = {name: self.added[name] for name in MODES if name in self.added}
        self.special = {role: x for role, x in special.items() if x not in (None, [], {})}
        # Of plain characters: the library passes by those that it does not know.
        plain = not (library.pre_tokenizer or library.normalizer) and self.kind == "bpe"
        plain = plain and not library.model.unk_token and {*map(len, self.pieces())} == {1}
        self.characters = {*self.pieces()} if plain else set()

    def _first(self, names):
        """The token of the first of these names that a special token has, or None."""
        return next((self.added[name] for name in names if name in self.added), None)

    def encode(self, text, special=False):
        """int32 tokens of a text; the name of a special token in it is ordinary text. special=True:
        it is that token, as a prompt with a <mask> to fill in needs it.
        """
        self.library.encode_special_tokens = not special
        try:
            return self.encode_many([text.encode(errors="replace").decode()])[0]
        finally:
            self.library.encode_special_tokens = True

    def encode_many(self, texts):
        """A list of int32 arrays, one for each text, in parallel; half a surrogate is no text."""
        found = self.library.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding in zip(texts, found, strict=True):
            if self.characters and len(encoding) < len(text):
                unknown = next(letter for letter in text if letter not in self.characters)
                told = f"the character {unknown!r} (U+{ord(unknown):04X}) is not one of the "
                remedy = "leave it out, or train with data.tokenizer=bytes."
                raise UserError(f"{told}{self.size} of the tokenizer; {remedy}")
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def decode(self, tokens):
        """The text of an array or list of tokens. Half a character becomes U+FFFD; special tokens
        and numbers of no token become nothing.
        """
        return self.library.decode([i for i in np.asarray(tokens).tolist() if i >= 0])

    def pieces(self):
        """{how it is written: token} of all but the special tokens."""
        pieces = self.library.get_vocab(with_added_tokens=True)
        return {piece: token for piece, token in pieces.items() if piece not in self.added}

    @functools.cached_property
    def ordinary(self):
        """All tokens but the special ones, sorted, int32."""
        return np.array(sorted(self.pieces().values()), np.int32)

    def table(self, test):
        """bool (size,): of which tokens test(how it is written) is true; of no special one."""
        table = np.zeros(self.size, bool)
        table[[token for piece, token in self.pieces().items() if test(piece)]] = True
        return table

    def word_starts(self):
        """bool (size,): which tokens begin a word; the others go on with one."""
        if self.kind == "wordpiece":
            return self.table(lambda piece: not piece.startswith("##"))
        return self.table(lambda piece: piece.startswith(WORD_STARTS))

    def sentence_ends(self):
        """bool (size,): which tokens end a sentence: a full stop, or the like, or a line's end."""
        return self.table(lambda piece: piece.endswith(SENTENCE_ENDS))

    def save(self, folder):
        """Writes folder/tokenizer.json, whole or not at all."""
        write(as_path(folder) / "tokenizer.json", self.definition)


def of_bytes():
    """The Tokenizer of the bytes of UTF-8, and 256 for end of text."""
    # The library writes a byte as its character or, where that is not printed, as one from 256 on.
    known = {*pre_tokenizers.ByteLevel.alphabet()}
    vocabulary = {chr(byte): byte for byte in range(256) if chr(byte) in known}
    others = (byte for byte in range(256) if chr(byte) not in known)
    vocabulary |= {chr(256 + number): byte for number, byte in enumerate(others)}
    library = Library(models.BPE(vocabulary, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([END_OF_TEXT])
    return Tokenizer(library.to_str())


def of_characters(characters):
    """The Tokenizer of these, the first of which is 0; no end of text, as in nanoGPT."""
    library = Library(models.BPE({character: i for i, character in enumerate(characters)}, []))
    library.decoder = decoders.Fuse()
    return Tokenizer(library.to_str())


def load(path):
    """The Tokenizer of a tokenizer.json, or of the folder that holds it."""
    path = as_path(path)
    path = path / "tokenizer.json" if path.is_dir() else path
    told = f"there is no tokenizer at {path}; name a tokenizer.json or its folder."
    require(path.is_file(), told)
    try:
        return Tokenizer(path.read_text(encoding="utf-8"))
    except ValueError as error:
        told = f"{path} is not a tokenizer.json that we can read ({error}); copy or save it again."
        raise UserError(told) from error


def find(name):
    """The Tokenizer that data.tokenizer names; None if it is a kind that must see the text."""
    if name == "bytes":
        return of_bytes()
    if name in KINDS:
        return None
    told = f"data.tokenizer={name!r} is neither a kind of tokenizer nor the path of"
    remedy = f"a tokenizer.json.{did_you_mean(name, KINDS)}"
    require(as_path(name, "data.tokenizer").exists(), f"{told} {remedy}")
    return load(name)


def special_tokens(kind, name):
    """(which of SPECIAL_TOKENS a tokenizer of this kind gets, those tokens); "" is its default."""
    if kind not in SPECIAL_TOKENS:
        told = f"data.special_tokens={name!r} is for a tokenizer that is trained here"
        remedy = f"leave it empty, or train one of {', '.join(SPECIAL_TOKENS)}."
        require(not name, f"{told}, and data.tokenizer={kind!r} is not; {remedy}")
        return "", ((), ())
    name = name or next(iter(SPECIAL_TOKENS[kind]))
    require_in(f"data.special_tokens (of {kind})", name, SPECIAL_TOKENS[kind])
    return name, SPECIAL_TOKENS[kind][name]


def train_tokenizer(kind, texts, size, special=""):
    """A Tokenizer for the texts, an iterable of str; the same texts give the same tokenizer.

    "bpe": byte-level, at most `size` tokens, GPT-2's pre-tokenization (Radford et al. 2019, section
    2.2). "wordpiece": lower-case, as BERT's. "unigram": as SentencePiece's (arXiv:1804.10959), with
    bytes for what its pieces cannot spell. "characters": those that occur. "bytes": always the
    same. special: data.special_tokens.
    """
    require_in("data.tokenizer", kind, KINDS)
    _, (first, last) = special_tokens(kind, special)
    if kind == "bytes":
        return of_bytes()
    if kind == "characters":
        return of_characters(sorted({*itertools.chain.from_iterable(texts)}))
    # Of unigram and wordpiece: some pieces, or letters, besides.
    least = {"bpe": 256, "unigram": 256 + 16, "wordpiece": 64}[kind] + len(first) + len(last)
    told = f"data.tokenizer_size={size} is too small for {kind}; its bytes or letters"
    require(size >= least, f"{told} and its special tokens need {least} or more.")
    train = {"bpe": _train_bpe, "wordpiece": _train_wordpiece, "unigram": _train_unigram}[kind]
    library = train(texts, size - len(last), list(first))
    # The blank of a text takes the space before it with it, as the words do that it stands for.
    library.add_special_tokens([AddedToken(name, lstrip=name[0] == "<") for name in last])
    return Tokenizer(library.to_str())


def _train_bpe(texts, size, special):
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet, names = sorted(pre_tokenizers.ByteLevel.alphabet()), {"special_tokens": special}
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, **names, **TWICE)
    library.train_from_iterator(texts, trainer)
    return library


def _train_wordpiece(texts, size, special):
    unknown = next(name for name in special if name in ROLES["unknown"])
    library = Library(models.WordPiece({}, unk_token=unknown))
    library.normalizer = normalizers.BertNormalizer()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece()
    # The trainer breaks ties by the order in which it meets letters, which differs between runs;
    # given as special tokens they come in ours. The rarest are left unknown.
    texts, letters = list(texts), collections.Counter()
    for text in texts:
        letters.update(library.normalizer.normalize_str(text))
    known = (letter for letter in letters if not letter.isspace())
    kept = sorted(sorted(known, key=lambda letter: (-letters[letter], letter))[: size // 8])
    alphabet = [form for letter in kept for form in (letter, f"##{letter}")]
    limits = {"initial_alphabet": kept, "limit_alphabet": len(kept)}
    names = {"special_tokens": special + alphabet}
    trainer = trainers.WordPieceTrainer(vocab_size=size, **names, **limits, **TWICE)
    library.train_from_iterator(texts, trainer)
    definition = json.loads(library.to_str())
    definition["added_tokens"] = definition["added_tokens"][: len(special)]
    return Library.from_str(json.dumps(definition))


def _train_unigram(texts, size, special):
    library = Library(models.Unigram())
    parts = pre_tokenizers.Split(Regex(PARTS), "isolated")
    spaces = pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=False)
    library.pre_tokenizer = pre_tokenizers.Sequence([parts, spaces])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence(steps)
    spelled = [f"<0x{byte:02X}>" for byte in range(256)]
    unknown = next(name for name in special if name in ROLES["unknown"])
    names = {"special_tokens": special, "unk_token": unknown}
    trainer = trainers.UnigramTrainer(vocab_size=size - len(spelled), show_progress=False, **names)
    library.train_from_iterator(texts, trainer)
    # The last digits of scores, and so their order, differ from run to run; so do the scores of
    # letters that are no pieces by themselves, which the trainer sets 0.0001 apart at the lowest.
    # Where letters alone are more than fit, the rarest are spelled in bytes.
    found = json.loads(library.to_str())["model"]["vocab"][len(special) :]
    lowest = min((score for _, score in found), default=0)
    near = lowest + 1e-3 + 1e-4 * sum(len(piece) == 1 for piece, _ in found)
    scores = {p: lowest if len(p) == 1 and score < near else score for p, score in found}
    found = sorted((-round(score, 3), piece) for piece, score in scores.items())
    found = [(piece, -score) for score, piece in found[: size - len(special) - len(spelled)]]
    vocabulary = [*((name, 0.0) for name in (*special, *spelled)), *found]
    library.model = models.Unigram(vocabulary, special.index(unknown), byte_fallback=True)
    return library
