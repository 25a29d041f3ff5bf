"""Runs whose workdir, text and token stores are in a bucket of a real S3 server, on loopback."""

import contextlib
import gzip
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import boto3
import fsspec
import gcsfs
import google.auth
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cli
from experiments.convert import convert
from experiments.generate import generate
from experiments.inspect import inspect
from lm import paths
from lm.checkpoint import MANIFEST, Checkpoints
from lm.config import CheckpointConfig
from lm.data import cache
from lm.data.sources import read_corpus
from lm.errors import UserError
from lm.track import metrics
from lm.track.metrics import MetricsWriter, read_metrics
from tests.checkpoints import read

KEYS = {"AWS_ACCESS_KEY_ID": "us", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.fixture(scope="module")
def server():
    """The URL of a server, which this process and those it starts take for S3."""
    start = serving("-m", "moto.server", "-H", "127.0.0.1")
    with start as url, pytest.MonkeyPatch.context() as patch:
        where = {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in {**KEYS, **where}.items():
            patch.setenv(name, value)
        yield url


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def serving(*command):
    """The URL of a server, a process of its own, with a free port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, *command, f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not answers(port):
            assert process.poll() is None
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def answers(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def bucket(server):
    """s3://tests, empty at first."""
    boto3.client("s3").create_bucket(Bucket="tests")
    return paths.as_path("s3://tests")


@pytest.fixture(scope="module")
def run(bucket, tiny):
    """The workdir of a run that was killed and resumed, of text and with a cache of the bucket."""
    workdir, text = bucket / "run", bucket / "text" / "help.txt"
    text.write_bytes(tiny.text.read_bytes())
    keys = {"data.path": text, "data.cache": bucket / "cache"}
    process = tiny.start(workdir, keys)
    while not (workdir / "checkpoints" / "8" / MANIFEST).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    reader = Checkpoints(workdir / "checkpoints")
    assert 8 <= reader.steps()[-1] < 24
    process = tiny.start(workdir, keys)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, ""), err
    assert f"resumed from {workdir}/checkpoints/" in out
    assert out.endswith(f"trained to step 24; curve: {workdir}/curve.png\n")
    return workdir


# Whole runs


def test_a_run_in_a_bucket_that_is_killed_is_the_run_on_a_disk(run, finished, exact):
    assert exact(run) == exact(finished)
    names = sorted(path.name for path in run.iterdir())
    files = ("checkpoints", "config.json", "curve.png", "environment.json", "metrics.parts")
    assert names == [*files, "tokenizer.json"]
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((run / "environment.json").read_text())) == 2
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (run, finished))
    assert ours["data_key"] == theirs["data_key"]
    assert len(exact(run)) > 24
    for step in (8, 24):
        ours, theirs = (arrays(path, step) for path in (run, finished))
        assert {*ours} == {*theirs}
        assert [name for name in ours if ours[name] != theirs[name]] == []


def test_two_processes_share_a_bucket_and_one_goes_on(bucket, tiny, finished):
    workdir, port = bucket / "of-two", free_port()
    keys = {"train.num_steps": 16, "optim.decay_steps": 24, "cluster.timeout_seconds": 60}
    found = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    both = [tiny.start(workdir, keys, 4, [*found, f"--process_id={n}"]) for n in range(2)]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    keys = {"train.num_steps": 24, "optim.decay_steps": 24}
    process = tiny.start(workdir, keys)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and f"resumed from {workdir}/checkpoints/16" in out, err
    ours, theirs = (
        {row["step"]: row for row in read_metrics(path / "metrics.jsonl")}
        for path in (workdir, finished)
    )
    assert ours.keys() == theirs.keys() == {*range(24)}
    for step in range(24):
        assert ours[step]["data/fingerprint"] == theirs[step]["data/fingerprint"]
        np.testing.assert_allclose(ours[step]["train/loss"], theirs[step]["train/loss"], rtol=1e-5)
    starts = json.loads((workdir / "environment.json").read_text())
    assert [start["processes"] for start in starts] == [2, 1]


def arrays(workdir, step):
    """{name: bytes} of a checkpoint."""
    _, found = read(workdir / "checkpoints", step, only=None)
    leaves = jax.tree.leaves_with_path(found)
    return {jax.tree_util.keystr(path): leaf.tobytes() for path, leaf in leaves}


