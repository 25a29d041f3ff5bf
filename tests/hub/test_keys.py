"""config.json of every family, in old and new forms, and back."""

import dataclasses
import json
import math

import pytest

from lm.config import build
from lm.errors import UserError
from lm.hub.families import FAMILIES
from lm.hub.family import obstacles, read_keys, write_keys
from lm.hub.keys import pattern_of
from lm.nn.config import TransformerConfig


def read(family, **content):
    keys = read_keys(FAMILIES[family], content)
    return build(TransformerConfig, {**keys, "param_dtype": "float32", "compute_dtype": "float32"})


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_read_is_written_and_read_again(name):
    """Of a config.json that says nothing: transformers' defaults, which are a published model's."""
    family = FAMILIES[name]
    # But for Switch's, whose layers with experts lm has no word for: the released ones are these.
    sparse = dict.fromkeys(("num_sparse_encoder_layers", "num_sparse_decoder_layers"), 6)
    config = read(name, **(sparse if name == "switch_transformers" else {}))
    content = json.loads(json.dumps(write_keys(family, config)))
    assert read(name, **content) == config
    assert obstacles(family, config) == []


YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": "none"}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 70}}, {"rope_theta": 70.0}),
        (
            {"rope_theta": 3.0, "rope_scaling": {"type": "linear", "factor": 2}},
            {"rope_theta": 3.0, "rope_scaling": "linear", "rope_factor": 2.0},
        ),
        (
            {"rope_parameters": {**YARN, "rope_theta": 10.0}},
            {
                "rope_scaling": "yarn",
                "rope_original_positions": 4096,
                "rope_attention_factor": 0.1 * math.log(40) + 1,
                "rope_mscale": 0.0,
                "rope_beta_fast": 32.0,
                "rope_truncate": True,
            },
        ),
        ({"rope_scaling": {**YARN, "attention_factor": 1.5}}, {"rope_attention_factor": 1.5}),
        (
            {"rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
            {"rope_attention_factor": 1.0, "rope_mscale": 0.0},
        ),
    ],
)
def test_both_schemas_of_rotary_positions(content, keys):
    config = read("llama", **content)
    assert {key: getattr(config, key) for key in keys} == keys
    written = json.loads(json.dumps(write_keys(FAMILIES["llama"], config)))
    assert read("llama", **written) == config
    # Readers of either schema alone find the same.
    for missing in ("rope_parameters", "rope_scaling"):
        old = {key: value for key, value in written.items() if key != missing}
        assert read("llama", **old) == config


def test_deepseek_scales_scores_too():
    rope = {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}
    config = read("deepseek_v2", rope_scaling=rope)
    assert (config.rope_mscale, config.rope_attention_factor) == (0.707, 1.0)
    scaling = write_keys(FAMILIES["deepseek_v2"], config)["rope_scaling"]
    assert (scaling["mscale"], scaling["mscale_all_dim"]) == (0.707, 0.707)
    assert obstacles(
        FAMILIES["llama"], dataclasses.replace(read("llama", rope_scaling=YARN), rope_mscale=1.0)
    )


def test_gemma3_has_parameters_for_each_kind_of_layer():
    config = read(
        "gemma3_text",
        rope_theta=7e5,
        rope_local_base_freq=9e3,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )
    assert (config.rope_theta, config.rope_theta_local, config.rope_factor) == (7e5, 9e3, 8.0)
    assert config.attention_pattern == "local,local,local,local,local,full"
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 7e5}
    local = {"rope_type": "default", "rope_theta": 9e3}
    new = {"full_attention": full, "sliding_attention": local}
    assert write_keys(FAMILIES["gemma3_text"], config)["rope_parameters"] == new
    assert read("gemma3_text", rope_parameters=new) == config
    with pytest.raises(UserError, match="of sliding_attention must be 'default'"):
        read("gemma3_text", rope_parameters={"sliding_attention": {**full}})


@pytest.mark.parametrize(
    ("kinds", "pattern"),
    [
        ("f", "full"),
        ("ll", "local"),
        ("lflfl", "local,full"),
        ("llfll", "local,local,full"),
        ("flll", "full,local,local,local"),
    ],
)
def test_the_shortest_pattern(kinds, pattern):
    assert pattern_of([kind == "l" for kind in kinds]) == pattern


