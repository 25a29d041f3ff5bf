"""Inputs that cannot work, as commands: one line says what, why and what to do; nothing is lost."""

import gzip
import json
import resource
import shutil

import jax.numpy as jnp
import pytest

from experiments import cli
from experiments.generate import generate
from experiments.inspect import inspect
from lm.checkpoint import Checkpoints
from lm.config import CheckpointConfig
from lm.data.tokenizer import of_characters

# Files that a case may name: {folder} in its keys is where they lie.
FILES = {
    "empty.txt": b"",
    "short.txt": b"A short text.",
    "binary.txt": bytes(range(256)) * 8,
    "utf16.txt": "A text in another encoding. 敏捷\n".encode("utf-16") * 90,
    "late.txt": b"A text that is damaged at its end. " * 99 + b"\xc3",
    "binaries/a.bin": bytes(range(256)),
    "binaries/b.bin": b"\xff\xfe\xfd",
    "broken.jsonl": b'{"text": "a row"}\n{"text": "half a r\n',
    "keys.jsonl": b'{"body": "a row", "id": 7}\n',
    "number.jsonl": b'{"text": 7}\n',
    "list.jsonl": b'["a row"]\n',
    "truncated.jsonl.gz": gzip.compress(b'{"text": "a row"}\n' * 999)[:-20],
    "plain.txt.gz": b"A text that is not compressed.",
    "words.json": b"these are words",
    "list.json": b"[1, 2]",
    "unknown.json": b'{"model": {"type": "Unheard"}, "version": "1.0"}',
    "wordless.json": b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
    "abc.json": of_characters("abc").definition.encode(),
    "file": b"",
}

