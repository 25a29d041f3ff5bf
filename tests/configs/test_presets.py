"""Every preset resolves, is documented, and names only what differs."""

import importlib
import inspect
import re

import pytest
from ml_collections import ConfigDict

from configs.base import base, presets
from lm import flops
from lm.config import flatten, resolve

NAMES = {
    "base": ["base"],
    "demo": ["cpu"],
    "gpt2": ["small", "medium", "large", "xl"],
    "llama": ["llama2_7b", "llama3_8b", "llama3_70b"],
    "shakespeare": ["cpu"],
}
PRESETS = [(family, name) for family, names in NAMES.items() for name in names]


def family_of(name):
    return importlib.import_module(f"configs.{name}")


@pytest.mark.parametrize(("family", "name"), PRESETS)
def test_a_preset_resolves(family, name):
    keys = family_of(family).get_config(name)
    assert isinstance(keys, ConfigDict) and keys.is_locked
    config = resolve(keys, keys.model.vocab_size or keys.data.tokenizer_size)
    count = f"{flops.parameter_count(config.model):,}"
    documented = re.match(r"[\d,]+ parameters", getattr(family_of(family), name).__doc__)
    assert documented is None or documented.group() == f"{count} parameters"


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
    with pytest.raises(ValueError, match=r"no preset 'tiny'.*small, medium, large, xl"):
        family_of("gpt2").get_config("tiny")


def test_presets_of_one_function():
    def only():
        return base()

    assert presets(only)("only") == presets(only)() == base().lock()


def test_tokens_of_the_large_runs_are_the_published_ones():
    """GPT-3, table 2.1: 300 B; Llama 2, table 1: 2 T; Llama 3, section 3.4.1: 15.6 T."""
    published = {("gpt2", "small"): 300e9, ("gpt2", "xl"): 300e9}
    published |= {("llama", "llama2_7b"): 2e12, ("llama", "llama3_8b"): 15.6e12}
    for (family, name), tokens in published.items():
        keys = family_of(family).get_config(name)
        planned = keys.data.batch_size * keys.data.sequence_length * keys.train.num_steps
        assert planned == pytest.approx(tokens, rel=2e-3)


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
    for name in NAMES:
        imports = re.findall(
            r"^(?:from|import) (\w+)", inspect.getsource(family_of(name)), re.MULTILINE
        )
        assert set(imports) <= {"configs", "ml_collections"}
