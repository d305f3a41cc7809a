"""Makes the mpmath oracle of this folder importable, at 40 digits."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _forty_digits():
    import mpmath

    with mpmath.workdps(40):
        yield
