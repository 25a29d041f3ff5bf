"""The configuration: one set of keys, one set of defaults, and every mistake in one line."""

import dataclasses
import typing

import pytest

from configs.base import base
from lm.config import ADDED, Config, DataConfig, build, differences, flatten, resolve
from lm.errors import UserError
from tests.nn.tiny import STACKS


def nested_keys(kind):
    hints = typing.get_type_hints(kind)
    return {
        name: nested_keys(hint) if dataclasses.is_dataclass(hint) else hint
        for name, hint in hints.items()
    }


def test_the_keys_of_base_and_of_the_dataclasses_are_equal():
    ours = base()
    types = {
        section: {key: ours[section].get_type(key) for key in ours[section]} for section in ours
    }
    assert types == nested_keys(Config)


@pytest.mark.parametrize("kind", [Config, *typing.get_type_hints(Config).values()])
def test_no_dataclass_has_a_default(kind):
    for field in dataclasses.fields(kind):
        assert field.default is dataclasses.MISSING, field.name
        assert field.default_factory is dataclasses.MISSING, field.name


def test_what_is_open_is_derived():
    config = resolve(base(), tokenizer_size=300)
    model = config.model
    assert (model.vocab_size, model.num_kv_heads, model.head_width) == (300, 12, 64)
    assert (model.d_ff, model.max_positions) == (4 * 768, config.data.sequence_length)
    assert (model.rope_width, model.value_width, model.expert_d_ff) == (64, 64, 4 * 768)
    assert (model.attention_scale, model.rope_attention_factor) == (0.125, 1.0)
    assert config.optim.decay_steps == config.train.num_steps


def test_what_is_set_is_not_derived():
    keys = base()
    keys.model.update(vocab_size=512, num_kv_heads=4, head_width=32, d_ff=100, max_positions=999)
    keys.model.update(attention_scale=0.3, rope_attention_factor=2.0, expert_d_ff=12)
    keys.optim.decay_steps = 77_777
    config = resolve(keys, tokenizer_size=300)
    given = {key: value for key, value in keys.model.to_dict().items() if value is not None}
    assert dataclasses.asdict(config)["model"].items() >= given.items()
    assert config.optim.decay_steps == 77_777


def test_resolving_changes_nothing_that_it_is_given():
    keys = base().lock()
    before = keys.to_dict()
    resolve(keys, 300)
    assert keys.to_dict() == before


def test_a_config_survives_being_saved():
    config = resolve(base(), 300)
    assert build(Config, dataclasses.asdict(config)) == config
    assert resolve(dataclasses.asdict(config)) == config


def test_an_int_is_a_float_but_nothing_else_is_converted():
    keys = base().to_dict()
    keys["optim"]["clip_norm"] = 1
    clip_norm = resolve(keys, 300).optim.clip_norm
    assert clip_norm == 1.0 and isinstance(clip_norm, float)


