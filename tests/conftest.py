"""What every test shares: no network, one thread, fixed seeds, Pyro's checks on."""

import os
import tempfile

# Set before any Hugging Face library is imported: tests neither download nor report.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
# Matrices of tests are small: more threads wait for each other, and torch reads this on import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing is written to the home folder of whoever runs the tests.
os.environ["MIXDPO_CACHE"] = tempfile.mkdtemp(prefix="mixdpo-cache-")

import pyro
import pytest
import torch


def pytest_addoption(parser):
    words = "of a test with several cases, run the first one"
    parser.addoption("--first-cases", action="store_true", help=words)


@pytest.hookimpl(trylast=True)  # of the cases that other options have left
def pytest_collection_modifyitems(config, items):
    """Where `--jaxtyping-packages` checks annotations, they refuse before our messages do."""
    if config.getoption("first_cases"):
        first = {}
        for item in items:
            first.setdefault(item.nodeid.partition("[")[0], item)
        kept = list(first.values())
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept
    if config.getoption("jaxtyping_packages"):
        for item in items:
            if item.get_closest_marker("wrong_types"):
                item.add_marker(pytest.mark.skip("an annotation refuses the value first"))


@pytest.fixture(autouse=True)
def _isolated_test():
    """Seed, switch Pyro's validation on, and fail a test that leaves global state changed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    dtype = torch.get_default_dtype()
    with pyro.validation_enabled():
        yield
    assert torch.get_default_dtype() == dtype, "the test changed the default dtype"
    assert not pyro.get_param_store(), "the test left parameters in Pyro's global store"


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory):
    """Folder of a small random Llama that knows the words of the simulated world."""
    from scenarios import build_policy_folder, small_world

    folder = tmp_path_factory.mktemp("policy")
    build_policy_folder(folder, small_world())
    return str(folder)
