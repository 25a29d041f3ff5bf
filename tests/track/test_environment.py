import json
import os
import subprocess

import jax
import pytest

from lm.errors import UserError
from lm.track.environment import commit, environment, write_environment


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.check_output(["git", "-C", folder, *identity, *arguments], text=True).strip()


def test_it_says_what_it_runs_on(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    monkeypatch.setenv("WANDB_API_KEY", "hidden")
    monkeypatch.setenv("SLURM_JWT", "hidden")
    found = environment()
    assert found["versions"]["jax"] == jax.__version__
    assert found["devices"] == {"cpu": jax.device_count()}
    assert found["variables"]["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    assert found["variables"]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
    assert "hidden" not in json.dumps(found)


def test_a_resumed_run_keeps_the_earlier_starts(tmp_path):
    written = [write_environment(tmp_path) for _ in range(3)]
    assert json.loads((tmp_path / "environment.json").read_text()) == written
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "environment.json").write_text("[")
    with pytest.raises(UserError, match="is not JSON"):
        write_environment(tmp_path)


def test_commit_and_whether_files_differ_from_it(tmp_path):
    assert commit(tmp_path) is None
    git(tmp_path, "init")
    assert commit(tmp_path) is None  # nothing is committed yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "--message", "a")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tmp_path) == {"commit": head, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == {"commit": head, "dirty": True}
