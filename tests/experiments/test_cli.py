"""Commands as a user meets them: what is wrong is said in one line, and nothing else is touched."""

import dataclasses
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs.base import base
from experiments import cli
from lm.config import resolve
from lm.errors import RunError, UserError

ROOT = Path(__file__).resolve().parent.parent.parent
GPT2 = "--config=configs/gpt2.py:small"


def command(*argv, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, "-m", "experiments.inspect", *argv],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


# What is typed, and what the one line must hold.
WRONG = [
    ([], "give one of --config=FILE:PRESET and --workdir=FOLDER"),
    (["--config.data.batch_size=4"], "needs --config=FILE:PRESET too"),
    (["--config"], "--config needs a value: --config=FILE:PRESET."),
    (["--config="], "there is no file ''"),
    (["--config=configs/lama.py"], "Did you mean 'configs/llama.py'"),
    (["--config=configs"], "there is no file 'configs'"),
    (["--config=README.md"], "README.md"),
    (["--config=pyproject.toml"], "not a Python file"),
    (["--config=lm/errors.py"], "no function get_config"),
    (["--config=configs/gpt2.py:huge"], "this file has: small, medium, large, xl"),
    ([GPT2, "--config.data.batchsize=3"], "Did you mean data.batch_size?"),
    ([GPT2, "--config.dat.batch_size=3"], "Did you mean data.batch_size?"),
    ([GPT2, "--config.batch_size=3"], "Did you mean data.batch_size?"),
    ([GPT2, "--config.every_steps=3"], "evaluate.every_steps or metrics.every_steps"),
    ([GPT2, "--config.data.qqq=3"], "One of: data.batch_size"),
    ([GPT2, "--config.qqq=3"], "One of: checkpoint, cluster, data"),
    ([GPT2, "--config.data=3"], "data is a section"),
    ([GPT2, "--config.data.path.x=3"], "Did you mean data.path?"),
    ([GPT2, "--config.data.batch_size=big"], "must be of type int, as the preset's 512 is"),
    ([GPT2, "--config.data.batch_size=1.5"], "must be of type int"),
    ([GPT2, "--config.data.batch_size="], "must be of type int"),
    ([GPT2, "--config.data.batch_size"], "--config.data.batch_size needs a value"),
    ([GPT2, "--config.data.batch_size=none"], "must be int"),
    ([GPT2, "--config.optim.peak_lr=fast"], "must be of type float"),
    ([GPT2, "--config.optim.peak_lr=nan"], "must be a finite number"),
    ([GPT2, "--config.train.num_steps=1e400"], "must be a finite number"),
    ([GPT2, "--config.model.gated=yes"], "must be true or false"),
    ([GPT2, "--config.train.seed=1", "--config.train.seed=2"], "given twice, as '1' and '2'"),
    ([GPT2, "--config.model.num_heads=7"], "does not divide model.d_model=768"),
    ([GPT2, "--config.model.num_kv_heads=5"], "take one of [1, 2, 3, 4, 6, 12]"),
    ([GPT2, "--config.model.norm=rmsnorm"], "Did you mean 'rms_norm'"),
    ([GPT2, "--config.data.sequence_length=2048"], "model.max_positions=1024"),
    ([GPT2, "--config.train.accumulation_steps=3"], "the nearest that does is 513"),
    ([GPT2, "--config.mesh.data=0"], "mesh.data=0"),
    ([GPT2, "--config.mesh.fsdp=3", "--devices=4"], "needs a multiple of 3 devices, not 4"),
    ([GPT2, "--devices=0"], "not 0"),
    ([GPT2, "--devices=many"], "--devices=many must be a whole number"),
    ([GPT2, "--device=4"], "Did you mean --devices?"),
    ([GPT2, "--data.batch_size=4"], "Did you mean --config.data.batch_size?"),
    ([GPT2, "--json=yes"], "--json takes no value"),
    ([GPT2, "-j"], "-j is not a flag"),
    ([GPT2, "small"], "'small' is not a flag"),
    ([GPT2, "--workdir=runs/a"], "give one of"),
    (["--workdir=nowhere"], "there is no nowhere/config.json"),
    (["--config=configs/shakespeare.py", "--config.data.path=nowhere"], "nowhere"),
    ([GPT2, "--config.model.vocab_size=none", "--config.data.tokenizer=bep"], "'bpe'"),
]


