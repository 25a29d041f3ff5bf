"""Costs, beside published figures, the real model, and the products that its jaxpr holds."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from configs import gpt2, llama
from configs.base import base
from lm import flops
from lm.chips import peak_flops
from lm.config import resolve
from lm.mesh import make_mesh
from lm.nn.cache import empty_cache
from lm.nn.params import abstract_parameters, bind, count_parameters
from lm.nn.transformer import Transformer

PUBLISHED = {
    (gpt2, "small"): 124_439_808,
    (gpt2, "medium"): 354_823_168,
    (gpt2, "large"): 774_030_080,
    (gpt2, "xl"): 1_557_611_200,
    (llama, "llama2_7b"): 6_738_415_616,
    (llama, "llama3_8b"): 8_030_261_248,
    (llama, "llama3_70b"): 70_553_706_496,
}


def model(**changes):
    """A small TransformerConfig whose sizes all differ."""
    config = base()
    config.model.update(vocab_size=48, d_model=16, num_layers=3, num_heads=4, head_width=6, d_ff=40)
    config.model.update(max_positions=32)
    config.data.sequence_length = 32
    config.model.update(changes)
    return resolve(config).model


LATENT = {"position": "rope", "kv_latent": 8, "query_latent": 12, "rope_width": 2}
LATENT |= {"value_width": 4, "qkv_bias": False}
EXPERTS = {"num_experts": 4, "experts_per_token": 2, "expert_d_ff": 20, "dense_layers": 1}
EXPERTS |= {"shared_expert_d_ff": 12, "shared_expert_gate": True, "gated": True}
EXPERTS |= {"feedforward_bias": False, "router_selection_bias": True}
VARIANTS = (
    {},
    {"position": "rope", "norm": "rms_norm", "norm_bias": False, "gated": True},
    {"num_kv_heads": 2, "tied_embedding": False, "qkv_bias": False, "position": "sinusoid"},
    {"norm_placement": "sandwich", "feedforward_bias": False, "embedding_norm": True},
    {"norm_placement": "post", "final_norm": False, "attention_output_bias": False},
    {"norm_placement": "output", "gated": True},
    {"parallel_block": True, "num_kv_heads": 1, "position": "none"},
    {
        "attention_pattern": "local,full",
        "window": 8,
        "query_key_norm": "full",
        "attention_sinks": True,
        "position": "alibi",
    },
    {"position": "relative", "query_key_norm": "head"},
    LATENT,
    EXPERTS,
    {**EXPERTS, "dense_layers": 0, "experts_every": 2, "feedforward_bias": True},
)


@pytest.mark.parametrize(("family", "preset"), PUBLISHED)
def test_parameters_are_the_published_number(family, preset):
    config = resolve(family.get_config(preset)).model
    assert flops.parameter_count(config) == PUBLISHED[family, preset]
    assert sum(flops.parameter_parts(config).values()) == PUBLISHED[family, preset]


def test_what_stands_in_no_environment_is_counted_all_the_same():
    """Neither float64 without JAX_ENABLE_X64 nor someone's own attention changes a count."""
    elsewhere = model(param_dtype="float64", compute_dtype="float64", attention_backend="mine")
    assert flops.parameter_parts(elsewhere) == flops.parameter_parts(model())


@pytest.mark.parametrize("changes", VARIANTS)
def test_parts_are_the_whole(changes):
    config = model(**changes)
    count = count_parameters(Transformer(config))
    assert flops.parameter_count(config) == sum(flops.parameter_parts(config).values()) == count


