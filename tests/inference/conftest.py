"""Simulated preferences with known truth, shared by the tests of inference."""

import numpy as np
import pytest
from scipy.special import expit

# A correct program fails a statistical test this often; with fixed seeds it does or does not.
FAILURE_RATE = 2e-5


@pytest.fixture
def failure_rate():
    return FAILURE_RATE


@pytest.fixture(scope="session")
def simulate():
    """Draw margins of the chosen over the rejected response, annotators and their strengths."""

    def draw(num_annotators, choices_each, cv, family="gamma", mean=0.1, spread=3.0, seed=0):
        rng = np.random.default_rng(seed)
        strength = _strengths(rng, family, mean, cv, num_annotators)
        annotator = np.repeat(np.arange(num_annotators), choices_each)
        difference = rng.normal(0, spread / mean, num_annotators * choices_each)
        prefers_first = rng.random(len(difference)) < expit(strength[annotator] * difference)
        return np.where(prefers_first, difference, -difference), annotator, strength

    return draw


def _strengths(rng, family, mean, cv, size):
    if cv == 0:
        return np.full(size, mean)
    if family == "gamma":
        return rng.gamma(cv**-2, mean * cv**2, size)
    sigma = np.sqrt(np.log1p(cv**2))
    return rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, size)