@pytest.mark.parametrize(("argv", "said"), WRONG, ids=[" ".join(argv) for argv, _ in WRONG])
def test_a_mistake_is_one_line_and_status_2(argv, said):
    ended = command(*argv)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert re.fullmatch(r"error: [^\n]+\n", ended.stderr), ended.stderr
    assert said in ended.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(:\n", r"line 1: SyntaxError: invalid syntax"),
        ("import nothing_of_this_name\n", r"line 1: ModuleNotFoundError: No module named"),
        ("x = 1\ndef get_config():\n    return y\n", r"line 3: NameError: name 'y'"),
        ("def get_config():\n    return {}\n", r"must return a ConfigDict, not dict"),
        (
            "from configs.base import base, presets\ndef a():\n    config = base()\n"
            "    config.train.num_steps = 'x'\n    return config\nget_config = presets(a)\n",
            r"line 4: TypeError: ",
        ),
        (
            "from configs.base import base, presets\ndef a():\n    config = base()\n"
            "    config.train.num_step = 5\n    return config\nget_config = presets(a)\n",
            r"train.num_step is not a key of the configuration. Did you mean 'num_steps'\?",
        ),
        ("\0", r"SyntaxError|null bytes"),
    ],
)
def test_a_mistake_in_a_users_file_is_found_in_it(tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text)
    ended = command("--config=mine.py", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(rf"error: [^\n]*({said})[^\n]*\n", ended.stderr), ended.stderr


def test_configs_are_found_from_any_folder(tmp_path):
    ended = command(GPT2, "--json", cwd=tmp_path)
    assert ended.returncode == 0 and '"parameters": 124439808' in ended.stdout
    assert not list(tmp_path.iterdir())


def test_commands_start_fast():
    """A light command imports neither jax nor flax, and that takes well under a second."""
    script = "import sys, experiments.inspect; print({'jax', 'flax', 'numpy'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "set()\n", ended.stderr


def load(**overrides):
    return cli.load_config("configs/gpt2.py:small", overrides)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("data.batch_size", "64", 64),
        ("train.num_steps", "1e3", 1000),
        ("train.num_steps", "1_000", 1000),
        ("train.num_steps", "9007199254740993", 2**53 + 1),
        ("mesh.data", "-1", -1),
        ("optim.peak_lr", "1", 1.0),
        ("optim.peak_lr", "3e-4", 3e-4),
        ("model.num_kv_heads", "2", 2),
        ("model.num_kv_heads", "none", None),
        ("model.vocab_size", "None", None),
        ("model.gated", "True", True),
        ("model.tied_embedding", "false", False),
        ("model.remat", "none", "none"),
        ("data.path", "a=b c", "a=b c"),
        ("data.path", "", ""),
        ("data.text_key", "1", "1"),
    ],
)
def test_a_flag_is_read_as_the_type_of_its_key(key, text, value):
    section, name = key.split(".")
    read = load(**{key: text})[section][name]
    assert read == value and type(read) is type(value)


def test_a_loaded_config_is_locked():
    with pytest.raises(AttributeError, match="locked"):
        load().model.d_mdel = 4


@pytest.fixture
def parser():
    parser = cli.Parser("Describe.", config="optional")
    parser.add_argument("--prompt", default="", help="text to go on from")
    parser.add_argument("--num_tokens", type=int, default=10, help="how many")
    parser.add_argument("--fast", action="store_true", help="fast")
    return parser


def test_both_forms_of_a_flag(parser):
    argv = ["--prompt", "-x = 1", "--num_tokens", "-3", "--config", "configs/gpt2.py:xl", "--fast"]
    arguments = parser.parse([*argv, "--config.data.path", "b"])
    assert (arguments.prompt, arguments.num_tokens, arguments.fast) == ("-x = 1", -3, True)
    assert (arguments.config.data.path, arguments.config.model.num_layers) == ("b", 48)
    arguments = parser.parse(["--prompt=--a=b", "--num_tokens=5"])
    assert (arguments.prompt, arguments.num_tokens, arguments.fast) == ("--a=b", 5, False)
    assert arguments.config is None
    assert parser.parse(["--prompt="]).prompt == ""


def test_the_same_value_twice_is_harmless(parser):
    assert parser.parse(["--num_tokens=5", "--num_tokens", "5"]).num_tokens == 5
    with pytest.raises(UserError, match="given twice, as '5' and '6'"):
        parser.parse(["--num_tokens=5", "--num_tokens=6"])


