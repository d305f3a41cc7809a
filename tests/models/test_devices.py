"""The likelihood on a device without float64 is that of the CPU, values and gradients."""

import pytest
import torch
from float32_device import float32_device

from mixdpo_pyro.models import (
    BestOf,
    RaoKupper,
    conditional_strength,
    gamma_log_prob,
    lerch_phi_minus_one,
    mixed_logit_log_prob,
    observed_log_prob,
)
from mixdpo_pyro.models.devices import has_float64

MARGIN = torch.tensor([3.0, -1.0, 0.5, 8.0])
IDS = torch.tensor([4, 4, 7, 7])

LIKELIHOODS = {
    "gamma": lambda m, mean, cv, ids: mixed_logit_log_prob(m, mean, cv, "gamma"),
    "lognormal": lambda m, mean, cv, ids: mixed_logit_log_prob(m, mean, cv),
    "fixed": lambda m, mean, cv, ids: mixed_logit_log_prob(m, mean, cv, "fixed"),
    "noisy": lambda m, mean, cv, ids: mixed_logit_log_prob(m, mean, cv, flip_probability=0.1),
    "panel": lambda m, mean, cv, ids: mixed_logit_log_prob(m, mean, cv, annotator=ids),
    "ties": lambda m, mean, cv, ids: observed_log_prob(
        RaoKupper(0.5), m, mean, cv, outcome=torch.ones_like(ids)
    ),
    "sets": lambda m, mean, cv, ids: observed_log_prob(
        BestOf(), m, mean, cv, outcome=ids - ids + torch.tensor([1, 0, 1, 0]).to(ids.device),
        choice_set=ids,
    ),
    "series": lambda m, mean, cv, ids: gamma_log_prob(m, mean, cv),
    "lerch": lambda m, mean, cv, ids: lerch_phi_minus_one(m.abs(), mean),
}  # fmt: skip


def on(device, *values):
    """The values as leaves on a device."""
    return [v.clone().to(device).requires_grad_(v.is_floating_point()) for v in values]


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihood_and_gradients_are_those_of_the_cpu(name):
    values = MARGIN, torch.tensor(0.7), torch.tensor(0.5), IDS
    near = on("cpu", *values)
    expected = LIKELIHOODS[name](*near)
    expected.sum().backward()
    with float32_device() as device:
        there = on(device, *values)
        found = LIKELIHOODS[name](*there)
        assert (found.device, found.dtype) == (device, torch.float32)
        found.sum().backward()
        assert torch.equal(found.cpu(), expected)
        for here, other in zip(there, near, strict=True):
            assert (here.grad is None) == (other.grad is None)
            if other.grad is not None:
                assert here.grad.device == device
                assert torch.equal(here.grad.cpu(), other.grad)


def test_conditional_strength_is_that_of_the_cpu():
    expected = conditional_strength(MARGIN, 0.7, 0.5, annotator=IDS)
    with float32_device() as device:
        found = conditional_strength(MARGIN.to(device), 0.7, 0.5, annotator=IDS.to(device))
        for here, other in zip(found, expected, strict=True):
            assert here.device == device and torch.equal(here.cpu(), other)


def test_the_device_of_these_tests_refuses_float64_and_a_second_device():
    assert has_float64(torch.device("meta"))  # of itself it has
    with float32_device() as device:
        assert not has_float64(device) and has_float64(torch.device("cpu"))
        there = MARGIN.to(device)
        for make in (there.double, lambda: torch.zeros(2, dtype=torch.float64, device=device)):
            with pytest.raises(TypeError, match="float64"):
                make()
        with pytest.raises(RuntimeError, match="same device"):
            there + MARGIN
        assert torch.equal((2 * there).cpu(), 2 * MARGIN)
    assert has_float64(torch.device("meta"))
