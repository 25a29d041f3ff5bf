"""Import and export against hand-written lists of names and shapes, and every bad folder's line.

The numbers are compared with transformers' in tests/parity.
"""

import json
import math
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm.errors import UserError
from lm.hub import convert, files
from lm.hub.convert import export_model, import_model
from lm.hub.families import FAMILIES
from lm.hub.family import read_keys
from lm.mesh import make_mesh
from lm.model import LanguageModel, skeleton
from lm.nn.attention import BACKENDS
from lm.nn.params import abstract_parameters, count_parameters

GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 14,
    "n_positions": 10,
    "n_embd": 8,
    "n_layer": 3,
    "n_head": 2,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 14,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "rms_norm_eps": 1e-5,
}


def gpt2_shapes(layers=3):
    """Names and shapes as GPT2LMHeadModel saves them: V 14, P 10, D 8, F 32."""
    shapes = {
        "transformer.wte.weight": (14, 8),
        "transformer.wpe.weight": (10, 8),
        "transformer.ln_f.weight": (8,),
        "transformer.ln_f.bias": (8,),
    }
    for layer in range(layers):
        names = {
            "ln_1.weight": (8,),
            "ln_1.bias": (8,),
            "attn.c_attn.weight": (8, 24),
            "attn.c_attn.bias": (24,),
            "attn.c_proj.weight": (8, 8),
            "attn.c_proj.bias": (8,),
            "ln_2.weight": (8,),
            "ln_2.bias": (8,),
            "mlp.c_fc.weight": (8, 32),
            "mlp.c_fc.bias": (32,),
            "mlp.c_proj.weight": (32, 8),
            "mlp.c_proj.bias": (8,),
        }
        shapes |= {f"transformer.h.{layer}.{name}": shape for name, shape in names.items()}
    return shapes