def test_windows():
    full, sliding = "full_attention", "sliding_attention"
    assert read("mistral").window == 4096 and read("mistral").attention_pattern == "local"
    assert read("mistral", sliding_window=None).attention_pattern == "full"
    assert read("mixtral").window == 0
    sizes = {"num_hidden_layers": 3}
    config = read("gemma2", **sizes, layer_types=[full, full, sliding], sliding_window=9)
    assert (config.attention_pattern, config.window) == ("full,full,local", 9)
    assert write_keys(FAMILIES["gemma2"], config)["layer_types"] == [full, full, sliding]
    assert read("gemma2", **sizes, layer_types=[full] * 3).window == 0
    assert read("qwen2", sliding_window=9).window == 0
    qwen = {**sizes, "use_sliding_window": True, "max_window_layers": 2}
    assert read("qwen2", **qwen).attention_pattern == "full,full,local"
    assert read("gpt_neo", num_layers=2, attention_types=[[["local"], 2]]).window == 256
    config = read("gpt_neo", num_layers=3, attention_types=[[["global"], 1], [["local"], 2]])
    assert config.attention_pattern == "full,local,local"
    for told, family, content in (
        ("layer_types=.* for 3 layers", "gemma2", {**sizes, "layer_types": [full] * 2}),
        ("layer_types=.* must list", "gemma2", {**sizes, "layer_types": [full, full, "chunked"]}),
        ("sliding_window=0 must be", "mistral", {"sliding_window": 0}),
        ("use_sliding_window=1 must be true", "qwen2", {"use_sliding_window": 1}),
        ("attention_types=.* for 2 layers", "gpt_neo", {"num_layers": 2}),
        ("attention_types=7 must list", "gpt_neo", {"attention_types": 7}),
    ):
        with pytest.raises(UserError, match=told):
            read(family, **content)


def test_values_of_null():
    assert (read("gemma2").logit_cap, read("gemma2").attention_cap) == (30.0, 50.0)
    config = read("gemma2", final_logit_softcapping=None, attn_logit_softcapping=None)
    assert (config.logit_cap, config.attention_cap) == (0.0, 0.0)
    assert write_keys(FAMILIES["gemma2"], config)["final_logit_softcapping"] is None
    assert read("deepseek_v2").query_latent == 1536
    assert read("deepseek_v2", q_lora_rank=None).query_latent == 0


def test_values_that_are_computed():
    assert read("gemma2", query_pre_attn_scalar=144).attention_scale == 1 / 12
    assert read("gemma").embedding_scale == 3072**0.5
    config = read("deepseek_v2", n_shared_experts=2, moe_intermediate_size=10)
    assert (config.shared_expert_d_ff, config.head_width) == (20, 192)
    told = obstacles(FAMILIES["deepseek_v2"], dataclasses.replace(config, shared_expert_d_ff=25))
    assert told == ["model.shared_expert_d_ff=25 would become 20"]
    config = read("deepseek_v2", topk_method="group_limited_greedy", n_group=8, topk_group=3)
    assert (config.router_groups, config.router_groups_kept) == (8, 3)
    assert read("deepseek_v2", n_group=8, topk_group=3).router_groups == 1


def test_an_architecture_says_which_heads_there_are():
    for name, head, pooler, pair in (
        ("BertForPreTraining", "transform", True, True),
        ("BertForMaskedLM", "transform", False, False),
        ("BertModel", "none", True, False),
    ):
        config = read("bert", architectures=[name])
        assert (config.head, config.pooler, config.next_sentence) == (head, pooler, pair)
        assert write_keys(FAMILIES["bert"], config)["architectures"] == [name]
    assert read("bert").next_sentence  # all that there is, where it is not said
    # A pooler under a masked model's head is of no architecture of theirs.
    config = dataclasses.replace(read("roberta"), pooler=True)
    (told,) = obstacles(FAMILIES["roberta"], config)
    assert told == "model.pooler=True would become False"


def test_t5_is_tied_and_scaled_or_neither():
    """Up to transformers 4 one key says both; 5 writes that all are tied, and scaled apart."""
    for content, tied, scale in (
        ({}, True, 512**-0.5),
        ({"tie_word_embeddings": False}, False, 1.0),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, True, 1.0),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": False}, False, 1.0),
    ):
        config = read("t5", **content)
        assert (config.tied_embedding, config.logit_scale) == (tied, scale)
        assert read("t5", **write_keys(FAMILIES["t5"], config)) == config
    for name, activation in (("relu", "relu"), ("gated-gelu", "gelu_tanh"), ("gated-silu", "silu")):
        config = read("t5", feed_forward_proj=name)
        assert (config.activation, config.gated) == (activation, name != "relu")
        assert write_keys(FAMILIES["t5"], config)["feed_forward_proj"] == name
    ungated = dataclasses.replace(config, gated=False)
    assert obstacles(FAMILIES["t5"], ungated) == ["model.gated=False would become True"]


