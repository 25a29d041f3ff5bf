import pytest

from tests.composition import matrix
from tests.composition.covering import covering_rows, pairs

FACTORS = {"a": (0, 1, 2, 3), "b": (0, 1, 2), "c": ("x", "y"), "d": (True, False), "e": (0, 1, 2)}


def occurs(target, rows):
    return any(target.items() <= row.items() for row in rows)


def allowed(row):
    return not (row.get("a") == 0 and row.get("b") == 1) and row.get("e") != 2


@pytest.mark.parametrize("seed", range(5))
def test_every_pair_occurs_in_few_rows(seed):
    rows = covering_rows(FACTORS, pairs(FACTORS), lambda row: True, seed)
    assert all(occurs(pair, rows) for pair in pairs(FACTORS))
    assert 4 * 3 <= len(rows) <= 18  # of 144
    assert rows == covering_rows(FACTORS, pairs(FACTORS), lambda row: True, seed)


def test_what_is_not_allowed_does_not_occur_and_the_rest_does():
    rows = covering_rows(FACTORS, pairs(FACTORS), allowed, 0)
    assert all(row.keys() == FACTORS.keys() and allowed(row) for row in rows)
    for pair in pairs(FACTORS):
        assert occurs(pair, rows) == allowed(pair), pair


def test_pairs_are_all_pairs_of_two_factors():
    assert len(pairs({"a": (0, 1, 2), "b": (0, 1), "c": (0, 1)})) == 3 * 2 + 3 * 2 + 2 * 2


def test_the_matrix_has_every_pair_in_float64_or_refuses_it():
    rows = matrix.rows()
    refused = matrix.refused_rows(rows)
    assert len(rows) <= 200
    for pair in pairs(matrix.FACTORS):
        wanted = pair if "dtype" in pair else {**pair, "dtype": "float64"}
        assert occurs(wanted, rows) or (not matrix.allowed(pair) and not occurs(pair, rows)), pair
    assert not any(matrix.allowed(row) for row in refused)
    for names, _ in matrix.RULES:
        assert any(not matrix.allowed({name: row[name] for name in names}) for row in refused)