STREAM = {"data.separate_documents": False}
ENCODER = {**STREAM, "model.stack": "encoder", "objective.kind": "masked"}
BOTH = {**STREAM, "model.stack": "encoder_decoder", "objective.kind": "span_corruption"}
SENTINELS = {"data.tokenizer": "bpe", "data.special_tokens": "sentinels"}
SENTINELS |= {"data.tokenizer_size": 512, "model.vocab_size": 512}
LANES = {"data.order": "contiguous", "data.separate_documents": False, "data.batch_size": 4096}
# Keys of a new run, and what the line must hold.
NEW = [
    ({"data.path": "nowhere.txt"}, ["data.path=nowhere.txt does not exist", "name a text file"]),
    (
        {"data.validation_path": "https://host/a"},
        ["data.validation_path=https://host/a is a URL", "mount it, and give that path"],
    ),
    ({"data.path": "{folder}/empty.txt"}, ["empty.txt is empty", "name a file or a folder"]),
    ({"data.path": "{folder}/none"}, ["none is empty", "name a file or a folder"]),
    ({"data.path": "{folder}/binary.txt"}, ["binary.txt is not UTF-8 at byte 128", "convert it"]),
    ({"data.path": "{folder}/utf16.txt"}, ["utf16.txt is not UTF-8 at byte 0", "convert it"]),
    ({"data.path": "{folder}/late.txt"}, ["late.txt is not UTF-8 at byte 3465", "convert it"]),
    ({"data.path": "{folder}/binaries"}, ["a.bin is not UTF-8", "convert it or leave it out"]),
    ({"data.path": "{folder}/broken.jsonl"}, ["broken.jsonl, line 2, is not JSON", "mend it"]),
    ({"data.path": "{folder}/keys.jsonl"}, ["lacks data.text_key=text", "body, id: name one"]),
    ({"data.path": "{folder}/number.jsonl"}, ["line 1: text is 7, not text", "mend it"]),
    ({"data.path": "{folder}/list.jsonl"}, ["line 1, is not a JSON object", "must be one"]),
    ({"data.path": "{folder}/truncated.jsonl.gz"}, ["truncated or damaged .gz", "copy it again"]),
    ({"data.path": "{folder}/plain.txt.gz"}, ["truncated or damaged .gz", "copy it again"]),
    ({"data.path": "{folder}/short.txt"}, ["training part has 1", "make it 1"]),
    ({"data.validation_path": "nowhere"}, ["data.validation_path=nowhere does not exist"]),
    ({"data.validation_path": "{folder}/empty.txt"}, ["data.validation_path=", "is empty"]),
    (
        {"data.tokenizer": "{folder}/words.json"},
        ["words.json is not a tokenizer.json"],
    ),
    ({"data.tokenizer": "{folder}/list.json"}, ["list.json is not a tokenizer.json"]),
    ({"data.tokenizer": "{folder}/unknown.json"}, ["unknown.json", "tokenizer.json"]),
    ({"data.tokenizer": "{folder}/wordless.json"}, ["wordless.json", "it has no tokens"]),
    ({"data.tokenizer": "{folder}/none"}, ["no tokenizer at", "name a tokenizer.json or its"]),
    ({"data.tokenizer": "{folder}/abc.json"}, ["the character 'T'", "data.tokenizer=bytes"]),
    ({"data.tokenizer": "bpe", "data.tokenizer_size": 100}, ["tokenizer_size=100", "257 or more"]),
    ({"model.vocab_size": 100}, ["model.vocab_size=100", "the tokenizer's 257", "make it 257"]),
    ({"data.batch_size": 6}, ["data.batch_size=6", "8 data shards", "nearest that does is 8"]),
    ({"train.accumulation_steps": 2}, ["train.accumulation_steps=2", "nearest that does is 16"]),
    ({"mesh.data": 16}, ["mesh.data=16", "16 devices, but there are 8"]),
    ({"mesh.data": 2}, ["mesh.data=2", "there are 8", "make one of them -1"]),
    ({"mesh.tensor": -1}, ["mesh.data=-1", "mesh.tensor=-1", "only one axis"]),
    ({"mesh.tensor": 8}, ["mesh.tensor=8 does not divide model.num_heads=4", "num_heads=8"]),
    ({"mesh.fsdp": 3}, ["mesh.fsdp=3", "a multiple of 3 devices", "there are 8"]),
    ({"model.num_heads": 16, "model.position": "rope"}, ["model.head_width=1 is odd", "rope"]),
    (
        {"metrics.profile_start": 5, "metrics.profile_stop": 3},
        ["profile_start=5", "profile_stop=3"],
    ),
    ({"evaluate.every_steps": -1}, ["evaluate.every_steps=-1", "0 (never) or more"]),
    ({"data.order": "contiguous"}, ["data.separate_documents=False or another position"]),
    (LANES, ["4096 x data.sequence_length=16 needs 65537", "make it 9 or less"]),
    ({"model.attention_backend": "flush"}, ["model.attention_backend='flush'", "plain"]),
    ({"model.param_dtype": "float64"}, ["model.param_dtype='float64'", "JAX_ENABLE_X64=1"]),
    (
        ENCODER,
        ["'masked' needs the special token [MASK]", "data.tokenizer=bpe data.special_tokens=mask"],
    ),
    (BOTH, ["<extra_id_0> to", "data.tokenizer=bpe data.special_tokens=sentinels"]),
    (
        {**BOTH, **SENTINELS, "objective.noise_rate": 0.8},
        ["target_length=", "longer than the position table", "make the one shorter"],
    ),
    ({"data.special_tokens": "mask"}, ["data.special_tokens='mask'", "leave it empty, or train"]),
    ({"data.weights": "3,1"}, ["data.weights=3,1 is for 2 sources", "separate as many"]),
    ({"data.weights": "3,x"}, ["data.weights=3,x must be numbers above 0"]),
    ({"metrics.wandb_project": "p"}, ["metrics.wandb_project='p'", "needs wandb: pip install"]),
    ({"data.cache": "az://bucket/cache"}, ["data.cache=az://bucket/cache is a URL", "mount"]),
    ({"data.cache": "{folder}/file"}, ["file", "cannot be written", "data.cache or LM_CACHE"]),
    ({"data.cache": "/proc/nowhere"}, ["/proc/nowhere"]),
]


def one_line(status, err, named, last_only=False):
    """Whether the command refused, in one line that holds what is named."""
    lines = err.splitlines()
    assert status in (1, 2)
    assert lines[-1].startswith("error: "), err
    assert last_only or len(lines) == 1, err
    assert all(name in lines[-1] for name in named), err


