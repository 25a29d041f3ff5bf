"""Every family's tiny preset by the commands: it learns real text, resumes bit for bit, generates.

`make test` runs the one in QUICK, `make families` all.
"""

import json
import math
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
from lm.data.loader import Batches, ValidationBatches
from lm.data.store import open_data
from lm.objectives.builder import make_examples
from lm.sampling.sample import framed
from lm.track.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("deepseek:tiny",)
LEFT = 0.9  # of the loss of one who knows only how often what is predicted occurs, at most
BATCHES = 60  # from which that one learns it


NAMES = [
    f"{path.stem}:{name}"
    for path in sorted((ROOT / "configs").glob("*.py"))
    for name in re.findall(r"^(?:def )?(tiny\w*)(?:\(\):| = )", path.read_text(), re.MULTILINE)
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
    """Beside one who knows how often each target occurs, on text that neither was trained on; of
    texts to be told apart, beside one who guesses.
    """
    saved = json.loads((workdir / "config.json").read_text())
    saved.pop("data_key")
    config = build(Config, saved)
    tokenizer = lm.load(workdir).tokenizer
    data = open_data(config.data, tokenizer=tokenizer)
    examples = make_examples(config.objective, config.data, config.model, tokenizer)
    training = Batches(data.train, config.data, config.train.seed, examples)
    validation = ValidationBatches(data.validation, config.data, examples)
    rows = read_metrics(workdir / "metrics.jsonl")
    (*_, last) = [row["eval/loss"] for row in rows if "eval/loss" in row]
    if config.objective.family == "text":
        trivial = math.log(config.data.batch_size)
    else:
        trivial = unigram_loss(training, validation, config.model.vocab_size)
    print(f"loss: {last:.3f}, of one who knows frequencies {trivial:.3f}")
    assert last < LEFT * trivial


def unigram_loss(training, validation, vocab_size):
    """Nats per target of the frequencies of targets in the first training batches."""
    rows, counts = np.arange(training.batch_size), np.ones(vocab_size)
    for step in range(BATCHES):
        batch = training.rows(step, rows)
        np.add.at(counts, batch["targets"][batch["weights"] > 0], 1)
    nll_V, nats, weight = -np.log(counts / counts.sum()), 0.0, 0.0
    for number in range(len(validation)):
        batch = validation.rows(number, rows)
        nats += (nll_V[batch["targets"]] * batch["weights"]).sum()
        weight += batch["weights"].sum()
    return nats / weight


def forget(workdir, step):
    """As if the run had been killed after saving `step`."""
    for path in (workdir / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if json.loads(line)["step"] < step))


def generated(workdir):
    """What the likeliest tokens of the whole text so far are, whatever a cache keeps of it; an
    encoder fills a blank with one that the text has.
    """
    model = lm.load(workdir)
    tokenizer, stack = model.tokenizer, model.config.stack
    if stack == "encoder":
        if model.config.head == "none":
            return
        mask = tokenizer.library.id_to_token(tokenizer.special["mask"])
        text, (blank,) = lm.fill(model, f"The following {mask} is used")
        print(text, blank)
        assert mask not in text and len(blank.texts) == 5
        return
    prompt = framed(tokenizer, "The following statement")
    if stack == "decoder":
        prompt = [tokenizer.end_of_text, *tokenizer.encode("The following statement")]
    ((sample,),) = lm.generate(model, [prompt], 40, temperature=0, stop_at_end_of_text=False)
    print(sample.text)
    assert len(sample.tokens) == 40
    if stack == "encoder_decoder":
        target = [model.config.start_token, *sample.tokens]
        logits_TV = np.asarray(model([prompt], [target]))[0, :-1]
    else:
        tokens = [*prompt, *sample.tokens]
        assert len(tokens) <= 64
        prefix = [[1] * len(prompt) + [0] * 40] if model.config.prefix_attention else None
        logits_TV = np.asarray(model([tokens], prefix=prefix))[0, len(prompt) - 1 : -1]
    assert [*logits_TV.argmax(-1)] == [*sample.tokens]