def llama_shapes(layers=2):
    """Names and shapes as LlamaForCausalLM saves them: V 14, D 8, N 4, K 2, H 6, F 12."""
    shapes = {
        "model.embed_tokens.weight": (14, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (14, 8),
    }
    for layer in range(layers):
        names = {
            "input_layernorm": (8,),
            "self_attn.q_proj": (24, 8),
            "self_attn.k_proj": (12, 8),
            "self_attn.v_proj": (12, 8),
            "self_attn.o_proj": (8, 24),
            "post_attention_layernorm": (8,),
            "mlp.gate_proj": (12, 8),
            "mlp.up_proj": (12, 8),
            "mlp.down_proj": (8, 12),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in names.items()}
    return shapes


CASES = {"gpt2": (GPT2, gpt2_shapes), "llama": (LLAMA, llama_shapes)}


def random_tensors(shapes, dtype=np.float32):
    random = np.random.default_rng(0)
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(params=CASES)
def hub(request, tmp_path):
    """(config, tensors, folder) of a random model."""
    config, shapes = CASES[request.param]
    tensors = random_tensors(shapes())
    return config, tensors, write(tmp_path / "hub", config, tensors)


@pytest.fixture
def gpt2(tmp_path):
    tensors = random_tensors(gpt2_shapes())
    return tensors, write(tmp_path / "hub", GPT2, tensors)


def equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_gpt2s_tensors_lie_where_they_should(gpt2):
    tensors, folder = gpt2
    params = import_model(folder).params
    attention = params["layers"]["attention"]
    for layer in range(3):
        fused = tensors[f"transformer.h.{layer}.attn.c_attn.weight"]
        bias = tensors[f"transformer.h.{layer}.attn.c_attn.bias"]
        for number, name in enumerate(("query_DNH", "key_DKH", "value_DKH")):
            for head in range(2):
                columns = slice(8 * number + 4 * head, 8 * number + 4 * head + 4)
                equal(attention[name][layer, :, head], fused[:, columns])
                vector = name.replace("_D", "_bias_")
                equal(attention[vector][layer, head], bias[columns])
        output = tensors[f"transformer.h.{layer}.attn.c_proj.weight"]
        equal(attention["output_NHD"][layer, 1, 2], output[4 + 2])
        equal(
            params["layers"]["feedforward"]["up_DF"][layer],
            tensors[f"transformer.h.{layer}.mlp.c_fc.weight"],
        )
    equal(params["embed"]["table_VD"], tensors["transformer.wte.weight"])
    assert "head" not in params


def test_llamas_tensors_lie_where_they_should(tmp_path):
    tensors = random_tensors(llama_shapes())
    params = import_model(write(tmp_path / "hub", LLAMA, tensors)).params
    layer = params["layers"]
    query, value = (tensors[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qv")
    equal(layer["attention"]["query_DNH"][1, 5, 3, 2], query[3 * 6 + 2, 5])
    equal(layer["attention"]["value_DKH"][1, 7, 1, 4], value[1 * 6 + 4, 7])
    output = tensors["model.layers.0.self_attn.o_proj.weight"]
    equal(layer["attention"]["output_NHD"][0, 2, 3, 1], output[1, 2 * 6 + 3])
    equal(layer["feedforward"]["gate_DF"][1], tensors["model.layers.1.mlp.gate_proj.weight"].T)
    after = tensors["model.layers.0.post_attention_layernorm.weight"]
    equal(layer["feedforward_norm"]["scale_D"][0], after)
    equal(params["head"]["kernel_DV"], tensors["lm_head.weight"].T)


def test_an_export_is_what_was_imported(hub, tmp_path):
    config, tensors, folder = hub
    model = import_model(folder)
    assert export_model(model, tmp_path / "out") == config["model_type"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    equal(load_file(tmp_path / "out" / "model.safetensors"), tensors)
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {key: content[key] for key in config} == config
    again = import_model(tmp_path / "out")
    assert again.config == model.config
    equal(again.params, model.params)
    # All its files may be read by whom a new file may be read by.
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in [*(tmp_path / "out").iterdir(), tmp_path / "plain"]}
    assert len(modes) == 1


def test_an_export_in_shards(hub, tmp_path):
    _, tensors, folder = hub
    out = tmp_path / "out"
    export_model(import_model(folder), out, max_shard_size=1100)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    for shard in shards:
        content = load_file(shard)
        assert len(content) == 1 or sum(array.nbytes for array in content.values()) <= 1100
        assert all(index["weight_map"][name] == shard.name for name in content)
        equal(content, {name: tensors[name] for name in content})
    assert {*index["weight_map"]} == {*tensors}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    equal(import_model(out).params, import_model(folder).params)


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2, "data": 2}, {"fsdp": 8}])
def test_a_model_on_a_mesh(hub, sizes, tmp_path):
    _, _, folder = hub
    mesh = make_mesh(**{"data": 1, **sizes})
    model, one = import_model(folder, mesh), import_model(folder)
    equal(model.params, one.params)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_parameters(model.module, mesh))
    assert jax.tree.map(lambda leaf: leaf.sharding, model.params) == places
    export_model(model, tmp_path / "out")
    equal(import_model(tmp_path / "out").params, one.params)


def test_the_files_dtype_stays(tmp_path):
    tensors = random_tensors(gpt2_shapes(), ml_dtypes.bfloat16)
    folder = write(tmp_path / "hub", GPT2, tensors)
    model = import_model(folder, compute_dtype="bfloat16")
    assert (model.config.param_dtype, model.config.compute_dtype) == ("bfloat16", "bfloat16")
    export_model(model, tmp_path / "out")
    equal(load_file(tmp_path / "out" / "model.safetensors"), tensors)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    tensors["transformer.ln_f.bias"] = tensors["transformer.ln_f.bias"].astype(np.float16)
    model = import_model(write(folder, GPT2, tensors))
    assert model.config.param_dtype == "float32"
    equal(model.params["embed"]["table_VD"], tensors["transformer.wte.weight"].astype(np.float32))


