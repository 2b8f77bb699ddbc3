"""What the tests share; the statistical test itself is in ``ztest.py``."""

import jax
import pytest


@pytest.fixture
def x64():
    """64-bit floats: for tests of bias, where rounding must not matter."""
    with jax.enable_x64(True):
        yield
