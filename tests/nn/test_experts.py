"""Experts beside loops over tokens, written from the papers, one router at a time."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logsumexp

from lm.mesh import make_mesh, put, use_mesh
from lm.nn.experts import Experts, capacity
from lm.nn.feedforward import FeedForward
from lm.nn.params import abstract_parameters, bind, count_parameters, initialise
from tests.nn.test_feedforward import FORMULAS
from tests.nn.tiny import tiny

B, T, D, E, F = 8, 6, 16, 8, 12
BASE = {"num_experts": E, "expert_d_ff": F, "feedforward_bias": False}
GATED = {"gated": True, "activation": "silu"}
V3_GROUPS = {"router_groups": 4, "router_groups_kept": 2, "router_group_score": "top2"}
SYSTEMS = {
    "switch": {"experts_per_token": 1, "activation": "relu", "expert_capacity": 2},
    "mixtral": {"experts_per_token": 2, "router_renormalise": True, **GATED},
    "qwen2_moe": {
        **GATED,
        "experts_per_token": 3,
        "shared_expert_d_ff": 20,
        "shared_expert_gate": True,
    },
    "gpt_oss": {
        "experts_per_token": 3,
        "router_bias": True,
        "router_renormalise": True,
        "feedforward_bias": True,
        "gated": True,
        "activation": "clamped_silu",
    },
    "deepseek_v2": {
        "experts_per_token": 3,
        "router_scale": 16.0,
        "shared_expert_d_ff": 24,
        "router_groups": 4,
        "router_groups_kept": 2,
        **GATED,
    },
    "deepseek_v3": {
        "experts_per_token": 3,
        "router_score": "sigmoid",
        "router_selection_bias": True,
        "router_renormalise": True,
        "router_scale": 2.5,
        "shared_expert_d_ff": 12,
        **V3_GROUPS,
        **GATED,
    },
    "gshard": {"experts_per_token": 2, "router_renormalise": True, "expert_capacity_factor": 0.75},
}


def model(**keys):
    return tiny({f"model.{key}": value for key, value in {**BASE, **keys}.items()}).model


def draw(module, seed=0):
    """Parameters that are not small, biases and buffers too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape), abstract_parameters(module))


def inputs(seed=1):
    """x (B, T, D), and which tokens are real: the last two of sequence 3 are not."""
    x_BTD = np.random.default_rng(seed).standard_normal((B, T, D))
    real_BT = np.ones((B, T), bool)
    real_BT[3, 4:] = False
    return x_BTD, real_BT


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def choices(system, p, x):
    """[(expert, weight)] of one token, best first: section by section as the papers say."""
    k = SYSTEMS[system]["experts_per_token"]
    logits = x @ p["router_DE"]
    if system == "gpt_oss":  # softmax over the chosen logits
        logits = logits + p["router_bias_E"]
        best = np.argsort(-logits, kind="stable")[:k]
        return list(zip(best, softmax(logits[best]), strict=True))
    if system == "deepseek_v3":
        s = expit(logits)
        biased = s + p["selection_bias_E"]
        group = np.sort(biased.reshape(4, 2), -1)[:, -2:].sum(-1)
        for g in np.argsort(-group, kind="stable")[2:]:
            biased[2 * g : 2 * g + 2] = -np.inf
        best = np.argsort(-biased, kind="stable")[:k]
        return [(e, 2.5 * s[e] / (s[best].sum() + 1e-20)) for e in best]
    s = softmax(logits)
    if system == "deepseek_v2":
        kept = s.copy()
        for g in np.argsort(-s.reshape(4, 2).max(-1), kind="stable")[2:]:
            kept[2 * g : 2 * g + 2] = 0
        return [(e, 16 * s[e]) for e in np.argsort(-kept, kind="stable")[:k]]
    best = np.argsort(-s, kind="stable")[:k]
    total = s[best].sum() if system in ("mixtral", "gshard") else 1
    return [(e, s[e] / total) for e in best]


def expert(system, p, e, x):
    gate = x @ p["gate_EDF"][e] if "gate_EDF" in p else None
    up = x @ p["up_EDF"][e]
    if system == "gpt_oss":
        gate = np.minimum(gate + p["gate_bias_EF"][e], 7)
        up = np.clip(up + p["up_bias_EF"][e], -7, 7)
        return (up + 1) * gate * expit(1.702 * gate) @ p["down_EFD"][e] + p["down_bias_ED"][e]
    act = FORMULAS[SYSTEMS[system].get("activation", "gelu_tanh")]
    return (act(up) if gate is None else act(gate) * up) @ p["down_EFD"][e]


def shared(system, p, x):
    if "shared" not in p:
        return 0
    w = p["shared"]
    y = FORMULAS["silu"](x @ w["gate_DF"]) * (x @ w["up_DF"]) @ w["down_FD"]
    return y * expit(x @ p["shared_gate_D"]) if "shared_gate_D" in p else y


