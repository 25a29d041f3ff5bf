"""Token stores: what is in them, when they are built, what they are known by."""

import dataclasses
import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lm.data import sources, store, tokenizer
from lm.data.store import open_data
from lm.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
WORDS = "the quick brown fox jumps over the lazy dog and 敏捷的 🙂 runs on\n"


def write_rows(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def documents_of(part, kind):
    """Texts of the documents of a TokenStore, from its tokens and starts."""
    ends = [*part.starts[1:], part.num_tokens]
    return [kind.decode(part.tokens[a:b]) for a, b in zip(part.starts, ends, strict=True)]


@pytest.mark.parametrize("kind", ["bpe", "bytes", "characters"])
def test_the_stream_holds_every_document(kind, config, tmp_path):
    texts = [f"{i} {WORDS[: i % 50]}" for i in range(60)]
    write_rows(tmp_path / "a.jsonl", [*texts, ""])
    data = open_data(config(path=tmp_path / "a.jsonl", tokenizer=kind))
    found = [documents_of(part, data.tokenizer) for part in (data.train, data.validation)]
    assert sorted(found[0] + found[1]) == sorted(texts)
    for part, part_texts in zip((data.train, data.validation), found, strict=True):
        assert part.num_documents == len(part_texts)
        assert part.num_bytes == sum(len(text.encode()) for text in part_texts)
        assert part.tokens.dtype == np.uint16
        end_of_text = data.tokenizer.end_of_text
        assert (
            np.array_equal(np.flatnonzero(part.tokens == end_of_text), part.starts)
            or end_of_text is None
        )


def test_one_file_of_characters_is_nanogpts_arrays(config, shared_data):
    path = shared_data / "tinyshakespeare.txt"
    data = open_data(config(path=path, tokenizer="characters"))
    text = path.read_text()
    token = {character: i for i, character in enumerate(sorted(set(text)))}
    expected = np.array([token[character] for character in text], np.uint16)
    assert data.tokenizer.size == 65
    assert np.array_equal(data.train.tokens, expected[: int(len(text) * 0.9)])
    assert np.array_equal(data.validation.tokens, expected[int(len(text) * 0.9) :])
    assert data.train.starts.tolist() == [0]


def test_a_text_larger_than_a_batch_of_pieces(config, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BATCH", 1 << 17)
    text = WORDS * 12_000
    (tmp_path / "text.txt").write_text(text)
    data = open_data(config())
    assert data.train.tokens[1:].astype(np.uint8).tobytes() == text[: int(len(text) * 0.9)].encode()
    assert data.train.starts.tolist() == [0]


def test_large_vocabularies_and_texts_without_a_token(config, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE", 2)
    library = pytest.importorskip("tokenizers")
    made = library.Tokenizer(library.models.WordLevel({"a": 1, "b": 70_000}))  # no end of text
    made.pre_tokenizer = library.pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "t.json"))
    for name in ("text", "other"):
        write_rows(tmp_path / f"{name}.jsonl", ["a b", "   ", "       b"])
    data = open_data(
        config(
            path=tmp_path / "text.jsonl",
            validation_path=str(tmp_path / "other.jsonl"),
            tokenizer=str(tmp_path / "t.json"),
        )
    )
    assert data.train.tokens.dtype == np.uint32
    assert data.train.tokens.tolist() == [1, 70_000, 70_000]
    assert data.train.starts.tolist() == [0, 2]


def test_built_once_and_known_by_content_split_and_tokenizer(config, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(WORDS * 20)
    data = open_data(config(tokenizer="bpe"))
    monkeypatch.setattr(tokenizer.Tokenizer, "encode_many", None)
    again = open_data(config(tokenizer="bpe", batch_size=9, order="contiguous", text_key="body"))
    assert again.key == data.key
    assert np.array_equal(again.train.tokens, data.train.tokens)
    data.tokenizer.save(tmp_path)
    resumed = open_data(config(tokenizer="bytes"), tokenizer.load(tmp_path))
    assert resumed.key == data.key
    (tmp_path / "moved.txt").write_text(WORDS * 20)
    assert open_data(config(path=tmp_path / "moved.txt", tokenizer="bpe")).key == data.key
    monkeypatch.undo()
    (tmp_path / "moved.txt").write_text(WORDS * 20 + ".")
    keys = {data.key}
    for change in (
        {"path": tmp_path / "moved.txt"},
        {"tokenizer_size": 280},
        {"tokenizer": "bytes"},
        {"validation_fraction": 0.2},
        {"validation_path": str(tmp_path / "moved.txt")},
        {"validation_path": str(tmp_path / "text.txt")},
    ):
        keys.add(open_data(config(**{"tokenizer": "bpe", **change})).key)
    assert len(keys) == 7


def test_bpe_is_trained_on_the_training_part_and_characters_on_both(config, tmp_path):
    (tmp_path / "text.txt").write_text("ab" * 450 + "zz" * 50)
    data = open_data(config(tokenizer="bpe"))
    vocabulary = data.tokenizer.library.get_vocab()
    assert "abab" in vocabulary
    assert "zz" not in vocabulary
    assert open_data(config(tokenizer="characters")).tokenizer.decode([0, 1, 2]) == "abz"


def test_a_sample_of_a_large_text_trains_the_tokenizer(config, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SAMPLE", 2000)
    write_rows(tmp_path / "a.jsonl", [f"{i:04d}" for i in range(400)])
    seen = []
    train = tokenizer.train_tokenizer
    monkeypatch.setattr(
        tokenizer,
        "train_tokenizer",
        lambda kind, texts, size, special: train(kind, seen.extend(texts) or [], size, special),
    )
    data = open_data(config(path=tmp_path / "a.jsonl", tokenizer="bpe"))
    every = 1 + (tmp_path / "a.jsonl").stat().st_size // 2000
    assert seen == documents_of(data.train, data.tokenizer)[::every]


def test_a_damaged_store_or_tokenizer_is_built_again(config, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(WORDS * 20)
    data = open_data(config(tokenizer="bpe"))
    expected = data.train.tokens.copy()
    for file in (tmp_path / "cache").rglob("*"):
        if file.suffix in (".tokens", ".json") and file.name != "meta.json":
            os.truncate(file, file.stat().st_size // 2)
    again = open_data(config(tokenizer="bpe"))
    assert capsys.readouterr().err.count("is damaged") == 2
    assert again.key == data.key
    assert np.array_equal(again.train.tokens, expected)


# Opens the store of a text with a tokenizer that takes its time.
PROGRAM = """
import json, sys, time
from lm.config import DataConfig
from lm.data import sources, store, tokenizer

encode_many = tokenizer.Tokenizer.encode_many

def slowly(self, texts):
    time.sleep(float(sys.argv[2]))
    return encode_many(self, texts)

tokenizer.Tokenizer.encode_many = slowly
store.BATCH = 1000
data = store.open_data(DataConfig(**json.loads(sys.argv[1])))
print(data.key, int(data.train.tokens.sum()), data.train.num_tokens)
"""


def test_two_processes_and_one_killed_half_way(config, tmp_path):
    write_rows(tmp_path / "a.jsonl", [WORDS] * 100 + [f"{i}" for i in range(100)])
    keys = json.dumps(dataclasses.asdict(config(path=tmp_path / "a.jsonl")))

    def start(seconds):
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, keys, str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    killed = start(0.5)
    end = time.monotonic() + 30
    while not any(path.stat().st_size for path in (tmp_path / "cache").rglob("train.tokens")):
        assert time.monotonic() < end
        time.sleep(0.01)
    others = [start(0), start(0)]
    time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    printed = {other.communicate(timeout=60)[0] for other in others}
    data = open_data(config(path=tmp_path / "a.jsonl", cache=str(tmp_path / "another")))
    assert printed == {f"{data.key} {data.train.tokens.sum()} {data.train.num_tokens}\n"}
    (folder,) = [path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir()]
    assert folder.name == data.key


def test_sources_with_one_tokenizer_and_stores_of_their_own(config, tmp_path):
    for name, text in (("a", "abab" * 300), ("b", "cdcd" * 200), ("c", "efef" * 100)):
        (tmp_path / name).write_text(text)
    a, b, c = (str(tmp_path / name) for name in "abc")
    data = open_data(config(path=f"{a}, {b}", weights="3,1", tokenizer="bpe"))
    assert {"abab", "cdcd"} <= {*data.tokenizer.library.get_vocab()}
    assert data.train.weights == data.validation.weights == (3, 1)
    for part in (data.train, data.validation):
        for name in ("num_tokens", "num_bytes", "num_documents"):
            assert getattr(part, name) == sum(getattr(store, name) for store in part.stores)
    alone = open_data(config(path=b), data.tokenizer)
    assert np.array_equal(alone.train.tokens, data.train.stores[1].tokens)
    assert np.array_equal(alone.validation.tokens, data.validation.stores[1].tokens)
    keys = [
        open_data(config(path=path, weights=weights, tokenizer="bytes")).key
        for path, weights in ((f"{a},{b}", "3,1"), (f"{a},{b}", "1,3"), (f"{b},{a}", "3,1"))
    ]
    keys.append(open_data(config(path=a, tokenizer="bytes")).key)
    assert len({*keys}) == 4
    assert open_data(config(path=f"{a},{b}", weights="6,2", tokenizer="bytes")).key == keys[0]
    characters = open_data(config(path=f"{a},{b}", weights="1,1", tokenizer="characters"))
    assert characters.tokenizer.decode([0, 1, 2, 3]) == "abcd"
    held_out = open_data(config(path=f"{a},{b}", weights="1,1", validation_path=f"{c},{a}"))
    assert [len(store.tokens) for store in held_out.validation.stores] == [401, 1201]
    assert [len(store.tokens) for store in held_out.train.stores] == [1201, 801]


def test_special_tokens_are_part_of_a_tokenizer_and_of_what_it_gives(config, tmp_path):
    (tmp_path / "text.txt").write_text(WORDS * 30)
    end, mask = (
        open_data(config(tokenizer="bpe", special_tokens=name)) for name in ("end", "mask")
    )
    assert end.key != mask.key
    assert open_data(config(tokenizer="bpe")).key == end.key
    assert "mask" not in end.tokenizer.special
    assert (mask.train.tokens[mask.train.starts] == mask.tokenizer.special["end"]).all()
    pieces = open_data(config(tokenizer="wordpiece"))
    assert pieces.train.tokens[0] == pieces.tokenizer.special["end"] == 3
    for keys in ({"tokenizer": "bytes"}, {"tokenizer": "bpe", "special_tokens": "masks"}):
        with pytest.raises(UserError, match=r"data\.special_tokens") as caught:
            open_data(config(**{"special_tokens": "mask", **keys}))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (["same"] * 5, {}, "gives 25 tokens for training and 0 for validation"),
        (["", ""], {}, "gives 0 tokens for training and 0 for validation"),
        (["abc", "def"], {"tokenizer": "bpe", "tokenizer_size": 9}, "data.tokenizer_size=9"),
        (["abc"], {"validation_path": "/absent"}, "data.validation_path=/absent does not exist"),
        (["abc"], {"tokenizer": "byte"}, "data.tokenizer='byte'.*Did you mean 'bytes'"),
        (["abc"], {"weights": "3,1"}, "data.weights=3,1 is for 2 sources, and data.path names 1"),
        (["abc"], {"weights": "three"}, "data.weights=three must be numbers"),
    ],
)
def test_bad_input_is_one_line(texts, changes, message, config, tmp_path):
    write_rows(tmp_path / "a.jsonl", texts)
    with pytest.raises(UserError, match=message) as caught:
        open_data(config(path=tmp_path / "a.jsonl", **changes))
    assert "\n" not in str(caught.value)


def test_an_unknown_character_of_the_tokenizer_of_a_run(config, tmp_path):
    (tmp_path / "text.txt").write_text("abc€abc" * 20)
    with pytest.raises(UserError, match="'€'"):
        open_data(config(), tokenizer.of_characters("abc"))
    assert not [path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir()]


def test_gzip_of_rows_in_a_folder(config, tmp_path):
    (tmp_path / "f").mkdir()
    for i in range(9):
        lines = "".join(json.dumps({"body": f"{i} {j}"}) + "\n" for j in range(9))
        (tmp_path / "f" / f"{i}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    data = open_data(config(path=tmp_path / "f", text_key="body"))
    assert data.train.num_documents + data.validation.num_documents == 81


def test_progress_of_a_long_build(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "REPORT_SECONDS", -1)
    (tmp_path / "text.txt").write_text(WORDS * 20)
    open_data(config())
    assert "writing train tokens: 0 million characters" in capsys.readouterr().err


def test_the_embedded_corpus_opens_at_once(config):
    keys = {"path": "", "tokenizer": "bytes"}
    first = open_data(config(**keys))
    begin = time.perf_counter()
    again = open_data(config(**keys))
    assert time.perf_counter() - begin < 5  # 0.2 on an idle machine
    assert first.key == again.key
    assert first.train.num_tokens > 5e6