def test_of_experts_a_token_meets_those_it_chooses():
    """By hand: 2 of 3 layers have 4 experts of 3 matrices, of which 2 are chosen."""
    config = model(**EXPERTS)
    unused = 2 * 2 * 3 * 16 * 20
    assert flops.parameter_count(config) - flops.active_parameter_count(config) == unused
    assert flops.active_parameter_count(model()) == flops.parameter_count(model())
    buffers = 2 * 4
    kept = flops.parameters_per_device(config)
    assert kept == flops.parameter_count(config) + buffers


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize(("fsdp", "tensor"), [(2, 1), (1, 4), (4, 2)])
def test_a_device_keeps_what_the_sharding_table_gives_it(changes, fsdp, tensor):
    config = model(**changes)
    mesh = make_mesh(fsdp=fsdp, tensor=tensor)
    real = abstract_parameters(Transformer(config), mesh)
    kept = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for _, leaf in _named(real))
    assert flops.parameters_per_device(config, fsdp, tensor) == kept


def _named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [("/".join(key.key for key in path), leaf) for path, leaf in leaves]


@pytest.mark.parametrize("changes", VARIANTS)
def test_flops_are_those_of_the_products_in_the_model(changes):
    """Plain attention multiplies all pairs of positions: T times decode_flops at a context of T."""
    config, length = model(scan_layers=False, **changes), 8
    module = Transformer(config)

    def forward(params, tokens_BT):
        return bind(module, params)(tokens_BT)

    tokens_BT = jax.ShapeDtypeStruct((1, length), jnp.int32)
    jaxpr = jax.make_jaxpr(forward)(abstract_parameters(module), tokens_BT)
    expected = flops.decode_flops_per_token(config, length)
    if config.kv_latent:  # without a cache, keys and values are computed for each head
        expected += 2 * 3 * 4 * length * (6 + 4 - 2 * 8 - 2)
    elif config.position == "relative":  # keys of the distances, which one sequence has for itself
        expected += 2 * 3 * 16 * 4 * 6
    assert _product_flops(jaxpr.jaxpr) == length * expected


def test_flops_of_a_latent_cache_are_those_of_the_products():
    config, length = model(scan_layers=False, **LATENT), 8
    module = Transformer(config)

    def decode(params, cache, token_BT):
        model, one_BT = bind(module, params), jnp.ones((1, 1), jnp.int32)
        hidden_BTD, _, _ = model.hidden(token_BT, positions=one_BT, segments=one_BT, cache=cache)
        return model.logits(hidden_BTD)

    cache = jax.eval_shape(lambda: empty_cache(config, 1, length))
    token_BT = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    jaxpr = jax.make_jaxpr(decode)(abstract_parameters(module), cache, token_BT)
    assert _product_flops(jaxpr.jaxpr) == flops.decode_flops_per_token(config, length)


