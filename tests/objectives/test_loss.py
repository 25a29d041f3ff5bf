"""The losses of all objectives against NumPy; in chunks and whole, in parts and on a mesh."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.base import base
from lm.config import resolve
from lm.mesh import make_mesh, sharding, use_mesh
from lm.nn.params import abstract_parameters, bind, initialise
from lm.nn.transformer import Transformer
from lm.objectives import loss as losses
from lm.objectives.loss import objective_loss
from lm.objectives.routing import router_loss
from lm.train.step import gradients
from tests.nn.attending import QUICK
from tests.nn.tiny import parameters, tiny

B, T, V = 3, 12, 17


def config_of(**objective):
    config = base()
    config.model.update(d_model=16, num_layers=2, num_heads=2)
    config.data.update(batch_size=B, sequence_length=T)
    config.objective.update(**objective)
    return resolve(config.to_dict(), V)


CONFIG = config_of()
MODEL = Transformer(CONFIG.model)
PARAMS = initialise(MODEL, 0)
RANDOM = np.random.default_rng(0)
BATCH = {
    "tokens": RANDOM.integers(0, V, (B, T)).astype(np.int32),
    "targets": RANDOM.integers(0, V, (B, T)).astype(np.int32),
    "weights": RANDOM.integers(0, 2, (B, T)).astype(np.float32),
}


def loss(params, objective, batch=BATCH):
    return objective_loss(bind(MODEL, params), batch, objective)[:2]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("logits_chunk", [0, 4])
def test_is_numpy_s(label_smoothing, z_loss, logits_chunk):
    objective = dataclasses.replace(
        CONFIG.objective,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logits_chunk=logits_chunk,
    )
    minimised, nll = loss(PARAMS, objective)
    logits = np.asarray(bind(MODEL, PARAMS)(BATCH["tokens"]), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    log_p = logits - log_z[..., None]
    target = np.eye(V)[BATCH["targets"]]
    smooth = (1 - label_smoothing) * target + label_smoothing / V
    expected = (BATCH["weights"] * (-(smooth * log_p).sum(-1) + z_loss * log_z**2)).sum()
    np.testing.assert_allclose(minimised, expected, rtol=1e-5)
    np.testing.assert_allclose(nll, -(BATCH["weights"] * (target * log_p).sum(-1)).sum(), rtol=1e-5)


def test_chunks_have_the_gradients_of_the_whole():
    chunked = dataclasses.replace(CONFIG.objective, logits_chunk=3, z_loss=1e-3)
    whole = dataclasses.replace(chunked, logits_chunk=0)
    grads = [jax.jit(jax.grad(lambda p, o=o: loss(p, o)[0]))(PARAMS) for o in (chunked, whole)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *grads)


def test_chunks_never_hold_all_logits():
    def shapes(chunk):
        objective = dataclasses.replace(CONFIG.objective, logits_chunk=chunk)
        grad = jax.grad(lambda p: loss(p, objective)[0])
        return str(jax.make_jaxpr(grad)(PARAMS))

    whole = f"[{B},{T},{V}]"
    assert whole in shapes(0)
    assert whole not in shapes(4) and f"[{B * T},{V}]" not in shapes(4)


def test_padding_counts_nothing():
    other = {**BATCH, "targets": np.where(BATCH["weights"] > 0, BATCH["targets"], 0)}
    assert float(loss(PARAMS, CONFIG.objective)[0]) == float(
        loss(PARAMS, CONFIG.objective, jax.tree.map(jnp.asarray, other))[0]
    )


ENCODER = {"model.stack": "encoder", "model.num_layers": 1, "objective.kind": "masked"}
PAIRS = {"pooler": True, "next_sentence": True, "token_types": 2}
PAIRS = {f"model.{key}": value for key, value in PAIRS.items()} | {"objective.next_sentence": True}
ROWS, LENGTH = 8, 8


def batch_of(**more):
    """Of rows of 3 to 8 tokens and padding; some are predicted."""
    rng = np.random.default_rng(1)
    length = np.array([8, 3, 5, 8, 4, 7, 6, 8])
    segments = (np.arange(LENGTH) < length[:, None]).astype(np.int32)
    tokens, targets = rng.integers(0, 40, (2, ROWS, LENGTH)).astype(np.int32)
    weights = (rng.random((ROWS, LENGTH)) < 0.4) * segments.astype(np.float32)
    return {"tokens": tokens, "targets": targets, "weights": weights, "segments": segments, **more}


def both_of(batch):
    """A batch of an encoder-decoder, with another's tokens as its source."""
    source = {"source": batch["tokens"][:, ::-1], "source_segments": batch["segments"]}
    return {name: batch[name] for name in ("tokens", "targets", "weights")} | source


