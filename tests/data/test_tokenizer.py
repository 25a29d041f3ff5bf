"""Tokenizers: round trips, determinism, end of text, and what Hugging Face's files mean."""

import json
import os
import pathlib
import subprocess
import sys
import types
from pydoc_data.topics import topics

import numpy as np
import pytest

from lm.data import tokenizer
from lm.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = [
    "def main():\n    return 'ok'\n" * 20,
    "敏捷的棕色狐狸跳过了懒狗。",
    "🙂👩‍👩‍👧 \x00\x07\t\r\n\x1b\x7f mixed \u202e text",
    "  leading,  doubled and trailing  ",
    "a<|endoftext|>b",
    "",
]


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.train_tokenizer("bpe", iter(TEXTS * 3), 300)


@pytest.fixture(scope="module")
def unigram():
    return tokenizer.train_tokenizer("unigram", iter(TEXTS * 3), 420)


@pytest.fixture(scope="module")
def wordpiece():
    return tokenizer.train_tokenizer("wordpiece", ["The cat. Then the hat?\n"] * 3, 80)


def each(*trained):
    return (
        *trained,
        tokenizer.of_bytes(),
        tokenizer.of_characters("".join(sorted(set("".join(TEXTS))))),
    )


def test_every_kind_returns_the_text(bpe, unigram, tmp_path):
    masked = tokenizer.train_tokenizer("bpe", iter(TEXTS * 3), 300, "mask")
    for kind in each(bpe, unigram, masked):
        kind.save(tmp_path)
        for again in (kind, tokenizer.load(tmp_path), tokenizer.load(tmp_path / "tokenizer.json")):
            assert (again.kind, again.size, again.end_of_text) == (
                kind.kind,
                kind.size,
                kind.end_of_text,
            )
            assert again.fingerprint == kind.fingerprint
            for text, tokens in zip(TEXTS, again.encode_many(TEXTS), strict=True):
                assert tokens.dtype == np.int32
                assert np.array_equal(tokens, again.encode(text))
                assert again.decode(tokens) == text
                assert tokens.max(initial=0) < again.size
                assert again.end_of_text not in tokens


def test_sizes(bpe):
    assert (bpe.kind, bpe.size) == ("bpe", 300)
    assert bpe.library.id_to_token(bpe.end_of_text) == "<|endoftext|>"
    _, plain, characters = each(bpe)
    assert (plain.size, plain.end_of_text) == (257, 256)
    assert characters.end_of_text is None
    assert plain.encode("é").tolist() == list("é".encode())
    assert tokenizer.of_characters("abc").encode("cab").tolist() == [2, 0, 1]


def test_bpe_merges_what_is_frequent():
    # The only pair that occurs twice in "ababab" pre-tokens is (a, b), and then (ab, ab).
    trained = tokenizer.train_tokenizer("bpe", ["abab", "abab"], 259)
    assert [trained.library.id_to_token(i) for i in trained.encode("abab")] == ["abab"]
    assert [trained.library.id_to_token(i) for i in trained.encode("aba")] == ["ab", "a"]


def test_wordpiece_is_berts(wordpiece):
    ids = [wordpiece.library.token_to_id(name) for name in tokenizer.BERT[0]]
    assert ids == [0, 1, 2, 3, 4]
    assert wordpiece.end_of_text == 3  # [SEP] between documents
    assert wordpiece.special == {"pad": 0, "unknown": 1, "begin": 2, "end": 3, "mask": 4}
    pieces = [wordpiece.library.id_to_token(i) for i in wordpiece.encode("The CHAT É€ É")]
    assert pieces == ["the", "c", "##h", "##at", "[UNK]", "e"]
    assert wordpiece.decode(wordpiece.encode("Then the hat")) == "then the hat"
    starts = wordpiece.word_starts()[wordpiece.encode("The chat")]
    assert starts.tolist() == [True, True, False, False]
    ends = wordpiece.sentence_ends()[wordpiece.encode("The cat. Then")]
    assert ends.tolist() == [False, False, True, False]
    assert 1 not in wordpiece.ordinary
    assert len(wordpiece.ordinary) == wordpiece.size - 5


