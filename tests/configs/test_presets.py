"""Every preset resolves, is documented, and names only what differs."""

import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.base import base, presets
from lm.config import flatten, resolve
from lm.nn.params import count_parameters
from lm.nn.transformer import Transformer

ROOT = Path(__file__).resolve().parents[2] / "configs"
HELPERS = ("__init__", "common")  # files of no presets
FAMILIES = sorted(path.stem for path in ROOT.glob("*.py") if path.stem not in HELPERS)


def family_of(name):
    return importlib.import_module(f"configs.{name}")


def names_in(family):
    """The presets of a file: its functions that need nothing."""
    functions = inspect.getmembers(family_of(family), inspect.isfunction)
    own = [(name, f) for name, f in functions if f.__module__ == f"configs.{family}"]
    return [name for name, function in own if not inspect.signature(function).parameters]


NAMES = {family: ["base"] if family == "base" else names_in(family) for family in FAMILIES}
PRESETS = [(family, name) for family, names in NAMES.items() for name in names]
TINY = [(family, name) for family, name in PRESETS if name.startswith("tiny")]


@pytest.mark.parametrize(("family", "name"), PRESETS)
def test_a_preset_resolves(family, name):
    keys = family_of(family).get_config(name)
    assert isinstance(keys, ConfigDict) and keys.is_locked
    config = resolve(keys, keys.data.tokenizer_size)
    assert config.data.tokenizer != "bpe" or config.model.vocab_size >= config.data.tokenizer_size


@pytest.mark.parametrize(("family", "name"), TINY)
def test_a_tiny_preset_is_tiny_and_counted(family, name):
    """tests/test_param_counts.py counts those of published size."""
    keys = family_of(family).get_config(name)
    count = count_parameters(Transformer(resolve(keys, keys.data.tokenizer_size).model))
    assert 100_000 < count < 1_000_000
    text = " ".join(getattr(family_of(family), name).__doc__.split())
    assert re.match(f"{count:,} parameters, of the (same )?shape", text)


# What is not a switch but a size, follows from one, or says where it runs.
SHRUNK = (
    *("vocab_size", "num_layers", "d_model", "num_heads", "num_kv_heads", "head_width", "d_ff"),
    "num_encoder_layers",
    *("max_positions", "window", "rope_factor", "rope_original_positions", "rope_attention_factor"),
    *("attention_scale", "embedding_scale", "logit_scale", "kv_latent", "query_latent"),
    *("rope_width", "value_width", "num_experts", "experts_per_token", "expert_d_ff"),
    *("shared_expert_d_ff", "dense_layers", "router_groups", "router_groups_kept"),
    *("compute_dtype", "remat", "attention_backend", "initializer_std"),
    *("embedding_dropout", "attention_dropout", "residual_dropout"),
    # What other objectives ask for of BERT.
    *("pooler", "next_sentence", "detector"),
)


@pytest.mark.parametrize(("family", "name"), TINY)
def test_a_tiny_preset_has_the_switches_of_a_large_one(family, name):
    def switches(name):
        keys = family_of(family).get_config(name)
        model = dataclasses.asdict(resolve(keys, keys.data.tokenizer_size).model)
        sizes = ("window", "num_experts", "shared_expert_d_ff", "dense_layers", "kv_latent")
        more = {key: model[key] > 0 for key in (*sizes, "query_latent")}
        more["groups"] = model["router_groups"] > 1
        return {key: value for key, value in model.items() if key not in SHRUNK} | more

    mine = switches(name)
    if name == "tiny_palm2":  # PaLM 2's own sizes are not published
        assert mine.pop("prefix_attention") and not mine.setdefault("prefix_attention", False)
        family = "palm"
    others = [other for other in NAMES[family] if not other.startswith("tiny")]
    assert mine in [switches(other) for other in others]