WRONG = {
    "model.num_heads=0": "1 or more",
    "model.num_heads=7": "770",
    "model.num_kv_heads=5": "[1, 2, 3, 4, 6, 12]",
    "model.d_model=-1": "1 or more",
    "model.norm='rmsnorm'": "rms_norm",
    "model.position='ropes'": "Did you mean 'rope'",
    "model.rope_theta=0.0": "more than 1",
    "model.rope_scaling='yarn'": "model.position='rope'",
    "model.rope_beta_fast=0.5": "must be less than",
    "model.window=5": "attention_pattern='full'",
    "model.attention_pattern='local'": "window of 1 or more",
    "model.attention_pattern='full,sparse'": "One of: full, local",
    "model.kv_latent=8": "model.position='rope'",
    "model.value_width=8": "model.kv_latent",
    "model.dense_layers=1": "model.num_experts",
    "model.router_score='tanh'": "One of: softmax, sigmoid",
    "model.activation='clamped_silu'": "model.gated=True",
    "model.mtp_depth=2": "0 or 1",
    "objective.mtp_loss=0.1": "model.mtp_depth=0",
    "objective.router_aux_loss=0.1": "model.num_experts=0",
    "optim.router_bias_step=0.1": "model.router_selection_bias=True",
    "model.attention_dropout=1.0": "[0, 1)",
    "model.param_dtype='float31'": "float32",
    "model.vocab_size=100": "tokenizer's 300",
    "objective.label_smoothing=1.0": "[0, 1)",
    "objective.z_loss=-1.0": "0 (off)",
    "objective.logits_chunk=-1": "0 (off)",
    "data.order='random'": "One of: shuffled, contiguous",
    "data.batch_size=0": "1 or more",
    "data.validation_fraction=0.0": "data.validation_path",
    "optim.schedule='cosin'": "Did you mean 'cosine'",
    "optim.warmup_steps=1000": "decay_steps=1000",
    "optim.peak_lr=-1.0": "0 or more",
    "optim.beta2=1.0": "[0, 1)",
    "train.num_steps=0": "train.num_steps larger",
    "train.seed=-1": "[0, 2**31)",
    "train.accumulation_steps=3": "nearest that does is 9",
    "metrics.every_steps=0": "1 or more",
    "metrics.profile_start=5": "profile_stop",
    "evaluate.every_steps=-1": "0 (never)",
    "checkpoint.keep_last=0": "1 or more",
    "model.d_model=None": "must be int",
    "model.d_model='768'": "must be int",
    "model.gated=1": "must be bool",
    "model.d_model=True": "must be int",
    "model.d_model=768.0": "must be int",
    "model.n_heads=4": "Did you mean 'num_heads'",
    "optimizer=4": "Did you mean 'optim'",
    "model=4": "section",
}


@pytest.mark.parametrize("change", WRONG)
def test_what_is_wrong_is_said_in_one_line(change):
    path, _, value = change.partition("=")
    value = {"None": None, "True": True}.get(value, value)
    if isinstance(value, str):
        value = value.strip("'") if "'" in value else float(value) if "." in value else int(value)
    *sections, key = path.split(".")
    keys = base().to_dict()
    (keys[sections[0]] if sections else keys)[key] = value
    with pytest.raises(UserError) as error:
        resolve(keys, tokenizer_size=300)
    message = str(error.value)
    assert key in message and WRONG[change] in message and "\n" not in message


