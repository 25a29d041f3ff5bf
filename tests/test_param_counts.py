"""Every published parameter count, from the model of descriptions: nothing is allocated.

The counts stand in ../shared/param_counts.csv, for checkouts that have it, and in the presets' own
docstrings.
"""

import csv
import functools
import importlib
import re
from pathlib import Path

import pytest

from lm import flops
from lm.config import resolve
from lm.nn.params import count_parameters
from lm.nn.transformer import Transformer

CSV = Path(__file__).resolve().parents[2] / "shared" / "param_counts.csv"


def config_of(preset, **model):
    """The TransformerConfig of "family.preset" with changes."""
    family, _, name = preset.partition(".")
    keys = importlib.import_module(f"configs.{family}").get_config(name).unlock()
    keys.model.update(model)
    if not keys.model.mtp_depth:
        keys.objective.mtp_loss = 0.0
    if keys.model.head == "none":
        keys.objective.update(kind="contrastive", next_sentence=False)
    elif not keys.model.next_sentence:
        keys.objective.next_sentence = False
    return resolve(keys, keys.data.tokenizer_size).model


@functools.cache
def total(preset, buffers=False, **model):
    return count_parameters(Transformer(config_of(preset, **model)), buffers)


def active(preset, input_embedding=True, **model):
    """How many of them one token meets."""
    count = flops.active_parameter_count(config_of(preset, **model))
    return count if input_embedding else count - embedding(preset)


def embedding(preset):
    config = config_of(preset)
    return config.vocab_size * config.d_model