def test_the_other_commands_read_it(run, finished, tmp_path, capsys):
    told = []
    for workdir in (run, finished):
        for command, arguments in (
            (generate, [f"--workdir={workdir}", "--prompt=def", "--num_tokens=8", "--json"]),
            (inspect, [f"--workdir={workdir}", "--devices=8", "--json"]),
        ):
            assert cli._status(command, arguments) == 0
            told.append(capsys.readouterr().out)
    assert told[:2] == told[2:]
    assert cli._status(convert, [f"--source={run}", f"--target={tmp_path / 'hf'}"]) == 0
    assert cli._status(convert, [f"--source={run}", "--target=s3://tests/hf"]) == 2
    assert "--target=s3://tests/hf is a URL" in capsys.readouterr().err


def test_a_run_that_was_fetched_is_a_run_on_a_disk(run, finished, tmp_path, exact):
    fsspec.filesystem("s3").get("tests/run/", f"{tmp_path}/run/", recursive=True)
    assert exact(tmp_path / "run") == exact(finished)
    assert arrays(tmp_path / "run", 24) == arrays(finished, 24)


# Checkpoints


def small(value):
    return {"params": {"w": jnp.full((64,), value, jnp.float32)}, "step": jnp.int32(value)}


def saved(folder, *steps):
    with Checkpoints(folder, CheckpointConfig(1, 2, 0, 0, 0.0)) as checkpoints:
        for step in steps:
            checkpoints.save(step, small(step))
    return folder


def restored(folder):
    step, state = Checkpoints(folder).restore(small(0))
    np.testing.assert_array_equal(state["params"]["w"], np.full(64, step, np.float32))
    assert int(state["step"]) == step
    return step


def test_only_a_manifest_makes_a_checkpoint(bucket, capfd):
    folder = saved(bucket / "half", 1, 2, 3)
    assert Checkpoints(folder).steps() == [2, 3]
    assert restored(folder) == 3
    (folder / "3" / MANIFEST).unlink()  # as a run leaves it that is killed while it saves
    assert Checkpoints(folder).steps() == [2]
    assert (restored(folder), read(folder)[0]) == (2, 2)
    assert (folder / "3" / "state" / "_METADATA").exists()  # a reader removes nothing
    saved(folder, 3, 4)
    assert Checkpoints(folder).steps() == [3, 4]
    assert restored(folder) == 4
    assert not (folder / "2").exists()
    assert capfd.readouterr() == ("", "")


def test_damage_to_any_object_is_reported_or_does_no_harm(bucket, capfd):
    folder = saved(bucket / "damaged", 1, 2)
    names = sorted(paths.files_below(folder / "2"))
    assert len(names) > 5
    for number, name in enumerate(names):
        path = folder / "2" / name
        content = path.read_bytes()
        shorter = None if number % 2 else content[:-1]
        for damaged in (shorter, content[:-1] + bytes([content[-1] ^ 1])):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            step, err = restored(folder), capfd.readouterr().err
            same_size = damaged is not None and len(damaged) == len(content)
            if name == MANIFEST and damaged is None:
                assert (step, err) == (1, "")
            elif step == 1 or not same_size:
                assert step == 1
                assert err.startswith(f"Checkpoint {folder / '2'} is damaged and not used: ")
                assert err.count("\n") == 1
            else:
                assert err == ""
        path.write_bytes(content)
    assert restored(folder) == 2


# Metrics


