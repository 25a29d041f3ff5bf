"""Every family's tiny preset by the commands: it learns real text, resumes bit for bit, generates.

`make test` runs the one in QUICK, `make families` all.
"""

import json
import os
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import lm
from experiments import cli
from experiments.train import train
from lm.config import Config, build
from lm.data.store import open_data
from lm.evaluate.ngram import Unigram, bits_per_byte
from lm.track.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("deepseek:tiny",)
LEFT = 0.8  # of the unigram model's bits, at most


NAMES = [
    f"{path.stem}:{name}"
    for path in sorted((ROOT / "configs").glob("*.py"))
    for name in re.findall(r"^def (tiny\w*)\(\):", path.read_text(), re.MULTILINE)
]
PRESETS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Real text that every machine has: Python's help, half a megabyte."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "help.txt"
    path.write_text("\n".join(topics.values()))
    return path


@pytest.fixture
def command(text, tmp_path_factory, monkeypatch):
    """command(preset, workdir): train on one device, in this process."""
    devices = jax.devices()[:1]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LM_CACHE", str(tmp_path_factory.getbasetemp() / "families"))
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # put back what the command adds
    monkeypatch.setattr(jax, "devices", lambda: devices)

    def command(preset, workdir):
        argv = [f"--config=configs/{preset.replace(':', '.py:')}", f"--workdir={workdir}"]
        argv += [f"--config.data.path={text}", "--config.data.validation_fraction=0.03"]
        argv += ["--config.checkpoint.every_steps=200", "--config.evaluate.every_steps=250"]
        assert cli._status(train, argv) == 0

    return command


@pytest.mark.parametrize("preset", PRESETS)
def test_a_tiny_preset_learns_resumes_and_generates(preset, command, tmp_path, exact):
    command(preset, tmp_path / "run")
    learned(tmp_path / "run")
    resumed = shutil.copytree(tmp_path / "run", tmp_path / "resumed")
    forget(resumed, 200)
    command(preset, resumed)
    assert exact(resumed) == exact(tmp_path / "run")
    generated(tmp_path / "run")


def learned(workdir):
    """Beside a unigram model of the same tokens, on text that neither was trained on."""
    saved = json.loads((workdir / "config.json").read_text())
    saved.pop("data_key")
    config = build(Config, saved)
    tokenizer = lm.load(workdir).tokenizer
    data = open_data(config.data, tokenizer=tokenizer)
    unigram = Unigram(data.train.tokens, tokenizer.size)
    bits = bits_per_byte(unigram, data.validation.tokens, data.validation.num_bytes)
    rows = read_metrics(workdir / "metrics.jsonl")
    (*_, last) = [row["eval/bits_per_byte"] for row in rows if "eval/bits_per_byte" in row]
    print(f"bits per byte: {last:.3f}, of a unigram model {bits:.3f}")
    assert last < LEFT * bits


def forget(workdir, step):
    """As if the run had been killed after saving `step`."""
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if json.loads(line)["step"] < step))


def generated(workdir):
    """Greedily, the likeliest tokens of the whole text so far, whatever the cache keeps of it."""
    model = lm.load(workdir)
    prompt = [model.tokenizer.end_of_text, *model.tokenizer.encode("The following statement")]
    ((sample,),) = lm.generate(model, [prompt], 40, temperature=0, stop_at_end_of_text=False)
    tokens = [*prompt, *sample.tokens]
    print(sample.text)
    assert len(sample.tokens) == 40 and len(tokens) <= 64
    likeliest = np.asarray(model([tokens]))[0].argmax(-1)
    assert [*likeliest[len(prompt) - 1 : -1]] == [*sample.tokens]