def pairs_of(batch):
    types_of = (np.arange(LENGTH) >= 2).astype(np.int32) * batch["segments"]
    labels = np.array([[0], [1], [1], [0], [1], [0], [0], [1]], np.int32)
    return {**batch, "token_types": types_of, "next_sentence": labels}


@functools.partial(jax.jit, static_argnames=("config", "per_row"), compiler_options=QUICK)
def losses_of(config, params, batch, key=None, per_row=0.0):
    model = bind(Transformer(config.model), params)
    return objective_loss(model, batch, config.objective, key, per_row)


@functools.partial(jax.jit, static_argnames=("config", "method"), compiler_options=QUICK)
def outputs(config, params, *arguments, method="__call__", **rows):
    return getattr(bind(Transformer(config.model), params), method)(*arguments, **rows)


def cross_entropy(logits, targets):
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, targets[..., None], -1)[..., 0]


PREFIX = {"model.prefix_attention": True, "data.separate_documents": False}


@pytest.mark.parametrize("kind", ["masked", "prefix", "span_corruption"])
def test_is_that_of_what_the_model_is_given(kind):
    batch, rows = batch_of(), ("segments",)
    if kind == "masked":
        config = tiny(ENCODER)
    elif kind == "prefix":
        config = tiny({**PREFIX, "objective.kind": "prefix", "model.num_layers": 1})
        batch["prefix"] = (np.arange(LENGTH) < [[3], [1], [2], [7], [2], [1], [5], [4]]).astype(int)
        rows = ("segments", "prefix")
    else:
        config = tiny({"model.stack": "encoder_decoder", "model.num_layers": 1})
        batch = both_of(batch)
    params = parameters(config)
    if kind == "span_corruption":
        read = batch["source"], batch["tokens"]
        logits = outputs(config, params, *read, segments=batch["source_segments"])
    else:
        given = {name: batch[name] for name in rows}
        logits = outputs(config, params, batch["tokens"], **given)
    expected = (cross_entropy(logits, batch["targets"]) * batch["weights"]).sum()
    minimised, nll, others = losses_of(config, params, batch)
    np.testing.assert_allclose([minimised, nll], expected, rtol=1e-5)
    assert others == {"routed": {}}