ENCODER, BOTH = STACKS["encoder"], STACKS["encoder_decoder"]
ENCODER, BOTH = ENCODER | {"model.stack": "encoder"}, BOTH | {"model.stack": "encoder_decoder"}
PREFIX = {"objective.kind": "prefix", "data.separate_documents": False}
PAIRS = {"model.pooler": True, "model.next_sentence": True, "model.token_types": 2}
LATENT = {"model.kv_latent": 8, "model.position": "none", "model.qkv_bias": False}
LATENT |= {"model.rope_width": 4, "model.value_width": 4}
CONTRASTIVE = ENCODER | {"objective.kind": "contrastive"}
# Keys, what the line must hold, and what mends it, as the line says.
TOGETHER = [
    ({"objective.kind": "maskd"}, "Did you mean 'masked'", None),
    (
        {"objective.kind": "masked,causal"},
        "not alike; mix those of one line: causal; masked, re",
        None,
    ),
    ({"objective.kind": "prefix=0"}, "'span_corruption=3,prefix=1'", None),
    ({"objective.kind": "prefix,prefix"}, "different names with numbers", None),
    (ENCODER | {"objective.noise": "infiling"}, "Did you mean 'infilling'", None),
    (ENCODER | {"objective.pooling": "max"}, "One of: first, mean, pooler", None),
    (ENCODER | {"objective.mask_rate": 1.0}, "must be in (0, 1)", None),
    (ENCODER | {"objective.mask_token_share": 0.95}, "1 or less together", None),
    (BOTH | {"objective.mean_span": 0.5}, "1 or more", None),
    (CONTRASTIVE | {"objective.temperature": 0.0}, "must be more than 0", None),
    (
        {"objective.kind": "masked"},
        "not for model.stack='decoder'; for that there are causal, span_corruption, denoising",
        None,
    ),
    (
        ENCODER | {"objective.kind": "causal"},
        "not for model.stack='encoder'; for that there are masked, replaced, contrastive",
        {"objective.kind": "masked"},
    ),
    (BOTH | {"objective.kind": "causal"}, "for that there are span_corruption", BOTH),
    (PREFIX, "needs model.prefix_attention=True", {"model.prefix_attention": True}),
    (
        PREFIX | {"model.prefix_attention": True, "data.separate_documents": True},
        "needs data.separate_documents=False",
        {"data.separate_documents": False},
    ),
    (
        ENCODER | {"data.order": "contiguous"},
        "needs data.order='shuffled'",
        ENCODER | {"data.order": "shuffled"},
    ),
    (
        ENCODER | {"objective.kind": "replaced"},
        "needs model.detector=True",
        {"model.detector": True},
    ),
    (ENCODER | {"objective.next_sentence": True}, "needs model.next_sentence=True", PAIRS),
    (
        ENCODER | PAIRS | {"objective.next_sentence": True, "model.token_types": 1},
        "model.token_types=2",
        {"model.token_types": 2},
    ),
    (ENCODER | {"model.next_sentence": True}, "needs model.pooler", {"model.pooler": True}),
    (CONTRASTIVE, "set model.residual_dropout=0.1", {"model.residual_dropout": 0.1}),
    (
        CONTRASTIVE | {"objective.pooling": "pooler", "model.residual_dropout": 0.1},
        "objective.pooling='pooler' needs model.pooler=True",
        {"model.pooler": True},
    ),
    (
        ENCODER | {"model.head": "none"},
        "'masked' needs model.head='linear' or 'transform', and model.head='none'; change one",
        {"model.head": "linear"},
    ),
    (
        CONTRASTIVE | {"model.head": "none", "model.head_bias": "learned"},
        "model.head='none' needs model.head_bias='none'",
        {"model.head_bias": "none", "model.residual_dropout": 0.1},
    ),
    (BOTH | {"model.head": "none"}, "model.head='none' needs model.stack='encoder'", None),
    ({"model.stack": "encoders"}, "Did you mean 'encoder'", None),
    (
        {"model.num_encoder_layers": 2},
        "model.num_encoder_layers=2 needs model.stack='encoder_decoder'",
        {"model.num_encoder_layers": 0},
    ),
    (
        BOTH | {"model.num_encoder_layers": 0},
        "'encoder_decoder' needs model.num_encoder_layers, and model.num_encoder_layers=0",
        {"model.num_encoder_layers": 1},
    ),
    (
        BOTH | {"model.parallel_block": True},
        "parallel_block=True needs model.stack='decoder' or 'encoder', and",
        {"model.parallel_block": False},
    ),
    (ENCODER | {"model.mtp_depth": 1}, "needs model.stack='decoder'", {"model.mtp_depth": 0}),
    (
        ENCODER | {"model.position": "alibi"},
        "'alibi' needs model.stack='decoder'",
        {"model.position": "rope"},
    ),
    ({"model.pooler": True}, "model.pooler=True needs model.stack='encoder'", ENCODER),
    (BOTH | {"model.global_attention": True}, "needs model.stack='encoder'", None),
    (
        ENCODER | LATENT | {"model.global_attention": True},
        "model.global_attention=True needs model.kv_latent=0",
        {"model.global_attention": False},
    ),
    (
        {"model.prefix_attention": True, "model.position": "relative"},
        "'relative' needs model.prefix_attention=False",
        {"model.position": "rope"},
    ),
    (
        {"model.position": "rope", "model.position_offset": 2},
        "needs model.position='learned'",
        None,
    ),
    ({"model.position_offset": 256, "model.max_positions": 256}, "leaves none", None),
    (
        {"model.position_offset": 2, "model.max_positions": 256},
        "model.max_positions=256 less position_offset=2; make the one shorter",
        {"data.sequence_length": 254},
    ),
    (BOTH | {"data.target_length": 300, "model.max_positions": 256}, "target_length=300", None),
    ({"model.position_buckets": 31}, "must be even", {"model.position_buckets": 32}),
    ({"model.position_max_distance": 32}, "less than model.position_max_distance=32", None),
    ({"data.special_tokens": "ends"}, "Did you mean 'end'", {"data.special_tokens": "end"}),
    ({"data.target_length": -1}, "0 (what is needed) or more", {"data.target_length": 0}),
]