# The rows whose count is that of a preset.
PRESETS = {
    "gpt1": {"openai-gpt": "gpt1.gpt1"},
    "gpt2": {size: f"gpt2.{size}" for size in ("small", "medium", "large", "xl")},
    "gpt3": {
        "125M": "gpt3.gpt3_125m",
        "350M": "gpt3.gpt3_350m",
        "760M": "gpt3.gpt3_760m",
        "1.3B_24x128": "gpt3.gpt3_1_3b",
        "1.3B_16x128": "gpt3.gpt3_1_3b_repaired",
        "2.7B": "gpt3.gpt3_2_7b",
        "6.7B": "gpt3.gpt3_6_7b",
        "13B_40x128": "gpt3.gpt3_13b",
        "13B_d5120": "gpt3.gpt3_13b_repaired",
        "175B": "gpt3.gpt3_175b",
    },
    "gpt_neo": {
        "125M": "gpt_neo.gpt_neo_125m",
        "1.3B": "gpt_neo.gpt_neo_1_3b",
        "2.7B": "gpt_neo.gpt_neo_2_7b",
    },
    "palm": {"8B": "palm.palm_8b", "62B": "palm.palm_62b", "540B": "palm.palm_540b"},
    "gopher": {
        "44M": "gopher.gopher_44m",
        "117M": "gopher.gopher_117m",
        "417M": "gopher.gopher_417m",
        "1.4B": "gopher.gopher_1_4b",
        "7.1B": "gopher.gopher_7_1b",
        "280B": "gopher.gopher_280b",
    },
    "chinchilla": {"70B": "gopher.chinchilla_70b"},
    "llama1": {size: f"llama.llama1_{size.lower()}" for size in ("7B", "13B", "33B", "65B")},
    "llama2": {size: f"llama.llama2_{size.lower()}" for size in ("7B", "13B", "70B")},
    "llama3": {size: f"llama.llama3_{size.lower()}" for size in ("8B", "70B")},
    "llama3.1": {"405B": "llama.llama3_1_405b"},
    "llama3.2": {"1B": "llama.llama3_2_1b", "3B": "llama.llama3_2_3b"},
    "mistral": {"7B-v0.1": "mistral.mistral_7b_v0_1", "7B-v0.3": "mistral.mistral_7b_v0_3"},
    "mixtral": {"8x7B": "mixtral.mixtral_8x7b", "8x22B-v0.1": "mixtral.mixtral_8x22b"},
    "qwen2": {
        "0.5B": "qwen2.qwen2_0_5b",
        "1.5B": "qwen2.qwen2_1_5b",
        "7B": "qwen2.qwen2_7b",
        "72B": "qwen2.qwen2_72b",
    },
    "qwen2.5": {size: f"qwen2.qwen2_5_{size.lower()}" for size in ("3B", "14B", "32B")},
    "qwen2_moe": {"57B-A14B": "qwen2.qwen2_57b_a14b"},
    "qwen1.5_moe": {"A2.7B": "qwen2.qwen1_5_moe_a2_7b"},
    "qwen3": {
        "0.6B": "qwen3.qwen3_0_6b",
        "1.7B": "qwen3.qwen3_1_7b",
        "4B": "qwen3.qwen3_4b",
        "8B": "qwen3.qwen3_8b",
        "14B": "qwen3.qwen3_14b",
        "32B": "qwen3.qwen3_32b",
    },
    "qwen3_moe": {"30B-A3B": "qwen3.qwen3_30b_a3b", "235B-A22B": "qwen3.qwen3_235b_a22b"},
    "gemma": {size: f"gemma.gemma_{size.lower()}" for size in ("2B", "7B")},
    "gemma2": {size: f"gemma2.gemma2_{size.lower()}" for size in ("2B", "9B", "27B")},
    "gemma3_text": {
        size: f"gemma3.gemma3_{size.lower()}" for size in ("270M", "1B", "4B", "12B", "27B")
    },
    "olmo2": {size: f"olmo2.olmo2_{size.lower()}" for size in ("1B", "7B", "13B", "32B")},
    "gpt_oss": {size: f"gpt_oss.gpt_oss_{size}" for size in ("20b", "120b")},
    "deepseek_v2": {"lite": "deepseek.deepseek_v2_lite", "V2": "deepseek.deepseek_v2"},
    "deepseek_v3": {"main+mtp": "deepseek.deepseek_v3"},
    "transformer": {
        "base_V37000_no_attn_bias": "transformer.transformer_base",
        "big_V37000_no_attn_bias": "transformer.transformer_big",
    },
    "bert": {
        "base-uncased+mlm+nsp": "bert.base_uncased",
        "large-uncased+mlm+nsp": "bert.large_uncased",
        "base-cased+mlm+nsp": "bert.base_cased",
        "large-cased+mlm+nsp": "bert.large_cased",
    },
    "roberta": {"base+mlm": "roberta.roberta_base", "large+mlm": "roberta.roberta_large"},
    "longformer": {
        "base-4096+mlm": "longformer.longformer_base",
        "large-4096+mlm": "longformer.longformer_large",
    },
    "modernbert": {
        "base+mlm": "modernbert.modernbert_base",
        "large+mlm": "modernbert.modernbert_large",
    },
    "t5": {size: f"t5.t5_{size}" for size in ("small", "base", "large", "3b", "11b")},
    "t5_v1_1": {size: f"t5.t5_1_1_{size}" for size in ("small", "base", "large", "xl", "xxl")},
    "ul2": {"20b": "ul2.ul2_20b"},
    "bart": {"base": "bart.bart_base", "large": "bart.bart_large"},
    "switch": {
        f"base-{experts}": f"switch.base_{experts}" for experts in (8, 16, 32, 64, 128, 256)
    },
}
ROWS = {
    (system, size): functools.partial(total, preset)
    for system, sizes in PRESETS.items()
    for size, preset in sizes.items()
}
V3 = "deepseek.deepseek_v3"
ROWS |= {
    ("deepseek_v3", "main"): lambda: total(V3, mtp_depth=0),
    ("deepseek_v3", "main+bias_buffers"): lambda: total(V3, buffers=True, mtp_depth=0),
    ("deepseek_v3", "mtp_module"): lambda: total(V3) - total(V3, mtp_depth=0),
    # Stored: embedding and head twice, and the selection bias of the module for a second token too.
    ("deepseek_v3", "hub_file_total"): lambda: total(V3, buffers=True) + 2 * embedding(V3),
    ("deepseek_v3", "main_active"): lambda: active(V3, mtp_depth=0),
}
ACTIVE = {
    "deepseek_v2": ("lite", "V2"),
    "mixtral": ("8x7B",),
    "qwen3_moe": ("30B-A3B", "235B-A22B"),
    "gpt_oss": ("20b", "120b"),
}
for system, sizes in ACTIVE.items():
    for size in sizes:
        ROWS[system, f"{size}_active"] = functools.partial(active, PRESETS[system][size])
