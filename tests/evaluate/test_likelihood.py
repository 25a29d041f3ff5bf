"""Evaluation against sums over the whole stream: each token but the first counts once."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import DataConfig
from lm.data.loader import ValidationBatches
from lm.data.store import TokenStore
from lm.evaluate.likelihood import IN_FLIGHT, Likelihood
from lm.mesh import make_mesh, use_mesh

NUM_TOKENS, NUM_BYTES, V = 203, 1000, 11
MESHES = {"1 device": (1, 1, 1), "(8,1,1)": (8, 1, 1), "(2,2,2)": (2, 2, 2)}


def store_of(num_tokens=NUM_TOKENS):
    tokens = np.random.default_rng(0).integers(0, V, num_tokens).astype(np.uint16)
    return TokenStore(tokens, np.array([0, 17, 100]), NUM_BYTES)


def config_of(batch_size, order):
    return DataConfig(
        path="",
        weights="",
        validation_path="",
        validation_fraction=0.1,
        text_key="",
        tokenizer="bytes",
        tokenizer_size=0,
        special_tokens="",
        batch_size=batch_size,
        sequence_length=8,
        target_length=0,
        order=order,
        separate_documents=True,
        prefetch=1,
        cache="",
    )


def mesh_of(sizes):
    return make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])


@jax.jit
def bigram_step(params, batch):
    """(nats, weight) of a table of logits of the next token, given the token."""
    before_BTV, after_BTV = (jax.nn.one_hot(batch[name][0], V) for name in ("tokens", "targets"))
    log_p_BT = (before_BTV @ jax.nn.log_softmax(params) * after_BTV).sum(-1)
    weights_BT = batch["weights"][0]
    return -(log_p_BT * weights_BT).sum(), weights_BT.sum()


@pytest.mark.parametrize("order", ["shuffled", "contiguous"])
@pytest.mark.parametrize("batch_size", [8, 16, 64])
@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_the_whole_part_counts_once(sizes, batch_size, order):
    store = store_of()
    logits_VV = np.random.default_rng(1).normal(size=(V, V))
    probability_VV = np.exp(logits_VV) / np.exp(logits_VV).sum(1, keepdims=True)
    nats = -np.log(probability_VV[store.tokens[:-1], store.tokens[1:]])
    mesh = mesh_of(sizes)
    with use_mesh(mesh):
        batches = ValidationBatches(store, config_of(batch_size, order))
        evaluate = Likelihood(bigram_step, batches, NUM_BYTES, mesh, ahead=2)
        values = evaluate(jnp.asarray(logits_VV, jnp.float32))
    assert {*values} == {"eval/loss", "eval/bits_per_byte"}
    assert values["eval/loss"] == pytest.approx(nats.mean(), rel=1e-6)
    assert values["eval/bits_per_byte"] == pytest.approx(nats.sum() / np.log(2) / NUM_BYTES, 1e-6)


def test_sums_of_many_batches_lose_nothing():
    """Of 2**24 + 1 + 1 + ... float32 keeps no 1."""
    mesh, store = mesh_of((1, 1, 1)), store_of()
    batches = ValidationBatches(store, config_of(1, "shuffled"))
    sums = iter([2.0**24] + [1.0] * (len(batches) - 1))

    def step(params, batch):
        return jnp.float32(next(sums)), batch["weights"].sum()

    values = Likelihood(step, batches, NUM_BYTES, mesh, ahead=1)(None)
    assert values["eval/loss"] == (2**24 + len(batches) - 1) / (NUM_TOKENS - 1)


def test_few_batches_are_on_the_devices_at_once():
    mesh, waited, begun = mesh_of((1, 1, 1)), [], []

    class Pending(float):
        def block_until_ready(self):
            waited.append(self)

    def step(params, batch):
        assert len(begun) < len({*waited}) + IN_FLIGHT
        begun.append(Pending(len(begun)))
        return begun[-1], 1.0

    batches = ValidationBatches(store_of(), config_of(1, "shuffled"))
    Likelihood(step, batches, NUM_BYTES, mesh, ahead=1)(None)
    assert len(begun) == len(batches) > 2 * IN_FLIGHT
