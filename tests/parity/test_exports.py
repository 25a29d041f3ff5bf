"""Every family to folders and back: what transformers loads of ours, and we of transformers'."""

import copy
import importlib
import json
import shutil

import jax
import numpy as np
import pytest

from lm.config import resolve
from lm.data.tokenizer import train_tokenizer
from lm.hub.convert import export_model, import_model
from lm.hub.families import FAMILIES
from lm.model import LanguageModel, skeleton
from lm.nn.params import initialise
from tests.parity.comparing import (
    EAGER,
    close,
    ours,
    random_inputs,
    same_tensors,
    saved_model,
    theirs,
    torch,
    transformers,
)
from tests.parity.models import VARIANTS

save_torch = pytest.importorskip("safetensors.torch").save_file

pytestmark = pytest.mark.parity

# What in their configuration is not of the model, or another way to write what is.
UNLIKE = (
    *("_name_or_path", "bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"),
    *("max_window_layers", "attention_types", "dtype", "sliding_window_pattern"),
    *("_sliding_window_pattern", "forced_eos_token_id"),
)


@pytest.fixture(params=VARIANTS, ids=VARIANTS, scope="module")
def saved(request, tmp_path_factory):
    return saved_model(request.param, tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def model(saved):
    return import_model(saved[1])


def kind_of(folder):
    """The class that config.json names."""
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    return getattr(transformers, name)


def test_an_export_is_loaded_by_transformers(saved, model, tmp_path):
    oracle, _ = saved
    inputs = random_inputs(model.config, 2, 13)
    export_model(model, tmp_path / "out", oracle.config.model_type)
    kind = kind_of(tmp_path / "out")
    again, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True, **EAGER)
    assert type(again) is type(oracle) and again.dtype == torch.float32
    assert not any(report.values()), report
    for name, weight in oracle.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    close(ours(model, **inputs), theirs(again.eval(), **inputs))
    # What ours keeps of their configuration, they find again; defaults may be written out.
    found = again.config.to_dict()
    for name, value in oracle.config.to_dict().items():
        if name == "rope_parameters":
            assert found[name].items() >= value.items()
        elif value is not None and name not in UNLIKE:
            assert found[name] == ("silu" if value == "swish" else value), name


def test_the_tensors_of_an_export_are_those_that_transformers_writes(saved, model, tmp_path):
    oracle, folder = saved
    export_model(model, tmp_path / "out", oracle.config.model_type)
    same_tensors(tmp_path / "out", folder)


def test_the_layout_that_transformers_has_in_memory(saved, model, tmp_path):
    oracle, folder = saved
    state = {name: tensor.clone() for name, tensor in oracle.state_dict().items()}
    save_torch(state, tmp_path / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    jax.tree.map(np.testing.assert_array_equal, import_model(tmp_path).params, model.params)


def test_an_export_imported_is_equal_to_the_bit(saved, model, tmp_path):
    oracle, _ = saved
    export_model(model, tmp_path / "out", oracle.config.model_type, max_shard_size=5000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    again = import_model(tmp_path / "out")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_transformers_reads_our_shards(saved, model, tmp_path):
    oracle, _ = saved
    export_model(model, tmp_path / "out", oracle.config.model_type, max_shard_size=5000)
    again = kind_of(tmp_path / "out").from_pretrained(tmp_path / "out")
    for name, weight in oracle.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.parametrize("saved", ["gpt2", "llama-gqa", "deepseek_v3", "bert", "t5"], indirect=True)
def test_half_precision_stays(saved, tmp_path):
    folder = tmp_path / "half"
    copy.deepcopy(saved[0]).to(torch.bfloat16).save_pretrained(folder)
    model = import_model(folder)
    assert model.config.param_dtype == "bfloat16" and model.config.compute_dtype == "float32"
    kind, inputs = kind_of(folder), random_inputs(model.config, 2, 9)
    wide = kind.from_pretrained(folder, dtype=torch.float32, **EAGER)
    close(ours(model, **inputs), theirs(wide.eval(), **inputs))
    export_model(model, tmp_path / "out")
    assert kind.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


TINY = {
    "openai-gpt": "gpt1:tiny",
    "cohere": "palm:tiny",
    "gemma3_text": "gemma3:tiny",
    "qwen2_moe": "qwen2:tiny_moe",
    "qwen3_moe": "qwen3:tiny_moe",
    "deepseek_v2": "deepseek:tiny_v2",
    "deepseek_v3": "deepseek:tiny",
    "switch_transformers": "switch:tiny",
    "marian": "transformer:tiny",
}
# What the format of a preset's oracle has no word for.
CHANGES = {
    "cohere": {"embedding_scale": 1.0},
    "switch_transformers": {"expert_capacity_factor": 0.0, "expert_capacity": 64},
    "marian": {
        "position": "sinusoid_halves",
        "qkv_bias": True,
        "attention_output_bias": True,
        "head_bias": "fixed",
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_model_and_its_tokenizer_are_loaded_by_transformers(family, tmp_path):
    texts = ["the cat sat on the mat; the dog did not."] * 3
    tokenizer = train_tokenizer("bpe", texts, 280)
    file, _, preset = TINY.get(family, f"{family}:tiny").partition(":")
    keys = importlib.import_module(f"configs.{file}").get_config(preset).unlock()
    keys.model.update(vocab_size=tokenizer.size, **CHANGES.get(family, {}))
    config = resolve(keys, tokenizer.size).model
    module, _ = skeleton(config)
    model = LanguageModel(config, module, initialise(module, seed=3), tokenizer)
    assert export_model(model, tmp_path / "out") == family
    oracle = kind_of(tmp_path / "out").from_pretrained(tmp_path / "out", **EAGER).eval()
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "the dog sat on the cat, 猫"
    tokens = tokenizer.encode(text)
    assert theirs_tokenizer(text)["input_ids"] == tokens.tolist()
    assert theirs_tokenizer.decode(tokens) == text
    assert oracle.config.eos_token_id == tokenizer.end_of_text
    target = [[config.start_token, *tokens]] if config.stack == "encoder_decoder" else None
    close(model(tokens[None], target), theirs(oracle, tokens[None], target))
