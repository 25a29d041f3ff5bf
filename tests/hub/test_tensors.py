"""Where a tensor's numbers lie in parameters, by index, and which layers have which tensors."""

import itertools

import numpy as np
import pytest

from lm.config import build
from lm.hub.convert import _slots
from lm.hub.families import FAMILIES
from lm.hub.family import read_keys
from lm.hub.tensors import Part, Slot, Tensor, slots
from lm.nn.config import TransformerConfig

N, H, D, U, W, C, E, F = 2, 6, 3, 3, 2, 4, 2, 5


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def whole(parameter, array, layout):
    return Part(parameter, (), parameter.rsplit("_", 1)[1], array.shape, layout)


def back(slot, tensor, *arrays):
    """The slot takes the tensor apart into the arrays."""
    pieces = slot.split(tensor)
    assert len(pieces) == len(arrays)
    for (_, piece), array in zip(pieces, arrays, strict=True):
        np.testing.assert_array_equal(piece, array)


def test_rotated_pairs_that_are_neighbours():
    kernel, bias = numbers(D, N, H), numbers(N, H)
    slot = Slot("q", (whole("query_DNH", kernel, "Nh,D"),), 0, None)
    tensor = slot.join([kernel])
    assert slot.shape() == tensor.shape == (N * H, D)
    for n, pair, half, d in itertools.product(range(N), range(H // 2), range(2), range(D)):
        assert tensor[n * H + 2 * pair + half, d] == kernel[d, n, half * H // 2 + pair]
    back(slot, tensor, kernel)
    slot = Slot("b", (whole("query_bias_NH", bias, "Nh"),), 0, None)
    assert slot.join([bias]).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    back(slot, slot.join([bias]), bias)


def test_parts_of_each_head():
    key, value = numbers(C, N, U), -numbers(C, N, W)
    parts = (whole("key_CNU", key, "N,U,C"), whole("value_CNW", value, "N,W,C"))
    slot = Slot("kv_b", parts, 1, 0)
    tensor = slot.join([key, value])
    assert slot.shape() == tensor.shape == (N * (U + W), C)
    for n, c in itertools.product(range(N), range(C)):
        head = tensor[n * (U + W) : (n + 1) * (U + W), c]
        assert head.tolist() == [*key[c, n], *value[c, n]]
    back(slot, tensor, key, value)


def test_columns_in_turn():
    gate, up = numbers(E, D, F), -numbers(E, D, F)
    parts = (whole("gate_EDF", gate, "E,D,F,1"), whole("up_EDF", up, "E,D,F,1"))
    slot = Slot("gate_up", parts, 3, 2)
    tensor = slot.join([gate, up])
    assert slot.shape() == tensor.shape == (E, D, 2 * F)
    np.testing.assert_array_equal(tensor[..., 0::2], gate)
    np.testing.assert_array_equal(tensor[..., 1::2], up)
    back(slot, tensor, gate, up)


def test_what_is_not_rotated_is_a_view():
    key = numbers(C, N, U)
    slot = Slot("k", (whole("key_CNU", key, "NU,C"),), 0, None)
    (_, piece), *_ = slot.split(slot.join([key]))
    assert piece.base is not None and not piece.flags.owndata


DEEPSEEK = {
    "model_type": "deepseek_v3",
    "vocab_size": 14,
    "hidden_size": 8,
    "intermediate_size": 12,
    "moe_intermediate_size": 6,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 4,
    "q_lora_rank": 5,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 2,
    "v_head_dim": 3,
}


def config_of(content):
    keys = read_keys(FAMILIES[content["model_type"]], content)
    return build(TransformerConfig, {**keys, "param_dtype": "float32", "compute_dtype": "float32"})


def test_layers_have_their_own_numbers_and_experts_a_tensor_each():
    config = config_of({**DEEPSEEK, "num_nextn_predict_layers": 1})
    found = {slot.name: slot for slot in _slots(FAMILIES["deepseek_v3"], config)}
    attention = {
        "input_layernorm.weight": (8,),
        "post_attention_layernorm.weight": (8,),
        "self_attn.q_a_proj.weight": (5, 8),
        "self_attn.q_a_layernorm.weight": (5,),
        "self_attn.q_b_proj.weight": (16, 5),
        "self_attn.kv_a_proj_with_mqa.weight": (6, 8),
        "self_attn.kv_a_layernorm.weight": (4,),
        "self_attn.kv_b_proj.weight": (18, 4),
        "self_attn.o_proj.weight": (8, 6),
    }
    dense = {f"mlp.{name}_proj.weight": (12, 8) for name in ("gate", "up")}
    dense["mlp.down_proj.weight"] = (8, 12)
    routed = {"mlp.gate.weight": (2, 8), "mlp.gate.e_score_correction_bias": (2,)}
    for expert in ("experts.0", "experts.1", "shared_experts"):
        routed |= {f"mlp.{expert}.{name}_proj.weight": (6, 8) for name in ("gate", "up")}
        routed[f"mlp.{expert}.down_proj.weight"] = (8, 6)
    ahead = {
        "enorm.weight": (8,),
        "hnorm.weight": (8,),
        "eh_proj.weight": (8, 16),
        "shared_head.norm.weight": (8,),
    }
    expected = {
        "model.embed_tokens.weight": (14, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (14, 8),
    }
    layers = (attention | dense, attention | routed, attention | routed, attention | routed | ahead)
    for number, layer in enumerate(layers):
        expected |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    assert {name: slot.shape() for name, slot in found.items()} == expected
    up = found["model.layers.2.mlp.experts.1.up_proj.weight"].parts[0]
    assert (up.parameter, up.index) == ("layers/experts/up_EDF", (1, 1))
    assert found["model.layers.0.mlp.up_proj.weight"].parts[0].index == (0,)
    up = found["model.layers.3.mlp.experts.1.up_proj.weight"].parts[0]
    assert (up.parameter, up.index) == ("mtp/layers/experts/up_EDF", (0, 1))


def test_a_folder_with_fused_experts_has_other_tensors():
    config, family = config_of({**DEEPSEEK, "num_nextn_predict_layers": 0}), FAMILIES["deepseek_v3"]
    fused = [f"model.layers.1.mlp.experts.{name}" for name in ("gate_up_proj", "down_proj")]
    names = {slot.name for slot in _slots(family, config, fused)}
    assert "model.layers.2.mlp.experts.gate_up_proj" in names
    assert not any(".experts.0." in name for name in names)
    assert len(names) == 3 + 9 * 3 + 3 + 2 * (2 + 3 + 2)


T5 = {
    "model_type": "t5",
    "vocab_size": 14,
    "d_model": 8,
    "d_kv": 3,
    "d_ff": 12,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 4,
    "relative_attention_max_distance": 9,
}


@pytest.mark.parametrize("gated", [False, True])
def test_an_encoder_has_layers_of_its_own(gated):
    change = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if gated else {}
    config = config_of({**T5, **change})
    found = {slot.name: slot for slot in _slots(FAMILIES["t5"], config)}
    attention = {"q.weight": (6, 8), "k.weight": (6, 8), "v.weight": (6, 8), "o.weight": (8, 6)}
    dense = {"wi_0.weight": (12, 8), "wi_1.weight": (12, 8)} if gated else {"wi.weight": (12, 8)}
    dense["wo.weight"] = (8, 12)
    expected = {"shared.weight": (14, 8)} | ({"lm_head.weight": (14, 8)} if gated else {})
    for stack, layers, last in (("encoder", 1, 1), ("decoder", 2, 2)):
        expected[f"{stack}.final_layer_norm.weight"] = (8,)
        name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        expected[name] = (4, 2)
        for number in range(layers):
            start = f"{stack}.block.{number}.layer"
            expected |= {f"{start}.{part}.layer_norm.weight": (8,) for part in range(last + 1)}
            for name, shape in attention.items():
                expected[f"{start}.0.SelfAttention.{name}"] = shape
                if stack == "decoder":
                    expected[f"{start}.1.EncDecAttention.{name}"] = shape
            for name, shape in dense.items():
                expected[f"{start}.{last}.DenseReluDense.{name}"] = shape
    assert {name: slot.shape() for name, slot in found.items()} == expected
    part = found["encoder.block.0.layer.0.SelfAttention.q.weight"].parts[0]
    assert (part.parameter, part.index) == ("encoder/layers/attention/query_DNH", (0,))


def test_a_norm_that_the_first_layer_lacks():
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3, "vocab_size": 14}
    config = config_of({"model_type": "modernbert", "intermediate_size": 12, **sizes})
    found = {slot.name: slot for slot in _slots(FAMILIES["modernbert"], config)}
    norms = [name for name in found if name.endswith("attn_norm.weight")]
    assert norms == [f"model.layers.{number}.attn_norm.weight" for number in (1, 2)]
    assert found[norms[0]].parts[0].index == (0,)
    assert found["model.layers.2.attn.Wqkv.weight"].shape() == (24, 8)


def test_every_parameter_has_a_tensor():
    config = config_of({**DEEPSEEK, "num_nextn_predict_layers": 0})
    with pytest.raises(AssertionError, match="other_D"):
        slots(
            (Tensor("a", {"embed/table_VD": "V,D"}),),
            {"embed/table_VD": (2, 2), "other_D": (2,)},
            config,
        )
