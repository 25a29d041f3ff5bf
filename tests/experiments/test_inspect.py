"""inspect: the figures agree with each other, with the real model, and with a run on disk."""

import dataclasses
import json

import pytest

from configs.base import base
from experiments.inspect import costs, inspect
from lm.config import resolve
from lm.errors import UserError
from lm.nn.params import count_parameters
from lm.nn.transformer import Transformer

TINY = {"d_model": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 48}


def tiny(**mesh):
    keys = base()
    keys.model.update(TINY)
    keys.data.update(batch_size=16, sequence_length=32)
    keys.train.update(num_steps=100, accumulation_steps=2)
    keys.optim.warmup_steps = 5
    keys.mesh.update(mesh)
    return resolve(keys)


def report(capsys, *argv):
    inspect([*argv, "--json"])
    return json.loads(capsys.readouterr().out)


def test_gpt2_small(capsys):
    found = report(capsys, "--config=configs/gpt2.py:small")
    assert found["parameters"] == 124_439_808
    assert found["bytes_per_device"]["adam_moments"] == 8 * 124_439_808
    assert found["active_parameters"] == 124_439_808
    assert found["cache_bytes_per_token"] == 2 * 12 * 768 * 2
    assert found["cache_bytes"] == 1024 * found["cache_bytes_per_token"]
    assert found["tokens_per_step"] == 512 * 1024
    assert found["assumed"] == []


def test_parameters_are_those_of_the_real_model():
    config = tiny()
    assert costs(config)["parameters"] == count_parameters(Transformer(config.model))


def test_a_mesh_divides_the_state_and_the_batch():
    alone, shared = costs(tiny())["bytes_per_device"], costs(tiny(fsdp=2, tensor=2), 8)
    assert shared["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    memory = shared["bytes_per_device"]
    # 8 rows of an accumulation step, over 4 data shards.
    assert alone["layer_inputs"] == 2 * 8 * 32 * 16 * 4 == 4 * memory["layer_inputs"]
    assert alone["logits"] == 8 * 32 * 48 * 4 == 8 * memory["logits"]
    # Of such a small model much is norms and biases, which are copied.
    assert alone["parameters"] / 4 < memory["parameters"] < alone["parameters"] / 3


def test_without_devices_as_few_as_the_mesh_takes():
    assert costs(tiny(fsdp=4))["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.mesh.fsdp=3", "--devices=8"], "a multiple of 3 devices, not 8; make one of"),
        (["--config.mesh.data=2", "--devices=3"], "needs 2 devices, not 3; make one of"),
        (["--config.mesh.fsdp=-1"], "only one axis"),
        (["--devices=0"], "--devices must be 1 or more, not 0"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make_is_refused(flags, said):
    with pytest.raises(UserError, match=said):
        inspect(["--config=configs/gpt2.py:small", *flags])


def test_totals():
    found = costs(tiny())
    assert found["training_tokens"] == 100 * 16 * 32
    per_token = found["training_flops_per_token"]["causal"]
    assert found["training_flops"] == 100 * found["flops_per_step"] == 100 * 16 * 32 * per_token


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        (["--config.data.tokenizer=bytes"], 257),
        (["--config.data.tokenizer=bpe", "--config.data.tokenizer_size=999"], 999),
    ],
)
def test_the_vocabulary_is_assumed_and_said(capsys, flags, size):
    found = report(capsys, "--config=configs/base.py", *flags)
    assert found["parameters_by_part"]["embed"] == size * 768
    assert found["assumed"][0].startswith(f"model.vocab_size={size}: ")


def test_characters_are_read(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("hello, 世界\n" * 20)
    found = report(capsys, "--config=configs/shakespeare.py", f"--config.data.path={tmp_path}")
    assert found["parameters_by_part"]["embed"] == len(set("hello, 世界\n")) * 128


def test_a_run_is_read_from_its_folder(capsys, tmp_path):
    saved = {**dataclasses.asdict(tiny()), "data_key": "abc"}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    for name in ("20", "100", "120.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "manifest.json").write_text("{}")
    (tmp_path / "checkpoints" / "140").mkdir()
    found = report(capsys, f"--workdir={tmp_path}")
    assert found["checkpoints"] == [20, 100]
    assert found["parameters"] == costs(tiny())["parameters"]


def test_experts(capsys):
    found = report(capsys, "--config=configs/mixtral.py:mixtral_8x7b")
    assert found["parameters"] == 46_702_792_704  # and 12.9 B active (arXiv:2401.04088)
    assert found["active_parameters"] == 12_879_925_248
    inspect(["--config=configs/mixtral.py:mixtral_8x7b"])
    assert "12,879,925,248" in capsys.readouterr().out


def test_for_people(capsys):
    inspect(["--config=configs/llama.py:llama3_8b", "--config.mesh.fsdp=16", "--devices=64"])
    shown = capsys.readouterr().out
    assert "8,030,261,248" in shown and "mesh data=4 fsdp=16 tensor=1" in shown
    assert "that a token meets" not in shown