def test_the_hubs_own_gpt2_has_no_prefix_and_masks(gpt2):
    tensors, folder = gpt2
    expected = import_model(folder).params
    bare = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    for layer in range(3):
        bare[f"h.{layer}.attn.bias"] = np.ones((1, 1, 10, 10), bool)
    bare["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    equal(import_model(write(folder, GPT2, bare)).params, expected)


def test_a_tied_head(gpt2):
    tensors, folder = gpt2
    expected = import_model(folder)
    assert expected.config.tied_embedding
    table = tensors["transformer.wte.weight"]
    again = import_model(write(folder, GPT2, {**tensors, "lm_head.weight": table}))
    assert again.config == expected.config
    equal(again.params, expected.params)
    only = {name: array for name, array in tensors.items() if name != "transformer.wte.weight"}
    equal(import_model(write(folder, GPT2, {**only, "lm_head.weight": table})).params, again.params)
    # As transformers does: what differs is not tied, whatever config.json says.
    other = import_model(write(folder, GPT2, {**tensors, "lm_head.weight": table + 1}))
    assert not other.config.tied_embedding
    equal(other.params["head"]["kernel_DV"], (table + 1).T)


PUBLISHED = [
    ({"model_type": "gpt2"}, 124_439_808),
    ({"model_type": "gpt2", "n_layer": 24, "n_embd": 1024, "n_head": 16}, 354_823_168),
    ({"model_type": "gpt2", "n_layer": 36, "n_embd": 1280, "n_head": 20}, 774_030_080),
    ({"model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25}, 1_557_611_200),
    ({"model_type": "llama"}, 6_738_415_616),
    (
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "rope_theta": 500000.0,
        },
        8_030_261_248,
    ),
    (
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "rope_theta": 500000.0,
        },
        70_553_706_496,
    ),
]


@pytest.mark.parametrize(("content", "count"), PUBLISHED)
def test_published_configs_have_the_published_number_of_parameters(content, count):
    """What the hub's config.json leave out is transformers' default."""
    family = FAMILIES[content["model_type"]]
    keys = read_keys(family, content) | {"param_dtype": "float32", "compute_dtype": "float32"}
    config = convert.build(convert.TransformerConfig, keys)
    assert count_parameters(skeleton(config)[0]) == count
    tensors = convert._slots(family, config)
    assert sum(math.prod(slot.shape()) for slot in tensors) == count


BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 14,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 10,
}


def bert_tensors(prefix=""):
    """Of BertForPreTraining as it saves them, or of BertModel: V 14, P 10, D 8, F 12."""
    layer, norms = "encoder.layer.0.", {"weight": (8,), "bias": (8,)}
    shapes = {f"embeddings.LayerNorm.{name}": shape for name, shape in norms.items()}
    for name, rows in (("word", 14), ("position", 10), ("token_type", 2)):
        shapes[f"embeddings.{name}_embeddings.weight"] = (rows, 8)
    linears = {f"attention.self.{name}": (8, 8) for name in ("query", "key", "value")}
    linears |= {"attention.output.dense": (8, 8), "intermediate.dense": (12, 8)}
    linears = {layer + name: shape for name, shape in linears.items()}
    linears |= {layer + "output.dense": (8, 12), "pooler.dense": (8, 8)}
    for part in ("attention.output", "output"):
        shapes |= {f"{layer}{part}.LayerNorm.{name}": shape for name, shape in norms.items()}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    if prefix:
        start = "cls.predictions."
        shapes |= {start + "transform.dense.weight": (8, 8), start + "transform.dense.bias": (8,)}
        shapes |= {f"{start}transform.LayerNorm.{name}": shape for name, shape in norms.items()}
        shapes |= {start + "bias": (14,)}
        shapes |= {"cls.seq_relationship.weight": (2, 8), "cls.seq_relationship.bias": (2,)}
    return random_tensors(shapes)


def test_a_model_without_a_head_has_names_without_prefix(tmp_path):
    tensors = bert_tensors()
    model = import_model(write(tmp_path / "hub", BERT, tensors))
    assert model.config.head == "none" and "head" not in model.params
    export_model(model, tmp_path / "out")
    equal(load_file(tmp_path / "out" / "model.safetensors"), tensors)


def test_heads_that_config_json_does_not_name_are_left_out(tmp_path):
    tensors = bert_tensors("bert.")
    for name, lacks in (
        ("BertForPreTraining", ()),
        ("BertForMaskedLM", ("pooler", "next_sentence")),
        ("BertModel", ("head", "next_sentence")),
    ):
        folder = write(tmp_path / "hub", {**BERT, "architectures": [name]}, tensors)
        assert not {*lacks} & {*import_model(folder).params}
    refused(write(folder, BERT, {**tensors, "bert.extra": np.zeros(2, np.float32)}), "extra")