def test_what_is_logged_is_written_in_time_and_in_few_objects(bucket, monkeypatch):
    workdir, now = bucket / "logged", [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    writer = MetricsWriter(workdir)
    with pytest.raises(UserError, match=r"there is no .*metrics.jsonl"):
        read_metrics(workdir / "metrics.jsonl")
    for step in range(30):
        now[0] = step
        writer.write(step, {"loss": step / 7})
        kept = [row["step"] for row in read_metrics(workdir / "metrics.jsonl")] if step > 10 else []
        assert step < 11 or step - kept[-1] <= metrics.FLUSH_SECONDS
    writer.flush()  # and then it is killed
    monkeypatch.setattr(metrics, "PART_BYTES", 100)
    with MetricsWriter(workdir) as again:
        for step in range(25, 40):
            again.write(step, {"loss": step / 9})
            again.flush()
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [*range(40)]
    assert [row["loss"] for row in rows] == [n / (7 if n < 25 else 9) for n in range(40)]
    assert len([*(workdir / "metrics.parts").iterdir()]) == 1 + 5


# Text and token stores


def test_text_in_a_bucket_is_the_text_on_a_disk(bucket, tmp_path):
    texts = tmp_path / "texts"
    rows = "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(5))
    for name, content in {
        "z.txt": b"last",
        "a/b/c.txt": "Grüße".encode() * 200_000,
        "a/b.jsonl": rows.encode(),
        "a-b.txt": b"before a folder",
        "a/rows.jsonl.gz": gzip.compress(rows.encode()),
        ".hidden": b"no",
        "a/.git/x": b"no",
        "a/bad.txt": b"\xff\xfe\xff",
        "empty.txt": b"",
    }.items():
        (texts / name).parent.mkdir(parents=True, exist_ok=True)
        (texts / name).write_bytes(content)
    fsspec.filesystem("s3").put(f"{texts}/", "tests/texts/", recursive=True)
    for name in ("", "z.txt", "a", "a/rows.jsonl.gz"):
        here, there = (
            read_corpus("data.path", os.path.join(root, name), "text", tmp_path / "cache")
            for root in (texts, bucket / "texts")
        )
        assert (here.hash, here.size) == (there.hash, there.size)
        both = [["".join(each.pieces()) for each in corpus.documents()] for corpus in (here, there)]
        assert both[0] == both[1]
    with pytest.raises(UserError, match=r"data.path=s3://tests/none does not exist"):
        read_corpus("data.path", "s3://tests/none", "text", tmp_path)


def test_a_cache_in_a_bucket_is_built_once_for_all_machines(bucket, tmp_path, monkeypatch, capsys):
    built = []

    def build(folder):
        built.append(folder)
        (folder / "file").write_text("content")
        return {"n": 1}

    folder = cache.cache_root(str(bucket / "shared")) / "tokens" / "key"
    for machine in ("first", "second", "first"):
        monkeypatch.setenv("LM_CACHE", str(tmp_path / machine))
        assert cache.published(folder, build) == {"n": 1}
        assert (cache.local(folder) / "file").read_text() == "content"
        assert cache.local(folder).is_relative_to(tmp_path / machine)
    assert len(built) == 1
    assert capsys.readouterr().err == ""
    (folder / "file").write_text("contend")
    monkeypatch.setenv("LM_CACHE", str(tmp_path / "third"))
    assert cache.published(folder, build) == {"n": 1}
    assert len(built) == 2
    assert capsys.readouterr().err == f"{folder} is damaged; it is built again.\n"
    assert (folder / "file").read_text() == "content"


# What cannot be


def refused(tiny, workdir, keys=(), status=2, **environment):
    """What the command said, in one line, before it made anything."""
    process = tiny.start(workdir, keys, 1, **environment)
    _, err = process.communicate()
    assert (process.returncode, err.count("\n")) == (status, 1), err
    return err


def test_what_is_not_there_is_one_line(bucket, tiny):
    err = refused(tiny, "s3://nothing-there/run")
    assert "--workdir=s3://nothing-there/run: not there" in err
    assert "check the bucket's name, or create it" in err
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        err = refused(tiny, "s3://tests/run2", status=1, AWS_ENDPOINT_URL=url)
    assert "--workdir=s3://tests/run2: the store fails" in err
    assert url in err


@pytest.fixture
def stranger(server):
    """The environment of somebody who may read the bucket and write nothing."""
    iam = boto3.client("iam")
    iam.create_user(UserName="reader")
    allowed = {"Effect": "Allow", "Action": ["s3:Get*", "s3:List*"], "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
    iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=policy)
    key = iam.create_access_key(UserName="reader")["AccessKey"]

    def ask_for_rights_after(requests):
        # As a form its body would not be read.
        kind, body = {"Content-Type": "text/plain"}, str(requests).encode()
        request = urllib.request.Request(f"{server}/moto-api/reset-auth", body, kind)
        urllib.request.urlopen(request).close()

    ask_for_rights_after(0)
    yield {
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
    }
    ask_for_rights_after("inf")


def test_a_bucket_without_rights_is_one_line(bucket, tiny, stranger):
    err = refused(tiny, "s3://tests/run3")
    assert "--workdir=s3://tests/run3: no rights there" in err
    assert "check the keys" in err
    err = refused(tiny, "s3://tests/run3", **stranger)
    assert re.search(r"error: s3://tests/run3/\S+: no rights there", err)


def test_no_credentials_is_one_line(bucket, tiny, tmp_path):
    """Neither in the environment, nor at home, nor of the machine; Google has its words for it."""
    nothing = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", "NO_GCE_CHECK": "true"}
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    err = refused(tiny, "s3://tests/run4", **nothing, **keys)
    assert "--workdir=s3://tests/run4: no credentials are found (Unable to locate" in err
    with refusing() as url:
        err = refused(tiny, "gs://tests/run4", STORAGE_EMULATOR_HOST=url, **nothing)
    assert "--workdir=gs://tests/run4: no credentials are found (Anonymous caller" in err
    assert "gcloud auth application-default login" in err


@contextlib.contextmanager
def refusing():
    """The URL of a server that answers as Google does where nobody is known."""
    words = "Anonymous caller does not have storage.objects.list access to the bucket."
    body = json.dumps({"error": {"code": 401, "message": words}}).encode()

    class Refusal(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_package_that_is_missing_and_what_is_no_bucket(tiny, monkeypatch):
    for url, package in (("s3://tests/run", "s3fs"), ("gs://tests/run", "gcsfs")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"{package}: pip install -e '\.\[{url[:2]}\]'"):
            paths.as_path(url, "--workdir")
    with pytest.raises(UserError, match="gs://BUCKET and s3://BUCKET; mount it"):
        paths.as_path("s3://")


def test_what_only_a_file_system_can_hold(bucket):
    with pytest.raises(UserError, match=r"metrics.tensorboard=True.*s3://tests/x is a URL"):
        MetricsWriter(bucket / "x", tensorboard=True)


# gs://


@pytest.fixture
def gs():
    """gs://tests of a server that takes Google's place."""
    with serving("-m", "gcp_storage_emulator", "start", "--in-memory", "--host=127.0.0.1") as url:
        environment = {
            "STORAGE_EMULATOR_HOST": url,  # gcsfs's name for it
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "anybody",  # else tensorstore looks for credentials
        }
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            # So do gcsfs, in a home, a gcloud and a machine of Google's, unless it is told.
            patch.setitem(fsspec.config.conf.setdefault("gs", {}), "token", "anon")
            patch.setattr(google.auth, "default", lambda *_, **__: pytest.fail("asked Google"))
            assert gcsfs.GCSFileSystem is gcsfs.core.GCSFileSystem  # which asks for nothing else
            body = json.dumps({"name": "tests"}).encode()
            kind = {"Content-Type": "application/json"}
            request = urllib.request.Request(f"{url}/storage/v1/b", body, kind)
            urllib.request.urlopen(request).close()
            yield paths.as_path("gs://tests")


def test_all_that_a_run_keeps_can_be_in_gs(gs, tmp_path, monkeypatch, capfd):
    folder = saved(gs / "run" / "checkpoints", 1, 2, 3)
    assert Checkpoints(folder).steps() == [2, 3]
    assert restored(folder) == 3
    (folder / "3" / MANIFEST).unlink()
    assert restored(folder) == 2
    saved(folder, 3)
    assert Checkpoints(folder).steps() == [2, 3]
    with MetricsWriter(gs / "run") as writer:
        writer.write(1, {"loss": 0.1})
    assert read_metrics(gs / "run" / "metrics.jsonl") == [{"step": 1, "loss": 0.1}]
    paths.write(gs / "text" / "a.txt", "text")
    here = tmp_path / "a.txt"
    here.write_text("text")
    corpora = [
        read_corpus("data.path", str(path), "text", tmp_path) for path in (here, gs / "text")
    ]
    assert corpora[0].hash == corpora[1].hash
    for machine in ("first", "second"):
        monkeypatch.setenv("LM_CACHE", str(tmp_path / machine))
        key = cache.cache_root(str(gs / "cache")) / "tokens" / "key"
        assert cache.published(key, lambda empty: (empty / "file").write_text("text")) == 4
        assert (cache.local(key) / "file").read_text() == "text"
    with pytest.raises(UserError, match=r"--workdir=gs://nothing-there/run: not there"):
        paths.as_path("gs://nothing-there/run", "--workdir")
    assert "damaged" not in capfd.readouterr().err
