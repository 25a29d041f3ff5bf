"""What parameters are at the start: their statistics, and the same bits on every mesh."""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lm.mesh import make_mesh, parameter_spec
from lm.nn import params as params_module
from lm.nn.params import (
    abstract_parameters,
    count_parameters,
    initialise,
    normal,
    parameter_key,
    random_bits,
    uniform,
)
from lm.nn.transformer import Transformer
from tests.nn.tiny import tiny

KEY = parameter_key(0, ("a",))
# Few parameters, of every kind of placement.
SHARDED = {"model.num_heads": 8, "model.num_kv_heads": 2, "model.position": "learned"}


def flat(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


@functools.cache
def drawn(mesh=None, seed=0, **keys):
    """{path: initial value}. mesh: (data, fsdp, tensor) or None."""
    model = Transformer(tiny({**SHARDED, **{f"model.{key}": v for key, v in keys.items()}}).model)
    if mesh is not None:
        mesh = make_mesh(*mesh, devices=jax.devices()[: math.prod(mesh)])
    return flat(initialise(model, seed, mesh))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)])
def test_initial_bits_are_the_same_on_every_mesh(shape):
    ours, expected = drawn(shape), drawn()
    assert ours.keys() == expected.keys()
    for path, value in expected.items():
        assert np.asarray(ours[path]).tobytes() == np.asarray(value).tobytes(), path


def test_scan_changes_no_bit_and_a_new_parameter_changes_no_other():
    scanned, other = drawn(), drawn(scan_layers=False, gated=True)
    assert other.keys() - scanned.keys() == {
        "layers/feedforward/gate_DF",
        "layers/feedforward/gate_bias_F",
    }
    for path, value in scanned.items():
        np.testing.assert_array_equal(value, other[path])


def test_every_matrix_differs_with_the_seed_the_layer_and_the_name():
    first, second = drawn(), drawn(seed=1)
    matrices = {path: np.asarray(x) for path, x in first.items() if np.std(x) > 0}
    assert len(matrices) == 8
    for path, value in matrices.items():
        assert np.mean(value == second[path]) < 0.01
        if path.startswith("layers/"):
            assert np.mean(value[0] == value[1]) < 0.01
    key, value = (first[f"layers/attention/{name}_DKH"] for name in ("key", "value"))
    assert np.mean(np.asarray(key) == np.asarray(value)) < 0.01


@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1])
def test_random_bits_are_those_of_jax(seed, monkeypatch):
    path = ("layers", "attention", "query_DNH")
    ours, jaxs = parameter_key(seed, path), jax.random.key(seed, impl="threefry2x32")
    jaxs = jax.random.fold_in(jaxs, zlib.crc32("/".join(path).encode()))
    for shape in ((5,), (3, 4, 5), (65, 130)):
        bits = jax.random.bits(jaxs, shape, jnp.uint16)
        np.testing.assert_array_equal(random_bits(ours, shape, None), bits)
    monkeypatch.setattr(params_module, "COUNTS", 65 * 130 - 1)  # as if a word told no more apart
    np.testing.assert_array_equal(random_bits(ours, shape, None), bits)


def test_norms_start_at_one_and_biases_at_zero():
    for path, value in drawn().items():
        name = path.split("/")[-1]
        if "bias" in name or name.startswith("scale"):
            np.testing.assert_array_equal(value, float(name.startswith("scale")))


def test_normal_is_normal():
    x = np.asarray(normal(0.02)(KEY, (400, 500), jnp.float32, None)).ravel() / 0.02
    assert abs(x.mean()) < 4 / math.sqrt(x.size)
    assert abs(x.std() - 1) < 4 / math.sqrt(2 * x.size)
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 4 / math.sqrt(x.size)


def test_truncated_normal_ends_at_two_and_is_not_rescaled():
    x = np.asarray(normal(0.5, truncate=2)(KEY, (400, 500), jnp.float32, None)).ravel() / 0.5
    assert stats.kstest(x, stats.truncnorm(-2, 2).cdf).pvalue > 1e-3
    assert np.abs(x).max() <= 2


def test_uniform_is_uniform_and_symmetric():
    x = np.asarray(uniform(0.3)(KEY, (400, 500), jnp.float32, None)).ravel()
    assert np.abs(x).max() < 0.3
    assert stats.kstest(x, stats.uniform(-0.3, 0.6).cdf).pvalue > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_parameters_are_the_rounded_float32_ones(dtype):
    for init in (normal(0.02), uniform(0.3)):
        low, high = (init(KEY, (64, 64), jnp.dtype(name), None) for name in (dtype, "float32"))
        assert low.dtype == dtype
        np.testing.assert_allclose(np.float32(low), high, rtol=2**-7, atol=1e-6)