def test_tensors_that_are_there_twice(tmp_path):
    tensors, content = bert_tensors("bert."), without(BERT, "architectures")
    expected = import_model(write(tmp_path / "hub", content, tensors)).params
    bias = tensors["cls.predictions.bias"]
    twice = {**tensors, "cls.predictions.decoder.bias": bias}
    equal(import_model(write(tmp_path / "hub", content, twice)).params, expected)
    equal(
        import_model(
            write(tmp_path / "hub", content, without(twice, "cls.predictions.bias"))
        ).params,
        expected,
    )
    twice["cls.predictions.decoder.bias"] = bias + 1
    refused(
        write(tmp_path / "hub", content, twice), "decoder.bias and cls.predictions.bias are one"
    )


def without(mapping, *names):
    return {key: value for key, value in mapping.items() if key not in names}


BAD_CONFIGS = {
    "unknown architecture": (
        {"architectures": ["MambaForCausalLM"], "model_type": "mamba"},
        "MambaForCausalLM.*GPT2LMHeadModel.*LlamaForCausalLM",
    ),
    "another head": ({"architectures": ["GPT2ForSequenceClassification"]}, "cannot import"),
    "type and architecture": ({"model_type": "llama"}, "cannot import"),
    "architectures of no list": ({"architectures": 3}, "cannot import"),
    "a text for a size": ({"n_embd": "8"}, "n_embd='8' must be a whole number"),
    "no layers": ({"n_layer": 0}, "n_layer=0 must be a whole number, 1 or more"),
    "no heads": ({"n_head": 0}, "n_head=0 must be"),
    "a bool for a size": ({"n_head": True}, "n_head=True must be"),
    "odd heads": ({"n_head": 3}, "num_heads=3 must divide d_model=8"),
    "activation": ({"activation_function": "mish"}, "activation_function='mish'"),
    "a list of activations": ({"activation_function": ["relu"]}, "activation_function="),
    "infinite": ({"layer_norm_epsilon": math.inf}, "layer_norm_epsilon=inf must be a finite"),
    "negative dropout": ({"attn_pdrop": -1}, "attention_dropout=-1.0 is not possible"),
    "scaled by layer": (
        {"scale_attn_by_inverse_layer_idx": True},
        "gpt2 with scale_attn_by_inverse_layer_idx=True, only with .*=false",
    ),
    "unscaled": ({"scale_attn_weights": False}, "with scale_attn_weights=False, only"),
    "cross attention": ({"add_cross_attention": True}, "with add_cross_attention=True, only"),
    "quantized": (
        {"quantization_config": {"quant_method": "fp8"}},
        "quantized .*quant_method='fp8'.*save_pretrained",
    ),
    "more layers": ({"n_layer": 4}, r"transformer.h.3.attn.c_attn.bias \(24,\) is missing.*8 more"),
    "very many layers": ({"n_layer": 10**9}, "1000000000 layers, but all files hold 40 tensors"),
    "fewer layers": (
        {"n_layer": 2},
        r"transformer.h.2.attn.c_attn.bias \(24,\) is no tensor of this gpt2",
    ),
    "another width": (
        {"n_embd": 16},
        r"transformer.h.0.attn.c_attn.bias is \(24,\), by config.json it is \(48,\)",
    ),
    "another vocabulary": (
        {"vocab_size": 15},
        r"transformer.wte.weight is \(14, 8\), by config.json it is \(15, 8\)",
    ),
    "untied": ({"tie_word_embeddings": False}, r"lm_head.weight \(14, 8\) is missing"),
}
BAD_LLAMA_CONFIGS = {
    "scaled positions": ({"rope_scaling": {"rope_type": "dynamic"}}, "rope_type='dynamic'"),
    "positions scaled by nothing": ({"rope_scaling": {"type": "linear"}}, "'linear' need factor"),
    "scaled by a text": (
        {"rope_parameters": {"rope_type": "yarn", "factor": "8"}},
        "factor='8' must be a finite number",
    ),
    "unknown positions": (
        {"rope_parameters": {"rope_theta": 1e4, "short_factor": [1.0]}},
        r"no rotary positions with short_factor=\[1.0\], only without",
    ),
    "rotated in part": (
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        "partial_rotary_factor=0.5",
    ),
    "positions of no object": ({"rope_scaling": 8}, "rope_scaling=8 must be an object"),
    "biases": ({"attention_bias": True}, r"o_proj.bias \(8,\) is missing"),
    "theta": ({"rope_theta": "big"}, "rope_theta='big' must be a finite number"),
    "heads": ({"num_key_value_heads": 3}, "num_kv_heads=3 does not divide"),
    "odd heads": ({"head_dim": 5}, "head_width=5 is odd"),
    "width": ({"num_attention_heads": 6}, "num_heads=6 must divide d_model=8"),
}