@pytest.mark.parametrize(("keys", "named", "mended"), TOGETHER, ids=[row[1] for row in TOGETHER])
def test_what_does_not_go_together_is_said_in_one_line(keys, named, mended):
    def resolved(keys):
        config = base().to_dict()
        for name, value in keys.items():
            section, key = name.split(".")
            config[section][key] = value
        return resolve(config, tokenizer_size=300)

    with pytest.raises(UserError) as error:
        resolved(keys)
    assert named in str(error.value) and "\n" not in str(error.value)
    if mended is not None:
        resolved({**keys, **mended})


def test_an_open_vocabulary_needs_a_tokenizer():
    with pytest.raises(UserError, match=r"model.vocab_size has no value"):
        resolve(base())


def test_a_longer_sequence_than_the_position_table_is_refused():
    keys = base()
    keys.model.max_positions = 128
    with pytest.raises(UserError, match=r"data.sequence_length=256 .* model.max_positions=128"):
        resolve(keys, 300)
    keys.model.position = "rope"
    assert resolve(keys, 300).data.sequence_length == 256


def test_all_missing_keys_are_named():
    keys = base().data.to_dict()
    del keys["path"], keys["order"]
    with pytest.raises(UserError, match=r"lacks path, order"):
        build(DataConfig, keys)


def test_what_runs_of_before_lack_is_what_they_did():
    now = resolve(base(), 300)
    before = dataclasses.asdict(now)
    for kind, keys in ADDED.items():
        (section,) = (name for name, value in vars(now).items() if type(value) is kind)
        for key in keys:
            del before[section][key]
    assert build(Config, before) == now


def test_differences_are_those_that_change_what_is_computed():
    old = dataclasses.asdict(resolve(base(), 300))
    keys = base()
    keys.mesh.update(data=1, fsdp=8)
    keys.train.update(accumulation_steps=2, num_steps=2000)
    keys.optim.decay_steps = 1000
    keys.model.remat = "full"
    keys.data.path = "elsewhere"
    assert differences(old, dataclasses.asdict(resolve(keys, 300))) == {}
    keys.optim.peak_lr = 1e-3
    keys.model.residual_dropout = 0.1
    assert differences(old, dataclasses.asdict(resolve(keys, 300))) == {
        "optim.peak_lr": (6e-4, 1e-3),
        "model.residual_dropout": (0.0, 0.1),
        # Each part of a batch draws its own dropout mask.
        "train.accumulation_steps": (1, 2),
    }


def test_parts_of_a_batch_are_balanced_apart():
    keys = base()
    keys.model.num_experts = 4
    old = dataclasses.asdict(resolve(keys, 300))
    keys.train.accumulation_steps = 2
    new = dataclasses.asdict(resolve(keys, 300))
    assert [*differences(old, new)] == ["train.accumulation_steps"]


def test_a_key_of_another_version_is_a_difference():
    config = dataclasses.asdict(resolve(base(), 300))
    newer = {**config, "optim": {**config["optim"], "nesterov": True}}
    assert differences(config, newer) == {"optim.nesterov": (None, True)}
    assert differences(newer, config) == {"optim.nesterov": (True, None)}


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}