def _product_flops(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        name, shapes = equation.primitive.name, [var.aval.shape for var in equation.invars]
        inner = [_product_flops(part) for part in jaxprs_in_params(equation.params)]
        if name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            depth = math.prod(shapes[0][dim] for dim in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        elif name == "ragged_dot_general":
            total += 2 * math.prod(shapes[0]) * shapes[1][-1]
        # Of a choice by platform that with the instruction: in the other is one step of a loop.
        total += max(inner, default=0) if name == "cond" else sum(inner)
    return total


def test_training_is_three_forward_passes_of_causal_attention():
    config = model()
    half = flops.decode_flops_per_token(config, 16)
    assert flops.forward_flops_per_token(config, 32) == half
    assert flops.training_flops_per_token(config, 32) == 3 * half


def test_a_window_bounds_what_a_token_sees():
    """The first 8 of 32 tokens see half of themselves and all before, the others 8 tokens."""
    config, wide = model(attention_pattern="local,local,full", window=8), model()
    pair, seen = 4 * 4 * 6, (sum(i + 0.5 for i in range(8)) + 24 * 8) / 32
    found = flops.forward_flops_per_token(wide, 32) - flops.forward_flops_per_token(config, 32)
    assert found == 2 * pair * (16 - seen)
    decode = flops.decode_flops_per_token(config, 5), flops.decode_flops_per_token(config, 20)
    assert decode[1] - decode[0] == pair * (2 * 3 + 15)
    key_and_value = 2 * 4 * 6 * 4
    assert flops.cache_bytes(config, 20) == key_and_value * (8 + 8 + 20)
    assert flops.cache_bytes_per_token(config) == key_and_value * 3


def test_a_second_token_is_predicted_in_training_alone():
    """By hand: a projection, a layer like the last, and the head again."""
    config, with_it = model(**EXPERTS), model(**EXPERTS, mtp_depth=1)
    attention = 4 * 16 * 4 * 6
    experts = 16 * 4 + 3 * 16 * (2 * 20 + 12) + 16
    more = 2 * 16 * 16 + attention + experts + 48 * 16
    trained = [flops.training_flops_per_token(each, 32) for each in (with_it, config)]
    assert trained[0] - trained[1] == 6 * more + 6 * 4 * 6 * 32
    for count in (flops.forward_flops_per_token, flops.decode_flops_per_token):
        assert count(config, 32) == count(with_it, 32)


def test_palm_reports_the_utilisation_that_palm_reported():
    """arXiv:2204.02311: 238.3 K tokens/s of 540.35 B parameters on 6144 v4 chips: 46.2 %."""
    sizes = {"vocab_size": 256_000, "d_model": 18432, "num_layers": 118, "d_ff": 4 * 18432}
    heads = {"num_heads": 48, "num_kv_heads": 1, "head_width": 256, "position": "rope"}
    block = {"gated": True, "parallel_block": True}
    without = ("norm_bias", "qkv_bias", "attention_output_bias", "feedforward_bias")
    config = model(**sizes, **heads, **block, **dict.fromkeys(without, False))
    assert flops.parameter_count(config) == 540_356_474_880
    achieved = 238_300 * flops.training_flops_per_token(config, 2048, "palm")
    assert achieved / (6144 * peak_flops("TPU v4", "bfloat16")) == pytest.approx(0.462, abs=5e-4)
    without = 238_300 * flops.training_flops_per_token(config, 2048, "chinchilla")
    assert without / (6144 * peak_flops("TPU v4", "bfloat16")) == pytest.approx(0.457, abs=5e-4)


def test_6nd_is_what_gpt3_reported():
    """arXiv:2005.14165, table D.1: 3.14e23 FLOPs for 300 B tokens with 175 B parameters."""
    sizes = {"vocab_size": 50257, "max_positions": 2048, "d_model": 12288, "d_ff": 4 * 12288}
    config = model(**sizes, num_layers=96, num_heads=96, head_width=128)
    assert flops.parameter_count(config) == 174_604_259_328
    total = 300e9 * flops.training_flops_per_token(config, 2048, "chinchilla")
    assert total == pytest.approx(3.14e23, rel=0.002)


def test_kaplan_counts_what_is_neither_embedding_nor_head():
    """arXiv:2001.08361, section 2.1: N = 12 L D squared where F = 4 D, biases and norms apart."""
    config = resolve(gpt2.get_config("xl")).model
    expected = 6 * 12 * 48 * 1600**2
    assert flops.training_flops_per_token(config, 1024, "kaplan") == pytest.approx(
        expected, rel=2e-3
    )


def test_bytes():
    config = model(num_kv_heads=2, compute_dtype="bfloat16")
    size = 4 * flops.parameter_count(config)
    assert flops.state_bytes(config) == {
        "parameters": size,
        "gradients": size,
        "adam_moments": 2 * size,
    }
    assert flops.checkpoint_bytes(config) == 3 * size
    assert flops.cache_bytes_per_token(config) == 2 * 3 * 2 * 6 * 2
    assert flops.activation_bytes(config, tokens=64, columns=12, tensor=4) == {
        "layer_inputs": 3 * 64 * 16 * 2,
        "logits": 64 * 12 * 4 // 4,
    }


def test_every_dtype_has_a_size():
    for dtype, size in flops.ITEM_BYTES.items():
        wide = dataclasses.replace(model(), param_dtype=dtype)
        assert flops.state_bytes(wide)["parameters"] == size * flops.parameter_count(wide)
        assert jnp.dtype(dtype).itemsize == size