def refused(folder, message):
    """The folder cannot be imported, for a reason of one line."""
    with pytest.raises(UserError, match=f"(?s){message}") as caught:
        import_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_bad_gpt2_config(gpt2, name):
    tensors, folder = gpt2
    change, message = BAD_CONFIGS[name]
    told = refused(write(folder, {**GPT2, **change}, tensors), message)
    assert str(folder) in told


@pytest.mark.parametrize("name", BAD_LLAMA_CONFIGS)
def test_a_bad_llama_config(tmp_path, name):
    change, message = BAD_LLAMA_CONFIGS[name]
    folder = write(tmp_path / "hub", {**LLAMA, **change}, random_tensors(llama_shapes()))
    assert str(folder / "config.json") in refused(folder, message) or name == "biases"


def test_no_config_names_both_types(gpt2):
    tensors, folder = gpt2
    for names in ("model_type",), ("architectures",):
        import_model(write(folder, without(GPT2, *names), tensors))
    refused(write(folder, without(GPT2, "model_type", "architectures"), tensors), "model_type=None")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is not JSON"), ("[1]", "no JSON object"), ("{" * 9, "is not JSON")],
)
def test_a_config_that_is_not_one(gpt2, content, message):
    _, folder = gpt2
    (folder / "config.json").write_text(content)
    refused(folder, message)
    (folder / "config.json").unlink()
    refused(folder, "there is no .*config.json")


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_truncated_safetensors(gpt2, keep):
    _, folder = gpt2
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, "model.safetensors is truncated or is no safetensors file")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4000000000000]}}',
        b'{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"O","shape":[2],"data_offsets":[0,8]}}',
        b"[" * 66,
    ],
)
def test_malicious_safetensors(gpt2, header):
    _, folder = gpt2
    content = struct.pack("<Q", len(header)) + header + b"\0" * 8
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "is truncated or is no safetensors file")
    (folder / "model.safetensors").write_bytes(b"\xff" * 8 + header)
    refused(folder, "is truncated or is no safetensors file")


def test_missing_extra_and_misshapen_tensors_in_one_line(gpt2):
    tensors, folder = gpt2
    bad = without(tensors, "transformer.ln_f.bias")
    bad["transformer.h.0.extra"] = np.zeros((2, 5), np.float32)
    bad["transformer.wpe.weight"] = np.zeros((8, 10), np.float32)
    told = refused(write(folder, GPT2, bad), "do not fit")
    assert "transformer.ln_f.bias (8,) is missing" in told
    assert "transformer.h.0.extra (2, 5) is no tensor of this gpt2" in told
    assert "transformer.wpe.weight is (8, 10), by config.json it is (10, 8)" in told


def test_tensors_of_another_kind(gpt2):
    tensors, folder = gpt2
    bad = {**tensors, "transformer.wpe.weight": np.zeros((10, 8), np.int8)}
    refused(write(folder, GPT2, bad), "transformer.wpe.weight is of dtype I8")
    bad = {**tensors, "ln_f.bias": tensors["transformer.ln_f.bias"]}
    refused(write(folder, GPT2, bad), "holds both 'transformer.ln_f.bias' and")
    wide = {name: array.astype(np.float64) for name, array in tensors.items()}
    refused(write(folder, GPT2, wide), "JAX_ENABLE_X64=1")
    refused(write(folder, GPT2, {}), "hold no tensor")


