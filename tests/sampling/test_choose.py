"""choose: the sets of top-k and top-p, and the frequencies of what is drawn, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from lm.sampling import choose as module

candidates = jax.jit(module.candidates, static_argnums=1)
choose = jax.jit(module.choose, static_argnums=3)


def logits(rows, vocab, spread=2.0):
    drawn = np.random.default_rng(0).normal(0, spread, (rows, vocab))
    return drawn.astype(np.float32)


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def expected(logits_V, temperature=1.0, top_k=0, top_p=None):
    """The probability of each token, written out: the largest, one after the other, until there
    are top_k of them or their mass reaches top_p.
    """
    weights = np.exp((logits_V.astype(np.float64) - logits_V.max()) / temperature)
    order = np.argsort(-weights, kind="stable")[: top_k or None]
    total, mass, kept = weights[order].sum(), 0.0, []
    for token in order:
        kept.append(token)
        mass += weights[token] / total
        if top_p is not None and mass >= top_p:
            break
    probs = np.zeros(len(weights))
    probs[kept] = weights[kept] / weights[kept].sum()
    return probs


@pytest.mark.parametrize("top_k", [1, 5, 49, 50])
def test_which_tokens_are_left(top_k):
    rows = logits(20, 50)
    for top_p in (None, 1e-9, 0.3, 0.9, 0.999):
        scores, tokens = map(np.asarray, candidates(rows, top_k, top_p))
        for n, row in enumerate(rows):
            left = np.flatnonzero(expected(row, top_k=top_k, top_p=top_p))
            assert {*tokens[n][np.isfinite(scores[n])]} == {*left}


def test_a_mass_that_is_reached_exactly():
    row = np.log(np.array([[0.125, 0.5, 0.125, 0.25]], np.float32))
    for top_p, left in ((0.5, 1), (0.625, 2), (0.75, 2), (0.875, 3), (0.9, 4)):
        scores, tokens = candidates(row, 4, top_p)
        assert np.isfinite(scores).sum() == left
        assert tokens.tolist() == [[1, 3, 0, 2]]  # of equal ones, the first comes first


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, None), (0.5, 0, None), (3.0, 0, None), (1.0, 6, None), (1.0, 0, 0.8), (1.7, 9, 0.9)],
)
def test_frequencies_are_the_probabilities(temperature, top_k, top_p):
    draws, row = 20_000, logits(1, 40)
    drawn = choose(np.repeat(row, draws, 0), keys(draws), temperature, top_k, top_p)
    found = np.bincount(np.asarray(drawn)[:, 0], minlength=40)
    probs = expected(row[0], temperature, top_k, top_p)
    assert found[probs == 0].sum() == 0
    # Rare ones are counted together: the statistic is that of the normal approximation.
    rare = (probs > 0) & (probs * draws < 10)
    counts = [*found[probs * draws >= 10], *([found[rare].sum()] if rare.any() else [])]
    means = [*probs[probs * draws >= 10], *([probs[rare].sum()] if rare.any() else [])]
    means = np.array(means) * draws
    statistic = (np.square(counts - means) / means).sum()
    assert statistic < chi2.ppf(0.999, len(means) - 1)


def test_a_set_is_drawn_from_whole():
    row = logits(1, 40)
    drawn = choose(np.repeat(row, 4000, 0), keys(4000), 2.0, 7, 0.8)
    left = np.flatnonzero(expected(row[0], 2.0, 7, 0.8))
    assert {*np.asarray(drawn)[:, 0]} == {*left} and 1 < len(left) < 7


@pytest.mark.parametrize("spread", [0.1, 1.5, 8.0])
def test_few_are_sorted_where_few_are_enough(monkeypatch, spread):
    """The result is that of sorting all, also where the few do not reach the mass."""
    rows, all_keys = logits(50, 3000, spread), keys(50)
    few = choose(rows, all_keys, 1.0, 0, 0.9)
    monkeypatch.setattr(module, "FEW", 3000)
    sort_all = functools.partial(module.choose, top_k=0)  # traced anew, with another FEW
    np.testing.assert_array_equal(few, jax.jit(sort_all)(rows, all_keys, 1.0, top_p=0.9))


@pytest.mark.parametrize(
    "rule", [(None, 0, None), (1e-30, 0, None), (5.0, 1, None), (5.0, 0, 1e-9), (1e-6, 3, 0.5)]
)
def test_rules_that_leave_the_largest(rule):
    rows = logits(50, 30)
    drawn = choose(rows, keys(50), *rule)
    assert drawn.shape == (50, 1) and drawn.dtype == jnp.int32
    np.testing.assert_array_equal(drawn[:, 0], rows.argmax(-1))


@pytest.mark.parametrize("rule", [(1.0, 0, None), (0.7, 5, None), (1.3, 0, 0.9)])
def test_a_row_depends_on_itself_alone(rule):
    rows, all_keys = logits(8, 60), keys(8)
    together = choose(rows, all_keys, *rule)
    for n in range(8):
        alone = choose(rows[n : n + 1], all_keys[n : n + 1], *rule)
        assert together[n, 0] == alone[0, 0]
    # What a rule leaves out changes nothing for a token that it leaves in: noise is the token's.
    free = choose(rows, all_keys, rule[0], 0, None)
    left = np.array(
        [expected(row, *rule)[token] > 0 for row, [token] in zip(rows, free, strict=True)]
    )
    np.testing.assert_array_equal(together[left], free[left])
