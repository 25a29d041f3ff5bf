"""The comparison catches bugs of the kinds that it is for: each is planted in the run on eight
devices and nowhere in the reference.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

import lm.mesh
import lm.nn.attention
import lm.nn.matmul
import lm.train.step
from lm.nn.attention import Visible
from tests.composition import matrix

PLAIN = {name: next(iter(values)) for name, values in matrix.FACTORS.items()}
ROW = {
    **PLAIN,
    "mesh": "1x2x4",
    "heads": "8/2",
    "rows": "documents",
    "accumulation": "2",
    "parallel_block": "False",
    "position": "rope",
}


@functools.cache
def reference():
    config = matrix.config_of(ROW)
    return matrix.run(matrix.reference_of(config), matrix.batch_of(ROW, config))


def check():
    config = matrix.config_of(ROW)
    outcome = matrix.run(config, matrix.batch_of(ROW, config))
    matrix.compare(outcome, reference(), matrix.TOLERANCE["float64"])


def gradients_summed_once_too_often(monkeypatch):
    once = lm.nn.matmul.product_gradient
    monkeypatch.setattr(lm.nn.matmul, "product_gradient", lambda *given: 2 * once(*given))


def attention_across_documents(monkeypatch):
    def mask(self):
        return self.positions_BT[:, :, None] >= self.positions_BS[:, None, :]

    monkeypatch.setattr(Visible, "mask", mask)


def parts_averaged_as_if_equal(monkeypatch):
    def accumulate(value_and_grad, params, batch):
        parts = batch["weights"].shape[0]
        share = batch["weights"].sum((1, 2)) / batch["weights"].sum()
        sums = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        for number in range(parts):
            part = jax.tree.map(lambda x, n=number: x[n], batch)
            (_, (nll, _)), grads = value_and_grad(params, part, number)
            mean = jax.tree.map(lambda x, n=number: x / share[n] / parts, (nll, grads))
            sums = jax.tree.map(jnp.add, sums, mean)
        nll, grads = sums
        return (nll, {"routed": {}}), grads

    monkeypatch.setattr(lm.train.step, "accumulate", accumulate)


def key_heads_copied_in_the_wrong_order(monkeypatch):
    def tile(x, count, dim):
        return jnp.concatenate([x] * count, dim)

    monkeypatch.setattr(lm.nn.attention.jnp, "repeat", tile)


def test_without_a_bug_they_are_equal():
    check()


@pytest.mark.parametrize(
    "bug",
    [
        gradients_summed_once_too_often,
        attention_across_documents,
        parts_averaged_as_if_equal,
        key_heads_copied_in_the_wrong_order,
    ],
    ids=lambda bug: bug.__name__,
)
def test_a_planted_bug_is_caught(bug, monkeypatch):
    reference()
    bug(monkeypatch)
    with pytest.raises(AssertionError, match="off by more than"):
        check()