def test_rows_of_positions():
    assert (read("bart").max_positions, read("bart").position_offset) == (1026, 2)
    assert write_keys(FAMILIES["bart"], read("bart"))["max_position_embeddings"] == 1024
    roberta = read("roberta", max_position_embeddings=514, pad_token_id=1)
    assert (roberta.max_positions, roberta.position_offset) == (514, 2)
    assert write_keys(FAMILIES["roberta"], roberta)["pad_token_id"] == 1
    assert read("roberta", pad_token_id=0).position_offset == 1


def test_windows_of_encoders():
    config = read("longformer", attention_window=[6] * 12)
    assert (config.window, config.attention_pattern) == (6, "local")
    assert read("longformer", attention_window=6) == config
    odd = read("longformer", attention_window=7)
    assert obstacles(FAMILIES["longformer"], odd) == ["attention_window=7 must be even"]
    modern = read("modernbert", global_attn_every_n_layers=2, global_rope_theta=5e4)
    assert (modern.attention_pattern, modern.window) == ("full,local", 128)
    assert (modern.rope_theta, modern.rope_theta_local) == (5e4, 1e4)
    content = write_keys(FAMILIES["modernbert"], modern)
    assert content["layer_types"][:2] == ["full_attention", "sliding_attention"]
    assert (content["global_rope_theta"], content["local_rope_theta"]) == (5e4, 1e4)


def test_what_a_model_does_not_use_is_no_obstacle():
    config = dataclasses.replace(read("llama"), router_scale=2.0, experts_per_token=3, window=0)
    assert obstacles(FAMILIES["llama"], config) == []
    config = dataclasses.replace(read("gemma2"), attention_pattern="local,full,local,full")
    assert obstacles(FAMILIES["gemma2"], config) == []
    assert obstacles(FAMILIES["gpt2"], dataclasses.replace(read("gpt2"), rope_theta=3.0)) == []


@pytest.mark.parametrize(
    ("family", "content", "message"),
    [
        ("deepseek_v3", {"quantization_config": {"quant_method": "fp8"}}, "quantized.*'fp8'"),
        ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}, "save_pretrained"),
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit=5.0, only with swiglu_limit=7.0"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm=True, only with"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave=False"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers=\[1\]"),
        ("gemma", {"use_bidirectional_attention": True}, "only without"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method='noaux_tc'"),
        ("bert", {"position_embedding_type": "relative_key"}, "='relative_key', only with"),
        ("bert", {"is_decoder": True}, "is_decoder=True, only with is_decoder=false"),
        ("bert", {"tie_word_embeddings": False}, "only with tie_word_embeddings=true"),
        ("roberta", {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("longformer", {"attention_window": [4, 8] * 6}, "has one width for all 12 layers"),
        ("longformer", {"attention_window": []}, "one width for all 12 layers"),
        ("modernbert", {"decoder_bias": False}, "decoder_bias=False, only with"),
        ("modernbert", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.type"),
        ("modernbert", {"classifier_bias": True}, "classifier_bias makes .*one for both"),
        ("t5", {"feed_forward_proj": "gated-relu"}, "feed_forward_proj='gated-relu'"),
        ("switch_transformers", {"router_dtype": "bfloat16"}, "router_dtype='bfloat16'"),
        ("switch_transformers", {"num_sparse_decoder_layers": 6}, "num_sparse_decoder_layers"),
        ("switch_transformers", {"num_sparse_encoder_layers": 0}, "0 must be a whole number"),
        ("bart", {"decoder_ffn_dim": 8}, "decoder_ffn_dim makes model.d_ff=8, .* 4096; lm has one"),
        ("bart", {"encoder_attention_heads": 8}, "decoder_attention_heads makes"),
        ("marian", {"decoder_vocab_size": 9}, "decoder_vocab_size makes model.vocab_size=9"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "only with share_"),
    ],
)
def test_what_lm_does_not_have_is_refused(family, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read(family, **content)
    assert "\n" not in str(caught.value)
