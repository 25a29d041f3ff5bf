"""convert: from a run to a folder of the hub, and from one to another."""

import jax
import numpy as np
import pytest

import lm
from experiments.convert import convert
from lm.errors import UserError
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
    with pytest.raises(UserError, match="again is there already"):
        convert([f"--source={run}", f"--target={tmp_path / 'again'}"])
    with pytest.raises(UserError, match=r"as gpt2 model.position='rope' would become"):
        convert([f"--source={run}", f"--target={tmp_path / 'other'}", "--family=gpt2"])
