"""Folders built once, whatever else happens meanwhile."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lm.data import cache
from lm.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]

# Builds a folder slowly; prints the information and how often this process has built it.
BUILDER = """
import pathlib, sys, time
from lm.data.cache import published

builds = 0

def build(folder):
    global builds
    builds += 1
    with open(folder / "data", "wb", buffering=0) as file:
        for _ in range(20):
            file.write(b"0123456789" * 1000)
            time.sleep(float(sys.argv[2]) / 20)
    return {"size": 200_000}

print(published(pathlib.Path(sys.argv[1]), build)["size"], builds)
"""


def start(folder, seconds):
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(folder), str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def being_built(folder):
    return list(folder.parent.glob(f"{folder.name}.*/data"))


def fill(folder):
    (folder / "data").write_bytes(b"x" * 100)
    return [1, 2]


def never(folder):
    raise AssertionError("built again")


def test_built_once_and_then_read(tmp_path):
    assert cache.published(tmp_path / "deep" / "k", fill) == [1, 2]
    assert cache.published(tmp_path / "deep" / "k", never) == [1, 2]


def test_two_processes_at_once_build_it_once(tmp_path):
    processes = [start(tmp_path / "k", 0.5) for _ in range(2)]
    printed = sorted(process.communicate(timeout=30)[0].strip() for process in processes)
    assert printed == ["200000 0", "200000 1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k", "k.lock"]


def test_two_processes_without_locks_end_with_a_whole_folder(tmp_path, monkeypatch):
    """Two machines and no common lock: the slower one finds the folder there when it is done."""

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(cache.fcntl, "flock", no_locks)
    built = []

    def both(folder):
        if not built:
            built.append(folder)
            assert cache.published(tmp_path / "k", both) == [1, 2]
        return fill(folder)

    assert cache.published(tmp_path / "k", both) == [1, 2]
    assert cache.published(tmp_path / "k", never) == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k", "k.lock"]


def test_killed_half_way(tmp_path):
    killed = start(tmp_path / "k", 60)
    wait_for(lambda: being_built(tmp_path / "k"))
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=30)
    assert being_built(tmp_path / "k")
    assert cache.published(tmp_path / "k", fill) == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k", "k.lock"]


def test_killed_while_another_waits(tmp_path):
    killed = start(tmp_path / "k", 60)
    wait_for(lambda: being_built(tmp_path / "k"))
    waiting = start(tmp_path / "k", 0)
    assert "another process builds" in waiting.stderr.readline()
    killed.send_signal(signal.SIGKILL)
    assert waiting.communicate(timeout=30)[0].strip() == "200000 1"
    killed.communicate(timeout=30)


@pytest.mark.parametrize("name", ["data", cache.META])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "grow", "empty"])
def test_damage_is_noticed_and_mended(name, damage, tmp_path, capsys):
    cache.published(tmp_path / "k", fill)
    file = tmp_path / "k" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    {
        "truncate": lambda: file.write_bytes(file.read_bytes()[:-1]),
        "flip": lambda: file.write_bytes(data),
        "remove": file.unlink,
        "grow": lambda: file.write_bytes(file.read_bytes() + b"x"),
        "empty": lambda: file.write_bytes(b""),
    }[damage]()
    assert cache.published(tmp_path / "k", fill) == [1, 2]
    assert capsys.readouterr().err.count("is damaged; it is built again") == 1
    assert cache.published(tmp_path / "k", never) == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k", "k.lock"]


def test_a_large_file_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "MEBIBYTE", 4)
    cache.published(tmp_path / "k", lambda folder: (folder / "data").write_bytes(bytes(4000)))
    data = bytearray(4000)
    data[-1000:] = b"x" * 1000
    (tmp_path / "k" / "data").write_bytes(data)
    assert cache.published(tmp_path / "k", fill) == [1, 2]


def test_an_error_while_building_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cache.published(tmp_path / "k", lambda folder: 1 / fill(folder).index(1))
    assert [path.name for path in tmp_path.iterdir()] == ["k.lock"]


def test_a_full_disk(tmp_path):
    """The limit on the size of a file stands for the disk's: the same system call fails."""
    program = (
        "import pathlib, resource, sys; from lm.data.cache import published;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "published(pathlib.Path(sys.argv[1]), lambda f: (f / 'data').write_bytes(bytes(2000)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "k")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "RunError: no space is left" in done.stderr.splitlines()[-1]
    assert "set data.cache or LM_CACHE" in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["k.lock"]


def test_a_cache_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .*set data.cache or LM_CACHE"):
        cache.published(tmp_path / "file" / "k", fill)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("LM_CACHE", str(tmp_path))
    assert cache.cache_root("") == tmp_path
    assert cache.cache_root("~/x") == tmp_path.home() / "x"
    monkeypatch.setenv("LM_CACHE", "http://bucket/cache")
    with pytest.raises(UserError, match="LM_CACHE=http://bucket/cache is a URL"):
        cache.cache_root("")
    monkeypatch.delenv("LM_CACHE")
    assert cache.cache_root("") == tmp_path.home() / ".cache" / "lm"


def test_errors_of_other_kinds_pass(tmp_path):
    def failing(_):
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        cache.published(tmp_path / "k", failing)
