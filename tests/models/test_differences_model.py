import math

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from scipy.special import expit

from mixdpo_pyro.models import DifferencesModel

PARTS = ("strength", "taste", "care", "error")


def crossed(people=3, pairs=4, attributes=2):
    """Everybody judges every pair."""
    rng = torch.Generator().manual_seed(0)
    margin = torch.randn(pairs, generator=rng, dtype=torch.float64) * 2
    attribute = torch.randn(pairs, attributes, generator=rng, dtype=torch.float64)
    annotator, pair = torch.arange(people).repeat_interleave(pairs), torch.arange(pairs)
    pair = pair.repeat(people)
    choice = (torch.rand(len(pair), generator=rng) < 0.5).double()
    return {
        "margin": margin[pair], "annotator": annotator, "pair": pair,
        "attribute": attribute[pair], "choice": choice,
    }  # fmt: skip


VALUES = {
    "mean": 1.3,
    "cv": 0.6,
    "strength_z": [0.5, -1.0, 2.0],
    "taste_mean": [0.2, -0.4],
    "taste_sd": [0.5, 1.5],
    "taste_z": [[0.1, 0.2], [-1.0, 0.3], [0.0, 2.0]],
    "lapse_mean": 0.2,
    "lapse_size": 3.0,
    "lapse_rate": [0.01, 0.3, 0.9],
    "error_ratio": 0.4,
    "error_z": [0.3, -0.2, 1.5, -2.0],
}


def by_hand(data, parts):
    """Log density of the values above and the choices, by scipy, choice by choice."""
    v = {name: np.asarray(value) for name, value in VALUES.items()}
    d = {name: value.numpy() for name, value in data.items()}
    total = stats.norm.logpdf(math.log(1.3), 0, 0.5) - math.log(1.3)
    strength, taste, rate, error = np.full(3, 1.3), np.zeros((3, 2)), np.zeros(3), np.zeros(4)
    if "strength" in parts:
        s = math.sqrt(math.log1p(0.6**2))
        strength = np.exp(math.log(1.3) - s**2 / 2 + s * v["strength_z"])
        total += stats.halfnorm.logpdf(0.6) + stats.norm.logpdf(v["strength_z"]).sum()
    if "taste" in parts:
        taste = v["taste_mean"] + v["taste_sd"] * v["taste_z"]
        total += stats.norm.logpdf(v["taste_mean"]).sum() + stats.norm.logpdf(v["taste_z"]).sum()
        total += stats.halfnorm.logpdf(v["taste_sd"]).sum()
    if "care" in parts:
        rate = v["lapse_rate"]
        total += stats.beta.logpdf(0.2, 1, 9) + stats.lognorm.logpdf(3.0, 1.0, scale=2.0)
        total += stats.beta.logpdf(rate, 0.2 * 3, 0.8 * 3).sum()
    if "error" in parts:
        error = 0.4 * np.sqrt((d["margin"] ** 2).mean()) * v["error_z"]
        total += stats.halfnorm.logpdf(0.4, scale=0.7) + stats.norm.logpdf(v["error_z"]).sum()
    for g, p, delta, a, y in zip(
        d["annotator"], d["pair"], d["margin"], d["attribute"], d["choice"], strict=True
    ):
        kept = expit(strength[g] * (delta + error[p]) + taste[g] @ a)
        chosen = (1 - rate[g]) * kept + rate[g] / 2
        total += math.log(chosen if y else 1 - chosen)
    return total


@pytest.mark.parametrize("parts", [(), *((part,) for part in PARTS), PARTS])
def test_log_density_is_that_by_hand(parts):
    data = crossed()
    values = {k: torch.tensor(v, dtype=torch.float64) for k, v in VALUES.items()}
    model = pyro.condition(DifferencesModel(parts), values)
    trace = pyro.poutine.trace(model).get_trace(**data)
    assert trace.log_prob_sum().item() == pytest.approx(by_hand(data, parts), abs=1e-9)


@pytest.mark.parametrize("parts", [(), *((part,) for part in PARTS), PARTS])
def test_vectorised_particles_of_a_guide_score_every_part(parts):
    data = crossed()
    with pyro.settings.context(module_local_params=True):
        model = DifferencesModel(parts)
        bound = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
        loss = bound(model, AutoNormal(model))
        loss(**data)
        value = loss(**data)
        value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(p.grad).all() for p in loss.parameters())


def test_choices_are_simulated_at_their_probability():
    """People who always lapse choose at random, others by the margin; 4.5 standard errors."""
    annotator = torch.tensor([0, 1]).repeat_interleave(4_000)
    margin = torch.full((8_000,), 2.0, dtype=torch.float64)
    values = {"mean": torch.tensor(1.0), "lapse_rate": torch.tensor([0.0, 1.0]).double()}
    model = pyro.condition(DifferencesModel({"care"}), values)
    torch.manual_seed(0)
    share = model(margin, annotator).reshape(2, -1).mean(1)
    assert share.tolist() == pytest.approx([expit(2.0), 0.5], abs=4.5 * 0.5 / math.sqrt(4_000))


def test_a_rate_of_zero_and_large_logits_lose_no_digits():
    data = {"margin": torch.tensor([800.0, -800.0]).double(), "annotator": torch.tensor([0, 1])}
    values = {"mean": torch.tensor(1.0), "lapse_rate": torch.zeros(2).double()}
    model = pyro.condition(DifferencesModel({"care"}), values)
    trace = pyro.poutine.trace(model).get_trace(**data, choice=torch.ones(2).double())
    found = trace.nodes["choice"]["fn"].log_prob(torch.ones(2).double())
    assert -1e-300 < found[0] <= 0 and found[1] < -650


@pytest.mark.wrong_types
def test_unknown_parts_and_missing_attributes_are_refused():
    with pytest.raises(ValueError, match="parts among strength, taste, care, error, got 'mood'"):
        DifferencesModel({"mood"})
    with pytest.raises(ValueError, match="Expected 0 < beta, got 0"):
        DifferencesModel(beta=0)
    with pytest.raises(ValueError, match="Expected attributes"):
        DifferencesModel({"taste"})(torch.ones(2), torch.tensor([0, 1]))