def test_no_safetensors(gpt2):
    _, folder = gpt2
    (folder / "model.safetensors").unlink()
    refused(folder, "has neither model.safetensors nor")
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, "pytorch_model.bin is a pickle, which lm never reads")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": {"a": 3}}, "has no weight_map"),
        ({"weight_map": {"a": "../hub/model.safetensors"}}, "not a file of its folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "not a file of its folder"),
        ({"weight_map": {"a": "other.safetensors"}}, "'other.safetensors', which is missing"),
        ({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}, "a second time"),
    ],
)
def test_a_bad_index(gpt2, index, message):
    tensors, folder = gpt2
    (folder / "model.safetensors").unlink()
    for name in ("1.safetensors", "2.safetensors"):
        save_file(tensors, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, message)


def changed(model, **keys):
    """A model without parameters of a changed config."""
    if "head_width" in keys:
        width = keys["head_width"]
        keys |= {"rope_width": width, "value_width": width, "attention_scale": width**-0.5}
    config = convert.dataclasses.replace(model.config, **keys)
    module, params = skeleton(config)
    return LanguageModel(config, module, params)


def test_what_a_family_cannot_express_is_refused(gpt2, tmp_path, monkeypatch):
    monkeypatch.setitem(BACKENDS, "mine", BACKENDS["plain"])
    model = import_model(gpt2[1])
    out = tmp_path / "out"

    def told(keys, family=None):
        with pytest.raises(UserError, match="cannot be exported") as caught:
            export_model(changed(model, **keys), out, family)
        assert not out.exists() and "\n" not in str(caught.value)
        return str(caught.value)

    line = told({"norm": "rms_norm"}, "gpt2")
    assert "as gpt2 model.norm='rms_norm' would become 'layer_norm'." in line
    line = told({"norm": "rms_norm"})
    assert "as llama model.position='learned' would become 'rope'" in line
    assert "model.norm_bias=False would become True" in told({"norm_bias": False}, "gpt2")
    assert "model.num_kv_heads=1" in told({"num_kv_heads": 1}, "gpt2")
    assert "model.head_width=6" in told({"head_width": 6}, "gpt2")
    assert "num_heads=2 must divide d_model=9" in told({"d_model": 9, "head_width": 4}, "gpt2")
    assert "model.parallel_block=True" in told({"parallel_block": True})
    assert "model.attention_backend='mine'" in told({"attention_backend": "mine"})
    assert "model.norm_placement='post'" in told({"norm_placement": "post"})
    llama = {"norm": "rms_norm", "norm_bias": False, "position": "rope", "gated": True}
    line = told({**llama, "attention_output_bias": False}, "llama")
    assert "model.attention_output_bias=False would become True" in line
    with pytest.raises(UserError, match="Did you mean 'gpt2'"):
        export_model(model, out, "gpt-2")


def test_an_export_appears_whole_or_not_at_all(gpt2, tmp_path, monkeypatch):
    model, out = import_model(gpt2[1]), tmp_path / "runs" / "out"
    (tmp_path / "runs" / "out.partial").mkdir(parents=True)  # of a process that was killed
    write_json = files.write_json

    def fail(path, content):
        write_json(path, content)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_json", fail)
        with pytest.raises(OSError, match="No space"):
            export_model(model, out)
    assert not any(out.parent.iterdir())
    export_model(model, out)
    content = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="is there already"):
        export_model(model, out)
    assert (out / "model.safetensors").read_bytes() == content
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_export_that_does_not_hold_the_model_is_no_export(gpt2, tmp_path, monkeypatch):
    model, save = import_model(gpt2[1]), files.save_file

    def flip(tensors, path, metadata):
        tensors["transformer.h.1.ln_2.bias"] = -tensors["transformer.h.1.ln_2.bias"]
        save(tensors, path, metadata)

    monkeypatch.setattr(files, "save_file", flip)
    with pytest.raises(RuntimeError, match="layers/feedforward_norm/bias_D is not in"):
        export_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_not_a_number_is_exported_too(gpt2, tmp_path):
    tensors, folder = gpt2
    tensors["transformer.ln_f.bias"][:2] = np.nan, -0.0
    export_model(import_model(write(folder, GPT2, tensors)), tmp_path / "out")
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again["transformer.ln_f.bias"].tobytes() == tensors["transformer.ln_f.bias"].tobytes()


def test_logits_are_finite(hub):
    model = import_model(hub[2])
    assert jnp.isfinite(model([[1, 2, 3]])).all()
