"""Every kind of source, the split, and one line for every kind of bad input."""

import gzip
import json
import os
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from lm.data import sources
from lm.data.tokenizer import train_tokenizer
from lm.errors import UserError

CHINESE = "敏捷的棕色狐狸\n🙂"


def read(path, text_key="text"):
    return sources.read_corpus("data.path", str(path), text_key, Path(path).parent / "cache")


def texts(documents):
    return ["".join(document.pieces()) for document in documents]


def part_texts(corpus, fraction=0.1, validation=None):
    return [texts(part()) for part in sources.split(corpus, validation, fraction)]


def rows(*values):
    return "".join(json.dumps({"text": value, "id": 1}) + "\n" for value in values)


def test_text_with_its_own_newlines_and_without_a_byte_order_mark(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbf" + f"a\r\nb\n{CHINESE}".encode())
    assert texts(read(file).documents()) == [f"a\r\nb\n{CHINESE}"]


def test_folder_in_order_without_hidden_and_binary_files(tmp_path, capsys):
    for name, data in {
        "b.txt": b"second",
        "a.md": CHINESE.encode(),
        "sub/deep/c.py": b"third",
        "sub/rows.jsonl": rows("fourth", "", "fifth").encode(),
        "sub/z.gz": gzip.compress(b"sixth", mtime=0),
        "picture.png": b"\x89PNG\xff",
        "empty": b"",
        ".hidden": b"no",
        ".git/config": b"no",
    }.items():
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(data)
    corpus = read(tmp_path / "f")
    assert texts(corpus.documents()) == [CHINESE, "second", "fourth", "fifth", "sixth", "third"]
    assert "1 of 6 files are not UTF-8 and were left out" in capsys.readouterr().err


def test_packed_files_of_several_streams(tmp_path):
    two = gzip.compress(rows("one").encode()) + gzip.compress(rows(CHINESE).encode())
    (tmp_path / "r.jsonl.gz").write_bytes(two)
    assert texts(read(tmp_path / "r.jsonl.gz").documents()) == ["one", CHINESE]


def test_zstandard(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    data = zstandard.compress(rows("one").encode()) + zstandard.compress(rows(CHINESE).encode())
    (tmp_path / "r.jsonl.zst").write_bytes(data)
    assert texts(read(tmp_path / "r.jsonl.zst").documents()) == ["one", CHINESE]
    (tmp_path / "r.jsonl.zst").write_bytes(data[:-3])
    with pytest.raises(UserError, match=r"truncated or damaged .zst file"):
        texts(read(tmp_path / "r.jsonl.zst").documents())


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "r.parquet"
    parquet.write_table(pyarrow.table({"n": [1, 2], "text": ["one", CHINESE]}), file)
    assert texts(read(file).documents()) == ["one", CHINESE]
    with pytest.raises(UserError, match=r"lacks data\.text_key=body; its keys are n, text"):
        texts(read(file, "body").documents())
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match="is no whole Parquet file"):
        texts(read(file).documents())


def test_the_standard_library(tmp_path):
    from pydoc_data.topics import topics

    corpus = sources.read_corpus("data.path", "", "text", tmp_path)
    found = texts(corpus.documents())
    assert set(topics.values()) <= set(found)
    library = Path(sysconfig.get_path("stdlib"))
    assert (library / "json" / "decoder.py").read_text() in found
    names = [source.name for source in corpus.hashes]
    assert not any("site-packages" in name or "/test" in name for name in names)
    held_out = sum(map(len, part_texts(corpus)[1]))
    assert 0.05 < held_out / sum(map(len, found)) < 0.2


def test_what_a_corpus_is_does_not_depend_on_place_or_names(tmp_path):
    for folder, name in (("a", "x.txt"), ("b", "y.txt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("one")
        (tmp_path / folder / "z.jsonl").write_text(rows("two"))
    first, second = (read(tmp_path / folder) for folder in "ab")
    assert first.hash == second.hash
    assert read(tmp_path / "a", "body").hash != first.hash
    (tmp_path / "a" / "x.txt").write_text("one!")
    assert read(tmp_path / "a").hash != first.hash


def test_hashes_of_a_large_old_file_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "REMEMBERED", 10)
    file, now = tmp_path / "a.txt", time.time()

    def written(text, date):
        file.write_text(text)
        os.utime(file, (date, date))
        return read(file).hash

    assert written("a" * 20, now) != written("b" * 20, now)  # too young for the date to tell
    second = written("b" * 20, 10**9)
    assert list((tmp_path / "cache" / "hashes").glob("*/meta.json"))
    monkeypatch.setattr(sources, "_hash", None)
    assert read(file).hash == second


def test_one_document_is_cut_by_position_as_nanogpt_does(tmp_path):
    for text in ("0123456789" * 7 + "敏捷", "a", "ab"):
        (tmp_path / "a.txt").write_text(text)
        n = int(len(text) * 0.9)
        assert ["".join(part) for part in part_texts(read(tmp_path / "a.txt"))] == [
            text[:n],
            text[n:],
        ]
        (tmp_path / "a.jsonl").write_text(rows(text))
        assert ["".join(part) for part in part_texts(read(tmp_path / "a.jsonl"))] == [
            text[:n],
            text[n:],
        ]


def test_tiny_shakespeare_is_cut_as_nanogpt_does(shared_data):
    (train,), (validation,) = part_texts(read(shared_data / "tinyshakespeare.txt"))
    assert (len(train), len(validation)) == (1_003_854, 111_540)  # nanoGPT prints these


def test_a_document_stays_on_its_side_whatever_the_others_are(tmp_path):
    all_texts = [f"document {i}" for i in range(300)]
    (tmp_path / "a.jsonl").write_text(rows(*all_texts))
    train, held_out = part_texts(read(tmp_path / "a.jsonl"))
    assert sorted(train + held_out) == sorted(all_texts)
    assert 12 <= len(held_out) <= 48  # 30 expected, three and a half deviations
    (tmp_path / "a.jsonl").write_text(rows(*all_texts[:-100:-1], *all_texts[50:120]))
    assert set(part_texts(read(tmp_path / "a.jsonl"))[1]) <= set(held_out)


def test_few_documents_still_have_both_parts(tmp_path):
    for count in range(2, 9):
        for fraction in (0.01, 0.5, 0.99):
            (tmp_path / "a.jsonl").write_text(rows(*(f"{count} {i}" for i in range(count))))
            train, held_out = part_texts(read(tmp_path / "a.jsonl"), fraction)
            assert train
            assert held_out
            assert len(train) + len(held_out) == count


def test_a_validation_path_takes_nothing_from_training(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name * 50)
    corpora = [read(tmp_path / f"{name}.txt") for name in "ab"]
    assert part_texts(corpora[0], 0.5, corpora[1]) == [["a" * 50], ["b" * 50]]


def test_pieces_depend_on_the_text_only_and_leave_tokens_as_they_are(monkeypatch):
    monkeypatch.setattr(sources, "PIECE", 50)
    text = "".join(
        [
            *Path(json.__file__).read_text()[:3000],
            "x" * 300,
            "  \n\n\t y\r\n" * 30,
            CHINESE * 20,
            "don't  stop\n" * 20,
        ]
    )
    whole = list(sources.cut([text]))
    assert "".join(whole) == text
    assert all(50 <= len(piece) <= 100 for piece in whole[:-1])
    for size in (1, 7, 99, 1000):
        assert list(sources.cut(text[i : i + size] for i in range(0, len(text), size))) == whole
    monkeypatch.setattr(sources, "PIECE", 200)  # code has a safe place in so many characters
    code = Path(json.__file__).read_text()
    trained = train_tokenizer("bpe", [code], 600)
    pieces = list(sources.cut([code]))
    assert len(pieces) > 30
    joined = [token for tokens in trained.encode_many(pieces) for token in tokens]
    assert joined == trained.encode(code).tolist()


def test_half_a_surrogate_in_json_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    assert texts(read(tmp_path / "a.jsonl").documents()) == ["a\ufffdb"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("absent.txt", None, r"data.path=\S+absent.txt does not exist; name a text file"),
        ("empty.txt", b"", "is empty; name a file"),
        ("folder/", None, "is empty; name a file"),
        ("latin.txt", b"caf\xe9 au lait", r"latin.txt is not UTF-8 at byte 3"),
        ("cut.txt", "ab敏".encode()[:-1], r"cut.txt is not UTF-8 at byte 2"),
        ("far.txt", b"a" * 300_000 + b"\xff", r"is not UTF-8 at byte 300000"),
        ("folder/latin.txt", b"\xe9", "latin.txt is not UTF-8 at byte 0"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "a truncated or damaged .gz file"),
        ("b.txt.gz", b"no gzip at all", "a truncated or damaged .gz file"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', "a.jsonl, line 3, is not JSON"),
        ("b.jsonl", b'{"text": "a"}\n[1]\n', "b.jsonl, line 2, is not a JSON object"),
        (
            "c.jsonl",
            b'{"body": "a", "id": 3}',
            "line 1, lacks data.text_key=text; its keys are body, id",
        ),
        ("d.jsonl", b'{"text": null}', "line 1: text is None, not text"),
        ("e.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "e.jsonl is not UTF-8 at byte 24"),
    ],
)
def test_bad_input_is_one_line(name, data, message, tmp_path):
    path = tmp_path / name.split("/")[0]
    if "/" in name:
        path.mkdir()
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        texts(read(path).documents())
    assert "\n" not in str(caught.value)


def test_a_damaged_file_of_a_folder_is_not_left_out(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "good.txt").write_text("text")
    (tmp_path / "f" / "bad.txt.gz").write_bytes(gzip.compress(b"text" * 99, mtime=0)[:-9])
    with pytest.raises(UserError, match=r"bad\.txt\.gz is a truncated or damaged"):
        read(tmp_path / "f")


def test_missing_extras_are_named(tmp_path, monkeypatch):
    for name, module in (("a.parquet", "pyarrow"), ("a.txt.zst", "zstandard")):
        (tmp_path / name).write_bytes(b"x")
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=rf"needs {module}: pip install -e '\.\["):
            texts(read(tmp_path / name).documents())