def test_whether_the_second_text_follows():
    config, batch = tiny({**ENCODER, **PAIRS}), pairs_of(batch_of())
    params = parameters(config)
    minimised, nll, others = losses_of(config, params, batch, per_row=7.0)
    given = {name: batch[name] for name in ("segments", "token_types")}
    first = outputs(config, params, batch["tokens"], method="states", **given)[:, 0]
    pooled = np.tanh(first @ params["pooler"]["kernel_DM"] + params["pooler"]["bias_M"])
    logits = pooled @ params["next_sentence"]["kernel_DC"] + params["next_sentence"]["bias_C"]
    expected = cross_entropy(logits, batch["next_sentence"][:, 0]).sum()
    np.testing.assert_allclose(others["next_sentence_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(minimised, nll + 7 * expected, rtol=1e-5)


def stub(detected, read):
    """A model whose states are its logits; what it reads is put into `read`."""

    def hidden(tokens, **rows):
        read.append({"tokens": tokens, **rows})
        return None, None, {}

    return types.SimpleNamespace(
        logits=lambda states: states, hidden=hidden, detector=lambda states: detected[..., None]
    )


def test_tokens_are_replaced_by_what_the_model_finds_likely():
    rng, shape, p = np.random.default_rng(2), (50, 400), np.array([0.5, 0.3, 0.15, 0.05])
    batch = {
        "targets": rng.integers(0, 4, shape).astype(np.int32),
        "weights": rng.integers(0, 2, shape).astype(np.float32),
        "segments": np.ones(shape, np.int32),
    }
    logits, read = jnp.broadcast_to(jnp.log(p), (*shape, 4)), []
    model = stub(jnp.zeros(shape), read)
    for key in (jax.random.key(0), jax.random.key(1)):
        losses._detection(model, logits, batch, key, None)
    one, two = (np.asarray(each["tokens"]) for each in read)
    chosen = batch["weights"] > 0
    np.testing.assert_array_equal(one[~chosen], batch["targets"][~chosen])
    for token, share in enumerate(p):
        expected, spread = share * chosen.sum(), np.sqrt(share * (1 - share) * chosen.sum())
        assert abs((one[chosen] == token).sum() - expected) < 4 * spread
    assert 0.3 < (one == two)[chosen].mean() < 0.43  # the sum of the squares of p is 0.365


def test_a_replaced_token_is_one_that_differs():
    """The mean over the real tokens of a row; one that was found again is not replaced."""
    batch, rng = pairs_of(batch_of()), np.random.default_rng(3)
    found = rng.integers(0, 40, (ROWS, LENGTH))
    found[:, 0] = batch["targets"][:, 0]
    logits, read = 1e9 * jax.nn.one_hot(found, 40), []
    detected = rng.standard_normal((ROWS, LENGTH))
    ours = losses._detection(
        stub(jnp.asarray(detected), read), logits, batch, jax.random.key(0), jax.random.key(1)
    )
    tokens = np.where(batch["weights"] > 0, found, batch["targets"])
    for name in ("tokens", "segments", "token_types"):
        np.testing.assert_array_equal(read[0][name], {**batch, "tokens": tokens}[name])
    p = 1 / (1 + np.exp(-detected))
    nll = -np.where(tokens != batch["targets"], np.log(p), np.log(1 - p)) * batch["segments"]
    expected = (nll.sum(1) / batch["segments"].sum(1)).sum()
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


REPLACED = {**ENCODER, **PAIRS, "objective.kind": "replaced", "model.detector": True}
REPLACED |= {"model.head": "transform", "objective.detection_loss": 3.0}


def test_what_was_put_in_has_no_gradient():
    config, batch = tiny(REPLACED), pairs_of(batch_of())
    params, key = parameters(config), jax.random.key(4)

    def detection(params):
        model = bind(Transformer(config.model), params)
        found = objective_loss(model, batch, config.objective, key, 7.0)
        return found[2]["detection_loss"], found

    run = jax.jit(jax.value_and_grad(detection, has_aux=True), compiler_options=QUICK)
    (loss, (minimised, nll, others)), grads = run(params)
    both = others["next_sentence_loss"] + 3 * loss
    np.testing.assert_allclose(minimised, nll + 7 * both, rtol=1e-5)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads["head"]))
    for name in ("detector", "layers", "embed", "token_types"):
        assert any((leaf != 0).any() for leaf in jax.tree.leaves(grads[name])), name