def expected_outputs(system, p, x_BTD, real_BT, size=None):
    """Every token of every sequence in turn; an expert takes `size` tokens of a sequence."""
    y_BTD = np.zeros(x_BTD.shape)
    for b in range(len(x_BTD)):
        chosen = {t: choices(system, p, x_BTD[b, t]) for t in np.flatnonzero(real_BT[b])}
        taken = np.zeros(E, int)
        for number in range(SYSTEMS[system]["experts_per_token"]):
            for t, its in chosen.items():
                e, weight = its[number]
                taken[e] += 1
                if size is None or taken[e] <= size:
                    y_BTD[b, t] += weight * expert(system, p, e, x_BTD[b, t])
        for t in chosen:
            y_BTD[b, t] += shared(system, p, x_BTD[b, t])
    return y_BTD


@functools.partial(jax.jit, static_argnums=0)
def run(module, params, x_BTD, real_BT=None, key=None):
    """A layer's output and what is routed, compiled as one."""
    return bind(module, params)(x_BTD, real_BT, key)


@functools.cache
def computed(system, precision="float64", mesh=None, **keys):
    """(parameters, (loss, (y, routed)), gradients) of a system's layer."""
    dtypes = {"param_dtype": precision, "compute_dtype": precision}
    module = Experts(model(**SYSTEMS[system], **dtypes, **keys))
    place = None if mesh is None else make_mesh(*mesh)
    params = jax.tree.map(
        lambda shape, x: jax.device_put(x.astype(shape.dtype), shape.sharding),
        abstract_parameters(module, place),
        draw(module),
    )
    x_BTD, real_BT = inputs()

    def loss(params, x_BTD):
        x_BTD, real = put(x_BTD, "whole"), put(jnp.array(real_BT), "tokens")
        y_BTD, routed = bind(module, params)(x_BTD, real)
        y_BTD = jnp.where(real[..., None], y_BTD, 0)
        spread = (routed["probability_E"] ** 2).sum() + routed["sequence"] + routed["z"]
        return (y_BTD**2).sum() + spread, (y_BTD, routed)

    with use_mesh(place):
        out, gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
            params, jnp.array(x_BTD, precision)
        )
    return jax.tree.map(np.asarray, (params, out, gradients))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_router_is_its_formula(system):
    params, (_, (y_BTD, _)), _ = computed(system)
    size = {"switch": 2, "gshard": math.ceil(0.75 * T * 2 / E)}.get(system)
    expected = expected_outputs(system, params, *inputs(), size)
    np.testing.assert_allclose(y_BTD, expected, rtol=1e-9, atol=1e-9)
    if size:  # some did overflow
        assert not np.allclose(expected, expected_outputs(system, params, *inputs()))


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_routed_is_counted(system):
    params, (_, (_, routed)), _ = computed(system)
    x_BTD, real_BT = inputs()
    k = SYSTEMS[system]["experts_per_token"]
    count_E, probability_E, z, sequence = np.zeros(E), np.zeros(E), 0, 0
    for b in range(B):
        f, mean_P, n = np.zeros(E), np.zeros(E), real_BT[b].sum()
        for t in np.flatnonzero(real_BT[b]):
            logits = x_BTD[b, t] @ params["router_DE"] + params.get("router_bias_E", 0)
            s = expit(logits) if system == "deepseek_v3" else softmax(logits)
            for e, _ in choices(system, params, x_BTD[b, t]):
                f[e] += 1
            mean_P += s / s.sum() / n
            z += logsumexp(logits) ** 2
        count_E, probability_E = count_E + f, probability_E + n * mean_P
        sequence += (E / (k * n) * f * mean_P).sum()
    expected = {"count_E": count_E, "probability_E": probability_E, "z": z, "sequence": sequence}
    expected |= {"tokens": real_BT.sum(), "sequences": B}
    assert routed.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(routed[name], value, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("system", ["gpt_oss", "deepseek_v3", "gshard"])
def test_gradients_are_finite_differences(system):
    """Of the loss along random directions, the weights of the chosen among what it goes through."""
    dtypes = {"param_dtype": "float64", "compute_dtype": "float64"}
    module = Experts(model(**SYSTEMS[system], **dtypes))
    params, _, (gradients, _) = computed(system)
    if system == "deepseek_v3":
        np.testing.assert_array_equal(gradients["selection_bias_E"], 0)
    x_BTD, real_BT = inputs()

    @jax.jit
    def loss(params):
        y_BTD, routed = bind(module, params)(jnp.array(x_BTD), jnp.array(real_BT))
        spread = (routed["probability_E"] ** 2).sum() + routed["sequence"] + routed["z"]
        return (jnp.where(real_BT[..., None], y_BTD, 0) ** 2).sum() + spread

    for name in params.keys() - {"selection_bias_E", "shared"}:
        step = 1e-7 * np.random.default_rng(2).standard_normal(params[name].shape)
        ends = [loss({**params, name: params[name] + sign * step}) for sign in (1, -1)]
        along = 2 * (gradients[name] * step).sum()
        np.testing.assert_allclose(ends[0] - ends[1], along, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("system", ["gpt_oss", "deepseek_v3", "gshard"])
def test_a_mesh_changes_nothing(system):
    ours, expected = computed(system, mesh=(2, 2, 2)), computed(system)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("system", ["gpt_oss", "qwen2_moe", "switch"])
def test_bfloat16_is_near(system):
    """The router works in float32 whatever the rest does, so that most choices stay."""
    low, high = computed(system, "bfloat16")[1][1], computed(system)[1][1]
    assert low[0].dtype == jnp.bfloat16
    assert {leaf.dtype.name for leaf in low[1].values()} == {"float32"}
    same = np.isclose(low[0].astype(float), high[0], rtol=0.1, atol=0.5).mean()
    assert same > 0.9


def test_one_expert_is_a_feedforward():
    dtypes = {"param_dtype": "float64", "compute_dtype": "float64", **GATED}
    config = model(num_experts=1, d_ff=F, feedforward_bias=True, **dtypes)
    params = draw(Experts(config))
    names = {name.replace("E", "", 1): name for name in params if name != "router_DE"}
    alone = {plain: params[name][0] for plain, name in names.items()}
    x_BTD = jnp.array(inputs()[0])
    ours, _ = run(Experts(config), params, x_BTD)
    expected = jax.jit(lambda: bind(FeedForward(config), jax.tree.map(jnp.array, alone))(x_BTD))()
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_equal_scores_choose_the_first():
    config = model(experts_per_token=3)
    params = {**draw(Experts(config)), "router_DE": np.zeros((D, E))}
    _, routed = run(Experts(config), params, inputs()[0])
    np.testing.assert_array_equal(routed["count_E"], [B * T] * 3 + [0] * (E - 3))


@pytest.mark.parametrize("size", [0, 2])
def test_padding_takes_no_place_and_changes_nothing(size):
    config = model(experts_per_token=2, expert_capacity=size)
    module, params = Experts(config), draw(Experts(config))
    x_BTD, real_BT = inputs()
    real_BT[:, :2] = False  # the first would take the places
    y_BTD, routed = run(module, params, x_BTD, real_BT)
    other_BTD = np.where(real_BT[..., None], x_BTD, 3.0)
    other, other_routed = run(module, params, other_BTD, real_BT)
    np.testing.assert_array_equal(np.asarray(y_BTD)[real_BT], np.asarray(other)[real_BT])
    jax.tree.map(np.testing.assert_array_equal, routed, other_routed)
    assert np.isfinite(y_BTD).all() and routed["count_E"].sum() == 2 * real_BT.sum()
    without, _ = run(module, params, x_BTD[:2, 2:])
    np.testing.assert_allclose(y_BTD[:2, 2:], without, rtol=1e-6, atol=1e-6)


def test_jitter_is_for_training_and_of_its_size():
    config, calm = (model(router_jitter=jitter, experts_per_token=8) for jitter in (0.5, 0.0))
    params, (x_BTD, _) = draw(Experts(config)), inputs()
    still = run(Experts(config), params, x_BTD)[0]
    shaken = run(Experts(config), params, x_BTD, key=jax.random.key(0))[0]
    without = run(Experts(calm), params, x_BTD, key=jax.random.key(0))[0]
    np.testing.assert_array_equal(still, without)
    assert not np.allclose(still, shaken)
    # With a router that copies one dim, its logits show the noise.
    params["router_DE"] = np.zeros((D, E))
    params["router_DE"][0, 0] = 1
    ones = np.ones((1, 1, D))
    keys = jax.random.split(jax.random.key(0), 200)
    z = jax.lax.map(lambda key: run(Experts(config), params, ones, key=key)[1]["z"], keys)
    noise = np.log(np.exp(np.sqrt(z)) - (E - 1))
    assert 0.5 <= noise.min() < 0.53 and 1.47 < noise.max() <= 1.5
    assert abs(noise.mean() - 1) < 4 * 0.29 / math.sqrt(200)


@pytest.mark.parametrize(
    ("keys", "length", "size"),
    [
        ({}, 100, 0),
        ({"expert_capacity": 64}, 2048, 64),
        ({"expert_capacity": 64}, 10, 10),
        ({"expert_capacity_factor": 1.25}, 64, 20),
        ({"expert_capacity_factor": 1.25}, 65, 21),
        ({"expert_capacity_factor": 1.1}, 400, 110),  # 1.1 * 400 * 2 / 8 is 110.00000000000001
        ({"expert_capacity_factor": 0.01}, 4, 1),
    ],
)
def test_capacity(keys, length, size):
    assert capacity(model(experts_per_token=2, **keys), length) == size


def test_parameters_and_their_beginning():
    config = model(**SYSTEMS["deepseek_v3"], d_model=64, num_layers=8)
    module = Experts(config)
    params = initialise(module, 0)
    assert params["selection_bias_E"].dtype == jnp.float32
    assert not params["selection_bias_E"].any()
    assert count_parameters(module, buffers=True) == count_parameters(module) + E
    for name, std in {"router_DE": 0.02, "up_EDF": 0.02, "down_EFD": 0.02 / 4}.items():
        assert abs(float(params[name].std()) / std - 1) < 4 / math.sqrt(2 * params[name].size)
