"""Every pair of switches, in float64 on eight devices, equals one device: loss and every gradient.

`make test` runs 8 of the rows, `make composition` all of them.
"""

import os
from unittest import mock

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import lm.mesh
from lm.errors import UserError
from tests.composition import matrix

ROWS = matrix.rows()
REFUSED = matrix.refused_rows(ROWS)
COUNT = int(os.environ.get("LM_COMPOSITION_ROWS", "8"))

pytestmark = pytest.mark.composition


def name(row):
    return f"{row['mesh']}-{row['dtype']}"


@pytest.mark.parametrize("row", ROWS[:COUNT], ids=name)
def test_row_equals_one_device(row):
    config = matrix.config_of(row)
    reference = matrix.reference_of(config)
    batch = matrix.batch_of(row, config)
    expected = matrix.run(reference, batch)
    outcome = matrix.run(config, batch)
    assert outcome.fingerprint == expected.fingerprint
    matrix.compare(outcome, expected, matrix.TOLERANCE[row["dtype"]])


@pytest.fixture
def as_on_tpus(monkeypatch):
    """What is written for TPUs runs on CPUs, with as few devices as there are.

    Without stored programs: XLA for CPUs runs the collectives of one that it has loaded in any
    order, and those that are written by hand have all the same number.
    """

    def platform_dependent(*args, default, tpu=None, **_):
        return (tpu or default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", platform_dependent)
    monkeypatch.setattr(lm.mesh, "AT_ONCE", 1)
    stored = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", stored)
    compilation_cache.reset_cache()


@pytest.mark.parametrize("mesh", ["1x8x1", "1x4x2"])
@pytest.mark.parametrize("factor", [{"heads": "4/1"}, {"experts": "dropless"}])
def test_what_is_moved_in_stages_equals_one_device(mesh, factor, as_on_tpus, monkeypatch):
    plain = {name: next(iter(values)) for name, values in matrix.FACTORS.items()}
    row = {**plain, "mesh": mesh, **factor}
    config = matrix.config_of(row)
    batch = matrix.batch_of(row, config)
    expected = matrix.run(matrix.reference_of(config), batch)
    moved = {
        name: mock.Mock(wraps=getattr(jax.lax, name)) for name in ("psum_scatter", "all_gather")
    }
    for name, function in moved.items():
        monkeypatch.setattr(jax.lax, name, function)
    outcome = matrix.run(config, batch)
    for function in moved.values():
        groups = [call.kwargs["axis_index_groups"] for call in function.call_args_list]
        assert groups and all(groups)
    matrix.compare(outcome, expected, matrix.TOLERANCE["float64"])


@pytest.mark.parametrize("row", REFUSED, ids=name)
def test_what_is_not_supported_is_refused(row):
    with pytest.raises(UserError):
        config = matrix.config_of(row)
        matrix.run(config, matrix.batch_of(row, config))