def stds(**keys):
    model = {"d_model": 32, "num_heads": 8, "head_width": 16, "d_ff": 512, "num_layers": 3}
    values = drawn(vocab_size=100, **model, **keys)
    return {path: float(np.std(x)) for path, x in values.items() if np.std(x) > 0}


def expected_stds(of_matrix, residual):
    """of_matrix(fan_in, fan_out), divided by `residual` where it writes to the residual stream."""
    D, NH, KH, F, V, P = 32, 8 * 16, 2 * 16, 512, 100, 8
    return {
        "embed/table_VD": of_matrix(D, V),
        "positions/table_PD": of_matrix(D, P),
        "layers/attention/query_DNH": of_matrix(D, NH),
        "layers/attention/key_DKH": of_matrix(D, KH),
        "layers/attention/value_DKH": of_matrix(D, KH),
        "layers/attention/output_NHD": of_matrix(NH, D) / residual,
        "layers/feedforward/up_DF": of_matrix(D, F),
        "layers/feedforward/down_FD": of_matrix(F, D) / residual,
    }


@pytest.mark.parametrize(
    ("keys", "of_matrix"),
    [
        ({"initializer": "normal"}, lambda fan_in, fan_out: 0.02),
        # The standard deviation of the untruncated distribution is what is set: as in BERT.
        (
            {"initializer": "truncated_normal", "initializer_std": 0.05},
            lambda fan_in, fan_out: 0.05 * stats.truncnorm(-2, 2).std(),
        ),
        ({"initializer": "fan_in"}, lambda fan_in, fan_out: fan_in**-0.5),
        ({"initializer": "glorot"}, lambda fan_in, fan_out: (2 / (fan_in + fan_out)) ** 0.5),
    ],
    ids=["normal", "truncated_normal", "fan_in", "glorot"],
)
def test_initializers_have_their_standard_deviations(keys, of_matrix):
    # GPT-2: what writes to the residual stream, twice a layer, is divided by sqrt(2 * 3 layers).
    ours = stds(**keys)
    expected = expected_stds(of_matrix, math.sqrt(6))
    assert ours.keys() == expected.keys()
    for path, std in expected.items():
        count = 256 if path == "positions/table_PD" else 3000
        assert abs(ours[path] / std - 1) < 4 / math.sqrt(2 * count), path


def test_residual_scaling_can_be_off():
    ours = stds(scaled_residual_init=False)
    for path in ("layers/attention/output_NHD", "layers/feedforward/down_FD"):
        assert abs(ours[path] / 0.02 - 1) < 0.03


def test_with_fsdp_every_device_holds_its_part_of_every_matrix():
    params = drawn((1, 8, 1))
    for path, value in params.items():
        is_vector = path.split("/")[-1].startswith("scale") or "bias" in path.split("/")[-1]
        part = value.addressable_shards[0].data.nbytes
        assert part * (1 if is_vector else 8) == value.nbytes, path
        assert len({shard.device for shard in value.addressable_shards}) == 8


def test_tensor_devices_share_heads_hidden_units_and_vocabulary():
    params = drawn((1, 1, 8))
    for path, share in {
        "embed/table_VD": 8,
        "layers/attention/query_DNH": 8,
        "layers/attention/query_bias_NH": 8,
        "layers/attention/output_NHD": 8,
        "layers/feedforward/up_DF": 8,
        "layers/feedforward/down_FD": 8,
        "layers/feedforward/up_bias_F": 8,
        "layers/attention/key_DKH": 1,  # two key heads: every device has both
        "layers/attention/value_bias_KH": 1,
    }.items():
        assert params[path].addressable_shards[0].data.nbytes * share == params[path].nbytes, path


def test_counting_and_describing_allocate_nothing():
    keys = {"model.d_model": 2**14, "model.vocab_size": 2**17, "model.num_heads": 128}
    model = Transformer(tiny({**keys, "model.d_ff": 2**16, "model.num_layers": 100}).model)
    shapes = abstract_parameters(model)
    assert count_parameters(model) == sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert count_parameters(model) > 2e11
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))


def test_the_placement_of_a_parameter_names_its_dims():
    mesh = make_mesh(2, 2, 2)
    place = parameter_spec(("layers", "model", "kv_heads", "width"), (2, 16, 2, 4), mesh)
    assert place == jax.sharding.PartitionSpec(None, "fsdp", "tensor", None)
    place = parameter_spec(("layers", "model", "kv_heads", "width"), (2, 16, 1, 4), mesh)
    assert place == jax.sharding.PartitionSpec(None, "fsdp", None, None)