def test_losses_of_rows_add_up_over_the_parts_of_a_batch():
    found, batch = [], pairs_of(batch_of())
    for parts in (1, 2):
        config = tiny({**ENCODER, **PAIRS, "train.accumulation_steps": parts})
        model, params = Transformer(config.model), parameters(config)
        key = jax.random.key_data(jax.random.key(0))
        state = types.SimpleNamespace(params=params, key=key, step=0)
        run = jax.jit(functools.partial(gradients, model, config, state), compiler_options=QUICK)
        found.append(run({k: x.reshape(parts, -1, *x.shape[1:]) for k, x in batch.items()}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)
    _, _, others = losses_of(config, params, batch, per_row=7.0)
    mean = found[0][0][1]["next_sentence_loss"]
    np.testing.assert_allclose(mean, others["next_sentence_loss"] / ROWS, rtol=1e-5)


CONTRAST = {**ENCODER, "objective.kind": "contrastive", "objective.temperature": 0.5}
CONTRAST |= {"model.residual_dropout": 0.3, "model.pooler": True}


def texts_of(**more):
    batch = {name: batch_of()[name] for name in ("tokens", "segments")}
    return {**batch, "weights": np.ones((ROWS, 1), np.float32), **more}


@pytest.mark.parametrize("pooling", ["first", "mean", "pooler"])
def test_of_all_texts_one_is_the_same(pooling):
    """InfoNCE in float64; the last row is no text but fills the batch, as validation's do."""
    config = tiny({**CONTRAST, "objective.pooling": pooling})
    weights = np.float32(np.arange(ROWS)[:, None] < ROWS - 1)
    params, batch, key = parameters(config), texts_of(weights=weights), jax.random.key(3)
    batch["segments"][-1] = 0
    real, vectors = batch["segments"][..., None], []
    for each in jax.random.split(key):
        given = {"segments": batch["segments"], "key": each}
        states = outputs(config, params, batch["tokens"], method="hidden", **given)[0]
        states = np.asarray(states, np.float64)
        text = states[:, 0]
        if pooling == "mean":
            text = (states * real).sum(1) / np.maximum(real.sum(1), 1)
        elif pooling == "pooler":
            text = np.tanh(text @ params["pooler"]["kernel_DM"] + params["pooler"]["bias_M"])
        text = text[: ROWS - 1]
        vectors.append(text / np.linalg.norm(text, axis=-1, keepdims=True))
    similarity = vectors[0] @ vectors[1].T / 0.5
    expected = (np.log(np.exp(similarity).sum(1)) - np.diag(similarity)).sum()
    minimised, nll, _ = losses_of(config, params, batch, key)
    np.testing.assert_allclose([minimised, nll], expected, rtol=1e-5)


def test_texts_of_all_devices_are_told_apart():
    with jax.enable_x64(True):
        double = {"model.param_dtype": "float64", "model.compute_dtype": "float64"}
        config, mesh = tiny({**CONTRAST, **double}), make_mesh(4, 2, 1)
        params, batch, key = parameters(config), texts_of(), jax.random.key(3)
        expected = losses_of(config, params, batch, key)[:2]
        with use_mesh(mesh):
            places = abstract_parameters(Transformer(config.model), mesh)
            params = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, places))
            batch = jax.device_put(batch, sharding(mesh, "tokens"))
            np.testing.assert_allclose(losses_of(config, params, batch, key)[:2], expected)


def test_the_routers_of_both_stacks_are_balanced_apart():
    keys = {"model.stack": "encoder_decoder", "model.num_layers": 1, "model.num_experts": 4}
    keys |= {"objective.router_aux_loss": 0.3, "objective.router_z_loss": 0.2}
    config, batch = tiny(keys), both_of(batch_of())
    params, both = parameters(config), {"segments": batch["source_segments"]}
    minimised, nll, others = losses_of(config, params, batch)
    memory, encoder = outputs(config, params, batch["source"], method="encode", **both)
    decoder = outputs(config, params, batch["tokens"], method="hidden", memory=memory)[2]
    expected = sum(router_loss(each, config.model, config.objective) for each in (encoder, decoder))
    np.testing.assert_allclose(minimised - nll, expected * batch["weights"].sum(), rtol=1e-4)
    together = router_loss(others["routed"], config.model, config.objective)
    assert abs(together * 2 - expected) > 1e-3
    assert others["routed"]["count_E"].shape == (2, 4)