@pytest.mark.parametrize(("family", "name"), PRESETS)
def test_a_preset_is_made_anew_each_time(family, name):
    get_config = family_of(family).get_config
    get_config(name).unlock().train.num_steps = 1
    assert get_config(name).train.num_steps > 1


@pytest.mark.parametrize("family", [name for name in NAMES if name != "base"])
def test_a_family_gives_claim_and_command(family):
    module = family_of(family)
    assert "Claim: " in module.__doc__
    command = re.search(r"python -m experiments.train --config=(\S+)", module.__doc__).group(1)
    path, _, name = command.partition(":")
    assert path == f"configs/{family}.py" and name in ("", *NAMES[family])
    assert all(getattr(module, name).__doc__ for name in NAMES[family])


def test_without_a_name_the_first_preset_is_meant():
    gpt2 = family_of("gpt2")
    assert gpt2.get_config() == gpt2.get_config("small")


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no preset 'huge'.*small, medium, large, xl"):
        family_of("gpt2").get_config("huge")


def test_presets_of_one_function():
    def only():
        return base()

    assert presets(only)("only") == presets(only)() == base().lock()


TOKENS = {
    "gpt2.small": 300e9,
    "gpt2.xl": 300e9,
    "gpt3.gpt3_175b": 300e9,
    "gpt_neo.gpt_neo_125m": 300e9,
    "gpt_neo.gpt_neo_1_3b": 380e9,
    "gpt_neo.gpt_neo_2_7b": 420e9,
    "palm.palm_540b": 780e9,
    "gopher.gopher_280b": 300e9,
    "gopher.chinchilla_70b": 1.4e12,
    "llama.llama1_7b": 1e12,
    "llama.llama1_65b": 1.4e12,
    "llama.llama2_7b": 2e12,
    "llama.llama3_8b": 15.6e12,
    "qwen2.qwen2_0_5b": 12e12,
    "qwen2.qwen2_7b": 7e12,
    "qwen3.qwen3_8b": 36e12,
    "gemma2.gemma2_27b": 13e12,
    "gemma3.gemma3_27b": 14e12,
    "olmo2.olmo2_7b": 4e12,
    "olmo2.olmo2_32b": 6e12,
    "deepseek.deepseek_v2": 8.1e12,
    "deepseek.deepseek_v3": 14.8e12,
    "modernbert.modernbert_base": 1.7e12,
    "t5.t5_11b": 2**20 * 1e6,
    "ul2.ul2_20b": 1024 * 512 * 2e6,
    "switch.base_8": 2**20 * 1e6,
    "longformer.longformer_base": 2**18 * 65_000,
    "roberta.roberta_base": 8192 * 512 * 500_000,
}


@pytest.mark.parametrize("preset", TOKENS)
def test_tokens_of_the_large_runs_are_the_published_ones(preset):
    """GPT-3, table 2.1; PaLM, section 5; Chinchilla, table 1; and so on, see the presets."""
    family, _, name = preset.partition(".")
    keys = family_of(family).get_config(name)
    planned = keys.data.batch_size * keys.data.sequence_length * keys.train.num_steps
    assert planned == pytest.approx(TOKENS[preset], rel=2e-3)


def test_the_fixed_keys_are_there():
    """Names that scripts outside this project use."""
    keys = flatten(base().to_dict())
    fixed = """model.d_model model.num_layers model.num_heads model.num_kv_heads
        data.path data.batch_size data.sequence_length mesh.data mesh.fsdp mesh.tensor
        optim.peak_lr train.num_steps train.seed
        metrics.every_steps evaluate.every_steps checkpoint.every_steps"""
    assert keys.keys() >= set(fixed.split())
    assert (keys["mesh.data"], keys["mesh.fsdp"], keys["mesh.tensor"]) == (-1, 1, 1)
    assert keys["evaluate.every_steps"] == 0


def test_configs_import_only_ml_collections():
    for path in ROOT.glob("*.py"):
        imports = re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
        assert set(imports) <= {"configs", "ml_collections"}
