"""generate as a command: what it prints, what it takes, and how it refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

import lm
from configs.base import base
from experiments import cli
from experiments.generate import generate
from lm.checkpoint import Checkpoints
from lm.config import resolve
from lm.data.tokenizer import of_bytes, train_tokenizer
from lm.nn.params import initialise
from lm.nn.transformer import Transformer
from tests.nn.tiny import STACKS


def write_run(folder, tokenizer, steps, **model):
    """A workdir with checkpoints of these steps; that of 7 diverged."""
    keys = base()
    keys.model.update(d_model=16, num_layers=1, num_heads=4, initializer_std=0.3, **model)
    keys.data.sequence_length = 32
    keys.checkpoint.keep_last = 9
    for name, value in STACKS.get(keys.model.stack, {}).items():
        section, key = name.split(".")
        keys[section][key] = value
    config = resolve(keys, tokenizer.size)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    tokenizer.save(folder)
    with Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints:
        for step in steps:
            params = initialise(Transformer(config.model), step)
            if step == 7:
                params = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
            checkpoints.save(step, {"params": params}, wait=True)
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), of_bytes(), (3, 5, 7), vocab_size=260)


@pytest.fixture
def run(workdir, capsys):
    def run(*flags, workdir=workdir):
        """(exit code, stdout, stderr)"""
        status = cli._status(generate, [f"--workdir={workdir}", *flags])
        return status, *capsys.readouterr()

    return run


FLAGS = ("--prompt=def f(", "--prompt", "世界", "--num_tokens=12", "--num_samples=2", "--seed=4")


def test_samples_as_json_are_those_of_the_library(run, workdir):
    more = ("--step=3", "--temperature=0.9", "--top_k=99", "--top_p=0.95", "--json")
    status, out, err = run(*FLAGS, *more)
    prompts = ["def f(", "世界"]
    settings = {"temperature": 0.9, "top_k": 99, "top_p": 0.95, "seed": 4, "num_samples": 2}
    expected = lm.generate(lm.load(workdir, 3), prompts, 12, **settings)
    assert [json.loads(line) for line in out.splitlines()] == [
        {"prompt": prompt, "sample": number, **dataclasses.asdict(sample)}
        for prompt, samples in zip(prompts, expected, strict=True)
        for number, sample in enumerate(samples)
    ]
    count = sum(len(sample.tokens) for samples in expected for sample in samples)
    assert status == 0 and err.startswith(f"{count} tokens in ")
    assert err.endswith(" tokens/s, compilation included\n")


def test_samples_to_be_read_and_a_mesh(run):
    flags = (*FLAGS, "--step=5")
    status, out, _ = run(*flags)
    parts = out.removesuffix("\n").split(f"\n{'-' * 20}\n")
    assert status == 0 and len(parts) == 4
    assert all(part.startswith(("def f(", "世界")[n // 2]) for n, part in enumerate(parts))
    assert run(*flags, "--mesh.data=2", "--mesh.tensor=2")[:2] == (0, out)


def test_without_a_prompt_it_begins_a_document(run, workdir):
    status, out, _ = run("--step=5", "--num_tokens=12", "--temperature=0")
    [[sample]] = lm.generate(lm.load(workdir, 5), "", 12, temperature=0)
    assert (status, out) == (0, f"{sample.text}\n")


def test_more_tokens_than_the_model_has_positions(run):
    status, _, err = run("--step=5", "--temperature=0.5")
    assert status == 0 and err.startswith("100 tokens in ")


@pytest.mark.parametrize(
    ("flags", "status", "named"),
    [
        (["--num_tokens=0"], 2, "num_tokens=0 is not possible; it must be a whole number, 1 or"),
        (["--num_tokens=ten"], 2, "--num_tokens=ten must be a whole number."),
        (["--temperature=-1"], 2, "temperature=-1.0 is not possible; it must be 0, which is"),
        (["--temperature=hot"], 2, "--temperature=hot must be a number."),
        (["--top_p=0"], 2, "top_p=0.0 is not possible; it must be in (0, 1]"),
        (["--top_p=1.1"], 2, "top_p=1.1 is not possible"),
        (["--top_k=-3"], 2, "top_k=-3 is not possible; it must be a whole number, 0 or more"),
        (["--seed=0.5"], 2, "--seed=0.5 must be a whole number."),
        (["--num_samples=0"], 2, "num_samples=0 is not possible"),
        (["--step=4"], 2, "has no checkpoint 4; it has: 3, 5, 7."),
        (["--mesh.tensor=3"], 2, "mesh.tensor=3 does not divide model.num_heads=4"),
        (["--mesh.data=9"], 2, "mesh.data=9 mesh.fsdp=1 mesh.tensor=1 needs 9 devices"),
        (["--mesh.rows=2"], 2, "--mesh.rows is not a flag."),
        (["--seed=1", "--seed=2"], 2, "--seed is given twice"),
        (["--prompt"], 2, "--prompt needs a value: --prompt=TEXT."),
        (["--prompt", "--json"], 2, "--prompt needs a value: --prompt=TEXT."),
        (["--num_tokens=5"], 1, "the logits after prompts[0] are not finite"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_refused_with_one_line(run, flags, status, named):
    found, out, err = run(*flags)
    assert (found, out) == (status, "")
    assert err.startswith("error: ") and named in err and err.count("\n") == 1


def test_workdirs_that_are_none(run, workdir, tmp_path):
    for folder, named in (
        (tmp_path / "nowhere", "nowhere is not a folder"),
        (tmp_path, "config.json"),
    ):
        status, out, err = run(workdir=folder)
        assert (status, out, err.count("\n")) == (2, "", 1) and named in err
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text((workdir / name).read_text())
    status, _, err = run(workdir=tmp_path)
    assert status == 2 and "checkpoint" in err and "train" in err


def test_a_workdir_is_needed(capsys):
    assert cli._status(generate, ["--prompt=a"]) == 2
    assert "--workdir=FOLDER is missing" in capsys.readouterr().err


def test_bytes_that_are_no_text(run):
    status, out, _ = run("--step=5", "--num_tokens=3", "--prompt=a\udcff")
    assert status == 0 and out.startswith("a?")


TEXTS = ["the cat sat on the mat.", "a dog ran to the cat, and the cat ran."] * 9


def test_an_encoder_fills_blanks(run, tmp_path):
    tokenizer = train_tokenizer("wordpiece", TEXTS, 200)
    folder = write_run(tmp_path, tokenizer, (3,), stack="encoder", head_bias="learned")
    prompt = "the [MASK] sat on the [MASK]."
    text, blanks = lm.fill(lm.load(folder), prompt)
    status, out, _ = run(f"--prompt={prompt}", "--json", workdir=folder)
    found = [dataclasses.asdict(blank) for blank in blanks]
    assert (status, json.loads(out)) == (0, {"prompt": prompt, "text": text, "blanks": found})
    status, out, _ = run(f"--prompt={prompt}", workdir=folder)
    lines = out.splitlines()
    assert (status, len(lines), lines[0]) == (0, 3, text)
    for line, blank in zip(lines[1:], blanks, strict=True):
        assert line.startswith(f"  {blank.texts[0].strip()} {blank.probabilities[0]:.3f}, ")
    status, out, err = run("--prompt=a cat", workdir=folder)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "'a cat' has no blank; write [MASK] where" in err
    for flag in ("--temperature=0.5", "--top_k=3", "--num_tokens=100", "--seed=0"):
        status, out, err = run(f"--prompt={prompt}", flag, workdir=folder)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert f"{flag}: an encoder fills blanks and samples nothing; leave it out." in err


def test_an_encoder_decoder_writes_its_target_alone(run, tmp_path):
    tokenizer = train_tokenizer("bpe", TEXTS, 400, "sentinels")
    keys = {"stack": "encoder_decoder", "position": "buckets", "vocab_size": 400}
    folder = write_run(tmp_path, tokenizer, (3,), **keys)
    prompts = ["the <extra_id_0> sat.", "a <extra_id_0>"]
    flags = [*(f"--prompt={prompt}" for prompt in prompts), "--num_tokens=12", "--temperature=0"]
    expected = lm.generate(lm.load(folder), prompts, 12, temperature=0)
    status, out, _ = run(*flags, workdir=folder)
    texts = [sample.text for [sample] in expected]
    assert (status, out) == (0, f"\n{'-' * 20}\n".join(texts) + "\n")
    for flags in (["--prompt=a dog"], [], ["--prompt=a <extra_id_0>", "--prompt=the cat"]):
        status, out, err = run(*flags, workdir=folder)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "has no blank; write <extra_id_0> where" in err
    rewritten = json.loads((folder / "config.json").read_text())
    rewritten["objective"]["kind"] = "span_corruption=3,prefix=1"  # which reads plain texts too
    (folder / "config.json").write_text(json.dumps(rewritten))
    assert run("--prompt=a dog", "--num_tokens=2", workdir=folder)[0] == 0
