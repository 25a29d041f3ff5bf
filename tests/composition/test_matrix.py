"""Every pair of switches, in float64 on eight devices, equals one device: loss and every gradient.

`make test` runs 8 of the rows, `make composition` all of them.
"""

import os

import pytest

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


@pytest.mark.parametrize("row", REFUSED, ids=name)
def test_what_is_not_supported_is_refused(row):
    with pytest.raises(UserError):
        config = matrix.config_of(row)
        matrix.run(config, matrix.batch_of(row, config))
