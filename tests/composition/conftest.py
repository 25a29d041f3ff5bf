import jax
import pytest


@pytest.fixture(autouse=True)
def float64():
    """The matrix runs in float64, where rounding cannot hide a bug."""
    with jax.enable_x64(True):
        yield
