"""Visible.mask against a double loop over queries and keys."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.attention import Visible

# Two rows of 5 queries and 7 keys: the last queries of a text, and a document after another.
QUERIES = np.array([[2, 3, 4, 5, 6], [2, 0, 1, 2, 3]])
KEYS = np.array([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 1, 2, 3]])
QUERY_SEGMENTS = np.array([[1, 1, 1, 1, 1], [1, 2, 2, 2, 0]])
KEY_SEGMENTS = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 2, 2, 2, 0]])
UNTIL = np.array([[4, 4, 4, 5, 6], [2, 1, 1, 2, 3]])
GLOBAL = np.array([[1, 0, 0, 0, 0, 0, 1], [0, 1, 0, 0, 0, 1, 0]]) > 0

KINDS = {
    "causal": {},
    "causal_window": {"window": 3},
    "prefix": {"until_BT": UNTIL},
    "prefix_and_window": {"until_BT": UNTIL, "window": 2},
    "full": {"causal": False},
    "even_window": {"causal": False, "window": 4},
    "odd_window": {"causal": False, "window": 5},
    "global": {"causal": False, "window": 2, "global_BS": GLOBAL},
}


def sees(b, t, s, segments, causal=True, window=0, until_BT=None, global_BS=None):
    query, key = QUERIES[b, t], KEYS[b, s]
    if segments and QUERY_SEGMENTS[b, t] != KEY_SEGMENTS[b, s]:
        return False
    if global_BS is not None and global_BS[b, s]:
        return True
    if not causal:
        return not window or abs(query - key) <= window // 2
    last = query if until_BT is None else until_BT[b, t]
    return key <= last and (not window or key > query - window)


@pytest.mark.parametrize("segments", [False, True], ids=["one_text", "segments"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_its_definition(kind, segments):
    packing = {"segments_BT": QUERY_SEGMENTS, "segments_BS": KEY_SEGMENTS} if segments else {}
    arrays = {"positions_BT": QUERIES, "positions_BS": KEYS, **packing, **KINDS[kind]}
    arrays = {name: jnp.asarray(x) if np.ndim(x) else x for name, x in arrays.items()}
    expected = [
        sees(b, t, s, segments, **KINDS[kind])
        for b, t, s in itertools.product(range(2), range(5), range(7))
    ]
    np.testing.assert_array_equal(Visible(**arrays).mask().ravel(), expected)


def test_one_row_of_positions_is_for_all():
    positions = jnp.arange(4)[None]
    for causal, expected in ((True, np.tri(4)), (False, np.ones((4, 4)))):
        mask = Visible(positions, positions, causal=causal).mask()
        np.testing.assert_array_equal(mask, expected[None] > 0)