for size, preset in PRESETS["gpt_oss"].items():
    ROWS["gpt_oss", f"{size}_active_no_input_emb"] = functools.partial(
        active, preset, input_embedding=False
    )

# What a model with another head has.
HEADLESS = {"head": "none", "head_bias": "none", "next_sentence": False, "residual_dropout": 0.1}
POOLED = {**HEADLESS, "pooler": True}
MASKED = {"pooler": False, "next_sentence": False}
BIASES = {"qkv_bias": True, "attention_output_bias": True}
for size, preset in PRESETS["bert"].items():
    name = size.removesuffix("+mlm+nsp")
    ROWS["bert", f"{name}+mlm"] = functools.partial(total, preset, **MASKED)
    ROWS["bert", name] = functools.partial(total, preset, **POOLED)
for system, changes in (("roberta", POOLED), ("longformer", POOLED), ("modernbert", HEADLESS)):
    for size, preset in PRESETS[system].items():
        ROWS[system, size.removesuffix("+mlm")] = functools.partial(total, preset, **changes)
for size, preset in PRESETS["transformer"].items():
    name = size.replace("no_attn_bias", "attn_bias")
    ROWS["transformer", name] = functools.partial(total, preset, **BIASES)
for size, preset in PRESETS["t5_v1_1"].items():
    ROWS["t5_v1_1", f"{size}_tied"] = functools.partial(total, preset, tied_embedding=True)
# The Transformer with biases, by another number of tokens; num_parameters() counts the sines and
# cosines of encoder and decoder, which are no parameters, once for each.
MARIAN = functools.partial(total, "transformer.transformer_base", vocab_size=58_101, **BIASES)
ROWS |= {
    ("marian", "opus-mt-en-de_trainable"): MARIAN,
    ("marian", "opus-mt-en-de_num_parameters"): lambda: MARIAN() + 2 * 512 * 512,
    # Experts in every fourth layer: which ones, the count does not tell.
    ("switch", "SwitchTransformersConfig_default"): functools.partial(
        total, "switch.base_8", d_ff=2048, experts_every=4
    ),
}

# Recurrent and two-stream models, for which there are no presets yet.
NOT_YET = ("xlnet", "lstm", "gru")
# fsmt's one row is of a default that nobody released: three tables, of source, target and output,
# where lm has one or two, and both tables of sines and cosines counted.
NEVER = ("fsmt",)


@pytest.fixture(scope="module")
def published():
    """{(system, config): count} of the table."""
    if not CSV.is_file():
        pytest.skip("there is no ../shared/param_counts.csv beside this checkout")
    with CSV.open(newline="") as file:
        rows = [*csv.DictReader(file)]
    return {(row["system"], row["config"]): int(row["exact_count"]) for row in rows}


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_the_count_is_the_published_one(row, published):
    assert ROWS[row]() == published[row]


def test_every_row_is_checked_or_not_yet(published):
    assert {row for row in published if row[0] not in (*NOT_YET, *NEVER)} == {*ROWS}


@pytest.mark.parametrize(("preset", "billions"), [("large", 26), ("xxl", 395), ("c", 1571)])
def test_switches_of_the_paper(preset, billions):
    """arXiv:2101.03961, table 9, where the large one has 4 % less than its sizes give."""
    assert total(f"switch.{preset}") == pytest.approx(billions * 1e9, rel=0.045)


@pytest.mark.parametrize(
    "preset", sorted({p for sizes in PRESETS.values() for p in sizes.values()})
)
def test_the_docstring_gives_the_count(preset):
    text, number = documented(preset), r"([\d,]*\d)"
    assert count_in(f"^{number} parameters", text) == total(preset)
    if without := count_in(f"{number} without the module", text):
        assert without == total(preset, mtp_depth=0)
    if used := count_in(f"a token uses {number}", text):
        changes = {"mtp_depth": 0} if without else {}
        assert used == active(preset, "besides the embedding" not in text, **changes)


def documented(preset):
    """The docstring of "family.preset", in one line."""
    family, _, name = preset.partition(".")
    return " ".join(getattr(importlib.import_module(f"configs.{family}"), name).__doc__.split())


def count_in(pattern, text):
    found = re.search(pattern, text)
    return found and int(found.group(1).replace(",", ""))
