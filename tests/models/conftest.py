"""Makes the mpmath oracle of this folder importable, at 30 digits."""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

# The first call of a test may be slow, on a busy machine any may: no test asserts time.
settings.register_profile("models", deadline=None, derandomize=True)
settings.load_profile("models")
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _thirty_digits():
    import mpmath

    with mpmath.workdps(30):
        yield
