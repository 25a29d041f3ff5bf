"""The train step: what is skipped, summed, consumed and proved; on eight devices as on one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import base
from lm.config import resolve
from lm.mesh import make_mesh, sharding, use_mesh
from lm.nn.transformer import Transformer
from lm.train.state import abstract_state, initial_state
from lm.train.step import fingerprint, make_train_step

V, B, T = 16, 8, 8


def config_of(parts=1, **model):
    config = base()
    config.model.update(d_model=16, num_layers=2, num_heads=2, **model)
    config.data.update(batch_size=B, sequence_length=T)
    config.optim.update(peak_lr=1e-2, warmup_steps=0)
    config.train.accumulation_steps = parts
    return resolve(config.to_dict(), V)


def batch_of(mesh, parts=1, seed=0, change=None):
    random = np.random.default_rng(seed)
    arrays = {
        "tokens": random.integers(0, V, (B, T)).astype(np.int32),
        "targets": random.integers(0, V, (B, T)).astype(np.int32),
        # Unequal parts: a mean of means would not be the mean.
        "weights": np.triu(np.ones((B, T), np.float32)),
    }
    if change:
        change(arrays)
    shaped = {name: x.reshape(parts, B // parts, T) for name, x in arrays.items()}
    return jax.device_put(shaped, sharding(mesh, "microbatches"))


def start(config, mesh):
    model = Transformer(config.model)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, config, mesh))
    return initial_state(model, config, mesh), make_train_step(model, config, places)


def one_device():
    return make_mesh(devices=jax.devices()[:1])


def test_a_step_that_is_not_finite_changes_nothing_but_counts():
    config, mesh = config_of(), one_device()
    state, step = start(config, mesh)
    state, _ = step(state, batch_of(mesh))
    broken = batch_of(mesh, change=lambda arrays: arrays["weights"].__setitem__((0, 0), np.inf))
    before = jax.device_get(state)
    state, metrics = step(state, broken)
    after = jax.device_get(state)
    for part in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, part), getattr(before, part))
    assert after.step == before.step + 1
    assert metrics["skipped_in_a_row"] == after.variables["skipped_steps"] == 1
    state, metrics = step(state, batch_of(mesh))
    assert (int(metrics["skipped_in_a_row"]), int(metrics["skipped_steps"])) == (0, 1)


def test_a_spike_is_measured_from_the_losses_of_the_steps_before():
    config, mesh = config_of(), one_device()
    guard = dataclasses.replace(config.train, spike_threshold=9.0, spike_window=4)
    config = dataclasses.replace(config, train=guard)
    state, step = start(config, mesh)
    losses, spikes = [], []
    for seed in range(8):
        state, metrics = step(state, batch_of(mesh, seed=seed))
        losses.append(float(metrics["loss"]))
        spikes.append(float(metrics["spike"]))
    assert np.isnan(spikes[:4]).all()
    for number in range(4, 8):
        window = np.array(losses[number - 4 : number])
        deviation = np.median(np.abs(window - np.median(window)))
        expected = (losses[number] - np.median(window)) / deviation
        assert spikes[number] == pytest.approx(expected, rel=1e-3)
    recent = np.asarray(state.variables["recent_losses"])
    assert recent[-8:].tolist() == losses
    assert np.isnan(recent[:-8]).all()


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_are_the_whole_batch(parts):
    mesh, states = one_device(), []
    for count in (1, parts):
        state, step = start(config_of(count), mesh)
        state, metrics = step(state, batch_of(mesh, count))
        states.append((jax.device_get(state.params), jax.device_get(metrics)))
    (params, metrics), (others, other_metrics) = states
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, others)
    np.testing.assert_allclose(other_metrics["loss"], metrics["loss"], rtol=1e-6)
    np.testing.assert_array_equal(other_metrics["fingerprint"], metrics["fingerprint"])


def test_the_loss_is_the_mean_over_weighted_tokens():
    config, mesh = config_of(), one_device()
    state, step = start(config, mesh)
    model, batch = Transformer(config.model), batch_of(mesh)
    from lm.nn.params import bind

    logits = np.asarray(bind(model, state.params)(batch["tokens"][0]), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, np.asarray(batch["targets"][0])[..., None], -1)[..., 0]
    weights = np.asarray(batch["weights"][0])
    _, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], (nll * weights).sum() / weights.sum(), rtol=1e-5)


def test_the_state_given_is_consumed():
    config, mesh = config_of(), one_device()
    state, step = start(config, mesh)
    step(state, batch_of(mesh))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_a_fingerprint_is_of_contents_and_order_and_of_no_mesh():
    def of(mesh, change=None):
        with use_mesh(mesh):
            state, step = start(config_of(), mesh)
            return tuple(map(int, step(state, batch_of(mesh, change=change))[1]["fingerprint"]))

    def swap_rows(arrays):
        for x in arrays.values():
            x[[0, 1]] = x[[1, 0]]

    def add_one(arrays):
        arrays["tokens"][3, 4] = (arrays["tokens"][3, 4] + 1) % V

    one = of(one_device())
    assert of(make_mesh(2, 2, 2, devices=jax.devices()[:8])) == one
    assert len({one, of(one_device(), swap_rows), of(one_device(), add_one)}) == 3


def moved(arrays):
    """One from a target to the token at its place."""
    arrays["targets"][0, 1, 2] -= 1
    arrays["tokens"][0, 1, 2] += 1


def exchanged(arrays):
    arrays["tokens"], arrays["targets"] = arrays["targets"], arrays["tokens"]


def reweighted(arrays):
    arrays["weights"][0, 0, 0] = 0.7


def turned(arrays):
    arrays["tokens"][0] = arrays["tokens"][0, ::-1]


def without_weights(arrays):
    del arrays["weights"]


def test_a_fingerprint_tells_every_small_change():
    def of(change):
        rng = np.random.default_rng(0)
        arrays = {name: rng.integers(1, V, (2, 4, 8), np.int32) for name in ("tokens", "targets")}
        arrays["weights"] = np.full((2, 4, 8), 0.5, np.float32)
        change(arrays)
        return tuple(fingerprint(jax.tree.map(jnp.asarray, arrays)).tolist())

    changes = (lambda arrays: None, moved, exchanged, reweighted, turned, without_weights)
    found = [of(change) for change in changes]
    # Each of the two numbers tells them apart by itself.
    assert len({first for first, _ in found}) == len({second for _, second in found}) == len(found)


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_the_abstract_state_is_the_initial_one_s(shape):
    config, mesh = config_of(), make_mesh(*shape, devices=jax.devices()[:8])
    abstract = abstract_state(Transformer(config.model), config, mesh)
    state, _ = start(config, mesh)

    def same(a, b):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), (a.sharding, b.sharding)

    jax.tree.map(same, abstract, state)
    moments = state.opt_state[1].mu["layers"]["attention"]["query_DNH"]
    assert moments.sharding == state.params["layers"]["attention"]["query_DNH"].sharding


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_learns_and_keeps_its_weights_in_float32(dtype):
    config, mesh = config_of(compute_dtype=dtype), one_device()
    state, step = start(config, mesh)
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch_of(mesh))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.5
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_each_step_has_a_dropout_of_its_own():
    config = config_of(residual_dropout=0.5)
    mesh = one_device()
    state, step = start(config, mesh)
    still = dataclasses.replace(state, params=state.params)
    first = jax.tree.map(jnp.copy, still)
    later = dataclasses.replace(jax.tree.map(jnp.copy, still), step=jnp.ones((), jnp.int32))
    again = jax.tree.map(jnp.copy, still)
    losses = [float(step(s, batch_of(mesh))[1]["loss"]) for s in (first, later, again)]
    assert losses[0] == losses[2] != losses[1]