def test_unigram_is_t5s(unigram):
    library, size = unigram.library, unigram.size
    assert size == 420
    assert [library.id_to_token(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    for i in range(100):
        assert library.id_to_token(size - 1 - i) == f"<extra_id_{i}>"
        assert unigram.special["sentinels"][i] == size - 1 - i
    names = ("[NLU]", "[S2S]", "[NLG]")
    assert [library.token_to_id(name) for name in names] == [317, 318, 319]
    assert unigram.special["modes"] == {"[NLU]": 317, "[S2S]": 318, "[NLG]": 319}
    assert unigram.end_of_text == unigram.special["end"] == 1
    # What no piece spells is bytes, of every text; the name of a byte is ordinary text.
    for text in ("ﷺ\U0001f9ff", "<0x41>", "▁"):
        tokens = unigram.encode(text)
        assert 2 not in tokens
        assert unigram.decode(tokens) == text.replace("▁", " ")
    assert [library.id_to_token(i) for i in unigram.encode("a b d")] == ["a", "▁", "b", "▁", "d"]
    assert np.flatnonzero(unigram.word_starts()[unigram.encode("a b d")]).tolist() == [1, 3]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
@pytest.mark.parametrize("name", ["mask", "sentinels"])
def test_sets_of_special_tokens(kind, name):
    trained = tokenizer.train_tokenizer(kind, TEXTS * 3, 450, name)
    roles = {"mask": {"mask", "begin", "end", "pad", "unknown"}}
    roles["sentinels"] = {"end", "pad", "unknown", "sentinels", "modes"}
    assert trained.special.keys() == roles[name]
    blank = "[MASK]" if kind == "wordpiece" else "<mask>"
    blank = blank if name == "mask" else "<extra_id_0>"
    token = trained.special["mask"] if name == "mask" else trained.special["sentinels"][0]
    text = f"mixed {blank} text"
    assert token not in trained.encode(text)
    tokens = trained.encode(text, special=True)
    assert (tokens == token).sum() == 1
    # What the blank leaves is what would be there without it.
    words = [trained.encode("mixed"), [token], trained.encode(" text")]
    assert tokens.tolist() == np.concatenate(words).tolist()
    assert token not in trained.encode(text)  # as before
    for other in ("<s>", "[SEP]", "</s>", "<extra_id_7>", "[NLU]", "<mask>"):
        assert not {*trained.encode(other)} - {*trained.ordinary, trained.special["unknown"]}
    with_mask = tokenizer.train_tokenizer("bpe", TEXTS * 3, 300, "mask")
    assert with_mask.special == {"begin": 0, "pad": 1, "end": 2, "unknown": 3, "mask": 299}


def test_words_and_sentences_of_bytes_and_bpe(bpe):
    text = "a bc.\nDe f!"
    plain = tokenizer.of_bytes()
    assert np.flatnonzero(plain.word_starts()[plain.encode(text)]).tolist() == [1, 5, 8]
    assert np.flatnonzero(plain.sentence_ends()[plain.encode(text)]).tolist() == [4, 5, 10]
    assert plain.special == {"end": 256}
    assert plain.ordinary.tolist() == list(range(256))
    spelled = [bpe.library.id_to_token(i) for i in range(bpe.size)]
    assert [t for t, yes in zip(spelled, bpe.word_starts(), strict=True) if yes] == [
        t for t in spelled if t[0] in "ĠĊĉč"
    ]
    assert tokenizer.of_characters("a b").special == {}


def test_half_characters_and_numbers_of_no_token_do_not_crash(bpe, unigram):
    for kind in each(bpe, unigram):
        tokens = kind.encode("敏捷🙂")
        for stop in range(len(tokens) + 1):
            assert isinstance(kind.decode(tokens[:stop]), str)
        assert kind.decode([*tokens, kind.size + 7, -1]) == "敏捷🙂"
        assert kind.decode([]) == ""
    assert tokenizer.of_bytes().decode("敏".encode()[:2]) == "\ufffd"
    assert bpe.decode([bpe.end_of_text]) == tokenizer.of_bytes().decode([256]) == ""
    assert tokenizer.of_bytes().encode("\udcff").tolist() == [ord("?")]


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_training_is_deterministic_over_processes_and_threads(kind):
    program = (
        "import sys, json; from lm.data import tokenizer;"
        "texts = json.load(sys.stdin);"
        f"print(tokenizer.train_tokenizer('{kind}', iter(texts), 700).fingerprint)"
    )
    # So many that the last pieces are ties.
    texts = [topics[name] for name in sorted(topics)[:20]] + TEXTS * 3
    here = tokenizer.train_tokenizer(kind, iter(texts), 700)
    assert here.size == 700
    for threads in ("1", "4"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(texts),
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == here.fingerprint


def test_hugging_face_files(tmp_path):
    library = pytest.importorskip("tokenizers")
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 9}  # with a gap
    made = library.Tokenizer(library.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = library.processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    made.enable_truncation(2)
    made.enable_padding(length=7)
    made.save(str(tmp_path / "theirs.json"))
    loaded = tokenizer.find(str(tmp_path / "theirs.json"))
    assert (loaded.kind, loaded.size, loaded.end_of_text) == ("wordlevel", 10, 2)
    assert loaded.encode("a b a b").tolist() == [3, 9, 3, 9]
    assert 2 not in loaded.encode("a </s>")
    loaded.save(tmp_path)
    assert tokenizer.load(tmp_path).fingerprint == loaded.fingerprint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: tokenizer.load(folder), "there is no tokenizer at"),
        (lambda folder: tokenizer.load(folder / "folder"), "name a tokenizer.json or its folder"),
        (lambda folder: tokenizer.load(folder / "broken"), "is not a tokenizer.json"),
        (lambda folder: tokenizer.load(folder / "binary"), "is not a tokenizer.json"),
        (
            lambda folder: tokenizer.load(folder / "list"),
            "expected struct Tokenizer",
        ),
        (lambda folder: tokenizer.load(folder / "unknown"), "unknown is .* refuses it: .*Model"),
        (lambda folder: tokenizer.load(folder / "merges"), "merges is .*`b` out of vocabulary"),
        (lambda folder: tokenizer.load(folder / "wordless"), r"wordless is .*\(it has no tokens\)"),
        (lambda folder: tokenizer.find("bep"), "data.tokenizer='bep'.* Did you mean 'bpe'"),
        (lambda folder: tokenizer.train_tokenizer("bpe", [], 256), "data.tokenizer_size=256"),
        (
            lambda folder: tokenizer.train_tokenizer("unigram", [], 300),
            "data.tokenizer_size=300 .* need 378 or more",
        ),
        (
            lambda folder: tokenizer.train_tokenizer("wordpiece", [], 9),
            "data.tokenizer_size=9 is too small for wordpiece",
        ),
        (
            lambda folder: tokenizer.train_tokenizer("bpe", [], 300, "masks"),
            "data.special_tokens .of bpe.='masks' is not known. Did you mean 'mask'",
        ),
        (
            lambda folder: tokenizer.special_tokens("some/tokenizer.json", "mask"),
            "data.special_tokens='mask' is for a tokenizer that is trained here",
        ),
        (lambda folder: tokenizer.train_tokenizer("word", [], 256), "data.tokenizer='word'"),
        (lambda folder: tokenizer.of_characters("ab").encode("a€"), r"'€' \(U\+20AC\)"),
        (lambda folder: tokenizer.of_characters("bc").encode("a"), r"'a' \(U\+0061\)"),
    ],
)
def test_mistakes_are_one_line(make, message, tmp_path):
    (tmp_path / "broken").write_text("{")
    (tmp_path / "list").write_text("[]")
    (tmp_path / "binary").write_bytes(b"\xff")
    (tmp_path / "folder" / "tokenizer.json").mkdir(parents=True)
    (tmp_path / "unknown").write_text('{"model": {"type": "Unheard"}}')
    for name, merges in (("merges", ["a b"]), ("wordless", [])):
        vocabulary = {"a": 0} if merges else {}
        model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
        (tmp_path / name).write_text(json.dumps({"model": model}))
    with pytest.raises(UserError, match=message) as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [MemoryError, TypeError, ImportError])
def test_what_is_not_the_files_fault_is_not_said_to_be(error, tmp_path, monkeypatch):
    def fail(definition):
        raise error("ours")

    tokenizer.train_tokenizer("bpe", TEXTS, 300).save(tmp_path)
    monkeypatch.setattr(tokenizer, "Library", types.SimpleNamespace(from_str=fail))
    with pytest.raises(error, match="ours"):
        tokenizer.load(tmp_path)