@pytest.fixture
def files(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "files" / "none").mkdir()
    return tmp_path / "files"


@pytest.mark.parametrize(("keys", "named"), NEW, ids=[" ".join(map(str, keys)) for keys, _ in NEW])
def test_a_new_run(keys, named, files, tiny, tmp_path):
    keys = {key: str(value).replace("{folder}", str(files)) for key, value in keys.items()}
    status, _, err = tiny.run(tmp_path / "run", keys)
    one_line(status, err, named)
    assert not [*cli.ROOT.glob("*:")]  # nor a folder "gs:" where the command ran
    assert not [*(tmp_path / "run").glob("*")]  # so that the corrected command is a new run too


def rewrite(name, change):
    """A function of a workdir that changes the text of a file there."""

    def damage(workdir):
        (workdir / name).write_text(change((workdir / name).read_text()))

    return damage


def lacking_a_key(text):
    keys = json.loads(text)
    del keys["optim"]["beta2"]
    return json.dumps(keys)


def remove(name):
    return lambda workdir: (workdir / name).unlink()


def damage_every_checkpoint(workdir):
    for path in (workdir / "checkpoints").glob("*/manifest.json"):
        path.write_bytes(path.read_bytes()[:-1])


def save_another_model(workdir):
    with Checkpoints(workdir / "checkpoints", CheckpointConfig(1, 9, 9, 0, 0.0)) as checkpoints:
        checkpoints.save(99, {"params": {"embed": {"table_VD": jnp.zeros((7, 5))}}})


# What has happened to a run's workdir, the keys of the command that would resume it, what the line
# must hold.
RESUMED = [
    (
        rewrite("config.json", lambda text: text[:99]),
        {},
        ["config.json", "mend it, or give another"],
    ),
    (rewrite("config.json", lambda text: "[]"), {}, ["config.json", "mend it, or give another"]),
    (rewrite("config.json", lacking_a_key), {}, ["lacks optim.beta2", "mend it, or give another"]),
    (remove("config.json"), {}, ["no config.json", "put it back, or give another"]),
    (
        rewrite("tokenizer.json", lambda text: text[:9]),
        {},
        ["json is not a tokenizer.json"],
    ),
    (rewrite("tokenizer.json", lambda text: "{}"), {}, ["Model missing"]),
    (remove("tokenizer.json"), {}, ["there is no tokenizer at"]),
    (
        rewrite("metrics.jsonl", lambda text: text.replace("\n", "\nfull disk\n", 1)),
        {},
        ["line 2 of", "metrics.jsonl is not a logged step; remove the line"],
    ),
    (rewrite("environment.json", lambda text: text[:99]), {}, ["not JSON", "move it away"]),
    (rewrite("environment.json", lambda text: "{}"), {}, ["not a list", "move it away"]),
    (damage_every_checkpoint, {}, ["No good checkpoint", "Put back a copy of one, or move the"]),
    (save_another_model, {}, ["checkpoints/99 is of another model", "Use the config it was"]),
    (lambda workdir: None, {"mesh.fsdp": 3}, ["mesh.fsdp=3", "a multiple of 3 devices"]),
    (lambda workdir: None, {"data.path": "nowhere"}, ["data.path=nowhere does not exist"]),
]


@pytest.mark.parametrize(("damage", "keys", "named"), RESUMED, ids=[r[2][0] for r in RESUMED])
def test_a_run_to_resume(damage, keys, named, stopped, tiny, hashes):
    workdir = stopped(8)
    damage(workdir)
    before = hashes(workdir)
    status, _, err = tiny.run(workdir, keys)
    one_line(status, err, named, last_only=damage is damage_every_checkpoint)
    assert hashes(workdir) == before


def test_a_damaged_line_is_refused_and_without_it_the_run_goes_on(stopped, finished, tiny, exact):
    """The half line that a kill leaves at the end is no damage."""
    workdir = stopped(20)
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines[:3], '{"step": 3, "tr{"step"\n', *lines[3:], '{"step": 2']))
    status, out, err = tiny.run(workdir)
    one_line(status, err, [f"line 4 of {metrics} is not a logged step; remove the line."])
    assert out == ""  # not even what will be trained
    damaged = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*damaged[:3], *damaged[4:]]))
    assert tiny.run(workdir)[0] == 0
    assert exact(workdir) == exact(finished)