def test_a_flag_that_may_be_given_often(parser):
    parser.add_argument("--stop", action="append", metavar="TEXT", help="where to stop")
    assert parser.parse([]).stop is None
    arguments = parser.parse(["--stop=a", "--num_tokens=5", "--stop", "-b", "--stop=a", "--stop="])
    assert (arguments.stop, arguments.num_tokens) == (["a", "-b", "a", ""], 5)
    for argv in (["--stop"], ["--stop=a", "--stop", "--fast"]):
        with pytest.raises(UserError, match="--stop needs a value: --stop=TEXT"):
            parser.parse(argv)


def test_a_flag_is_not_taken_for_a_value(parser):
    with pytest.raises(UserError, match="--prompt needs a value"):
        parser.parse(["--prompt", "--fast"])


def test_a_missing_flag_is_explained():
    parser = cli.Parser("Train.")
    parser.add_argument("--workdir", metavar="FOLDER", required=True, help="where a run is kept")
    with pytest.raises(UserError, match=r"--workdir=FOLDER is missing: where a run is kept\."):
        parser.parse([GPT2])
    with pytest.raises(UserError, match=r"--config=FILE:PRESET is missing.*configs/gpt2.py:small"):
        parser.parse(["--workdir=a"])


def test_a_command_without_configuration_knows_no_key():
    parser = cli.Parser("Sample.", config="none")
    parser.add_argument("--workdir", metavar="FOLDER", required=True, help="the run")
    with pytest.raises(UserError, match=r"--config.train.seed is not a flag. One of: --workdir"):
        parser.parse(["--workdir=a", "--config.train.seed=1"])


def test_help(parser, capsys):
    with pytest.raises(SystemExit) as ended:
        parser.parse(["--nonsense=1", "--help"][1:])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "Describe." in shown and "--num_tokens" in shown and "configs/base.py" in shown


def raised(error):
    def run(argv):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("d=3 is\nodd."), 2, r"error: d=3 is odd\."),
        (RunError("loss is nan."), 1, r"error: loss is nan\."),
        (KeyboardInterrupt(), 130, r"error: interrupted"),
        (OSError(errno.ENOSPC, "No space left", "runs/a"), 1, r"runs/a: No space.*free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/r"), 1, r"/r: Perm.*owner"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "d"), 1, r"d: Is a dir.*give a file"),
        (MemoryError("Unable to allocate 8 TiB"), 1, r"memory of this machine.*8 TiB"),
    ],
)
def test_how_a_command_ends(error, status, said, capsys):
    assert cli._status(raised(error), []) == status
    out, line = capsys.readouterr()
    assert out == "" and re.fullmatch(rf"error: .*{said.removeprefix('error: ')}.*\n", line), line


@pytest.mark.parametrize(
    "bug", [ValueError("x"), RuntimeError("x"), AssertionError("x"), OSError("x"), KeyError("x")]
)
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises(type(bug)):
        cli._status(raised(bug), [])


def test_a_full_device_is_explained(capsys):
    import jax.numpy as jnp

    def run(argv):
        jnp.zeros(1 << 44).block_until_ready()

    assert cli._status(run, []) == 1
    assert re.fullmatch(
        r"error: .*RESOURCE_EXHAUSTED.*data.batch_size.*\n", capsys.readouterr().err
    )


def script(text, **environment):
    lines = "from experiments import cli\ndef run(argv):\n    " + text + "\ncli.main(run)"
    return subprocess.Popen(
        [sys.executable, "-c", lines],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_platform_that_is_not_there_is_explained():
    process = script("import jax; jax.devices()", JAX_PLATFORMS="cuda")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and re.fullmatch(r"error: .*JAX_PLATFORMS='cuda'.*\n", said)


def test_a_reader_that_goes_away_is_no_error():
    process = script("[print(n) for n in range(100_000)]")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(60) == 141


def test_the_traceback_on_request():
    process = script("open('nowhere/x')", LM_TRACEBACK="1")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith("Traceback") and "error: nowhere/x: No such file" in said


def test_a_config_is_printed_whole():
    config = resolve(base(), 300)
    shown = cli.describe(config)
    for section, values in dataclasses.asdict(config).items():
        assert re.search(rf"^{section} ", shown, re.MULTILINE)
        assert all(re.search(rf"\b{key}=", shown) for key in values)
    assert max(map(len, shown.splitlines())) <= 100
