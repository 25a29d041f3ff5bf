"""convert: from a run to a folder of the hub, and from one to another."""

import dataclasses

import jax
import numpy as np
import pytest

import lm
from experiments.convert import compare_logits, convert
from lm.errors import RunError, UserError
from lm.hub.convert import export_model
from lm.model import skeleton
from tests.test_model import write_run

LLAMA = {"norm": "rms_norm", "norm_bias": False, "gated": True}


def test_a_run_becomes_a_folder_of_the_hub(tmp_path, capsys):
    run = write_run(tmp_path / "run", **LLAMA)
    convert([f"--source={run}", f"--target={tmp_path / 'out'}", "--step=3"])
    said = capsys.readouterr().out
    assert "a llama of" in said and "model.safetensors, tokenizer.json" in said
    model, exported = lm.load(run, step=3), lm.load(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, exported.params, model.params)
    assert exported.tokenizer.fingerprint == model.tokenizer.fingerprint
    convert(["--source", str(tmp_path / "out"), "--target", str(tmp_path / "again")])
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("out", "again"))
        assert one == two, name
    (tmp_path / "out" / "merges.txt").write_text("a b")
    half = tmp_path / "half"
    convert([f"--source={tmp_path / 'out'}", f"--target={half}", "--dtype=bfloat16"])
    assert "bfloat16, equal to the bit, logits within 0" in capsys.readouterr().out
    assert (half / "merges.txt").read_text() == "a b"
    rounded = jax.tree.map(lambda array: array.astype("bfloat16"), model.params)
    jax.tree.map(np.testing.assert_array_equal, lm.load(half).params, rounded)
    with pytest.raises(UserError, match="again is there already"):
        convert([f"--source={run}", f"--target={tmp_path / 'again'}"])
    with pytest.raises(UserError, match=r"as gpt2 .*model.position='rope' would become"):
        convert([f"--source={run}", f"--target={tmp_path / 'other'}", "--family=gpt2"])


def test_an_export_with_other_logits_is_no_export(tmp_path):
    run = write_run(tmp_path / "run", **LLAMA)
    model = lm.load(run)
    assert compare_logits(model, model) == 0
    other = dataclasses.replace(model.config, norm_eps=1.0)
    other = dataclasses.replace(model, config=other, module=skeleton(other)[0])
    with pytest.raises(RunError, match="gives other logits than the model, by 0"):
        compare_logits(model, other)
    out = tmp_path / "out"
    with pytest.raises(RunError, match="other logits"):
        export_model(model, out, finish=lambda _: compare_logits(model, other))
    assert not out.exists()