def test_a_workdir_that_cannot_be(tiny, files):
    for workdir, named in (
        (files / "file", ["file is a file", "name a folder"]),
        (files / "file" / "run", ["file/run: Not a directory", "give another path"]),
        ("/proc/nowhere/run", ["/proc/nowhere", "No such file", "check the path"]),
        ("", ["--workdir= is empty", "name a folder"]),
        ("file:///tmp/run", ["--workdir=file:///tmp/run is a URL"]),
    ):
        status, _, err = tiny.run(workdir)
        one_line(status, err, named)
    assert not [*cli.ROOT.glob("*:")]
    assert (files / "file").read_bytes() == b""


def test_inspect_and_generate_from_a_workdir(stopped, files, hashes, capsys):
    broken, damaged, empty = (stopped(8, name) for name in ("broken", "damaged", "empty"))
    (broken / "config.json").write_text("{")
    damage_every_checkpoint(damaged)
    shutil.rmtree(empty / "checkpoints")
    folders = (broken, damaged, empty, files)
    before = [hashes(folder) for folder in folders]
    for command, workdir, more, named in (
        (inspect, broken, [], ["broken/config.json"]),
        (inspect, files / "file", [], ["file/config.json"]),
        (generate, broken, [], ["broken/config.json"]),
        (generate, files / "nowhere", [], ["nowhere"]),
        (generate, damaged, [], ["No good checkpoint in", "Put back a copy of one"]),
        (generate, empty, [], ["empty has no checkpoint", "train it"]),
        (generate, empty, ["--num_tokens=-1"], ["num_tokens=-1", "1 or more"]),
        (generate, empty, ["--temperature=hot"], ["--temperature=hot", "number"]),
    ):
        status = cli._status(command, [f"--workdir={workdir}", *more])
        one_line(status, capsys.readouterr().err, named, last_only=workdir == damaged)
    assert [hashes(folder) for folder in folders] == before


# As processes: all that the shell sees.


def test_processes(tiny, files, tmp_path):
    unknown = {"data.tokenizer": files / "unknown.json"}
    started = [
        (tiny.start(tmp_path / "a", {"data.path": files / "binary.txt"}), ["not UTF-8", "convert"]),
        (tiny.start(tmp_path / "b", unknown), ["unknown.json is not a tokenizer.json"]),
        (tiny.start(tmp_path / "c", {"mesh.tensor": 8}), ["mesh.tensor=8", "num_heads=8"]),
    ]
    for process, named in started:
        _, err = process.communicate(timeout=60)
        one_line(process.returncode, err, named)
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def limited(process, size):
    """The process, which meets the end of its disk where a file would have more bytes."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))
    return process


def test_a_full_disk(tiny, stopped, finished, tmp_path, exact, hashes):
    workdir, full, cache = stopped(8), stopped(8, name="full"), tmp_path / "cache"
    (full / "metrics.jsonl").unlink()
    (full / "metrics.jsonl").symlink_to("/dev/full")
    before = hashes(workdir / "checkpoints")
    read_only = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
    store = tiny.start(tmp_path / "a", LM_CACHE=str(cache))
    started = [
        (limited(store, 8192), ["no space is left for", "free some, or set data.cache"]),
        (
            limited(tiny.start(workdir, **read_only), 16384),
            ["checkpoints/12 could not be written: File too large. Mend", "goes on from step 8"],
        ),
        (tiny.start(full, **read_only), ["metrics.jsonl cannot be written", "No space left"]),
    ]
    for process, named in started:
        _, err = process.communicate(timeout=300)
        one_line(process.returncode, err, named)
        assert process.returncode == 1
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert hashes(workdir / "checkpoints") == hashes(full / "checkpoints") == before
    assert tiny.run(workdir)[0] == 0
    assert exact(workdir) == exact(finished)
