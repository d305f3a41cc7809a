import pytest
from scenarios import run_values


@pytest.fixture
def values(tmp_path, policy_folder):
    return run_values(tmp_path, policy_folder)
