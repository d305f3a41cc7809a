import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.poutine import condition, trace
from pyro.poutine.util import site_is_subsample

from mixdpo_pyro.models import (
    FAMILIES,
    Draws,
    LatentStrengthModel,
    PreferenceModel,
    mixed_logit_log_prob,
)

float64 = torch.float64
RANDOM = ("gamma", "lognormal", "normal")
VALUES = {"mean": torch.tensor(0.2, dtype=float64), "cv": torch.tensor(0.7, dtype=float64)}


def scored(model, *args, values=VALUES, **kwargs):
    result = trace(condition(model, values)).get_trace(*args, **kwargs)
    result.compute_log_prob()
    return result


def latent_sites(result):
    return {name for name in result.stochastic_nodes if not site_is_subsample(result.nodes[name])}


@pytest.mark.parametrize("family", RANDOM)
@pytest.mark.parametrize("panel", [False, True], ids=["pairs", "panel"])
def test_joint_density_is_prior_plus_likelihood(family, panel):
    margin = torch.randn(8, dtype=float64) * 5
    annotator = torch.tensor([3, 3, 1, 1, 1, 9, 9, 3]) if panel else None
    result = scored(PreferenceModel(family), margin, annotator)
    likelihood = mixed_logit_log_prob(margin, 0.2, 0.7, family, annotator=annotator).sum()
    prior = dist.LogNormal(math.log(0.1), 0.5).log_prob(VALUES["mean"])
    prior = prior + dist.HalfNormal(1.0).log_prob(VALUES["cv"])
    torch.testing.assert_close(result.log_prob_sum(), prior + likelihood)


@pytest.mark.parametrize(
    ("mean", "sites"), [("prior", {"mean", "cv"}), ("fixed", {"cv"}), ("free", {"mean", "cv"})]
)
def test_the_anchor_decides_the_latent_sites(mean, sites):
    result = trace(PreferenceModel("gamma", mean_anchor=mean)).get_trace(torch.ones(3))
    assert latent_sites(result) == sites
    assert result.observation_nodes == ["choice"]


def test_the_free_anchor_has_no_prior():
    margin = torch.randn(8, dtype=float64)
    likelihood = mixed_logit_log_prob(margin, 0.2, 0.7, family="gamma").sum()
    torch.testing.assert_close(
        scored(PreferenceModel("gamma", mean_anchor="free"), margin).log_prob_sum(), likelihood
    )


def test_the_fixed_family_is_dpo_without_latents():
    margin = torch.randn(8)
    result = trace(PreferenceModel("fixed", beta=0.3)).get_trace(margin)
    assert not latent_sites(result)
    expected = torch.nn.functional.logsigmoid(0.3 * margin).sum()
    torch.testing.assert_close(result.log_prob_sum(), expected)


@pytest.mark.parametrize("model", [PreferenceModel("gamma"), LatentStrengthModel("gamma")])
@pytest.mark.parametrize("panel", [False, True], ids=["pairs", "panel"])
def test_minibatches_add_up_to_the_whole(model, panel):
    """Likelihood terms of two halves, each scaled to the whole, average to the whole's."""
    margin = torch.randn(12, dtype=float64) * 5
    annotator = torch.arange(12) // 3 if panel else torch.arange(12)
    strength = torch.rand(4 if panel else 12, dtype=float64)
    num_total = len(annotator.unique())

    def likelihood(part):
        values = {**VALUES, "strength": strength[annotator[part].unique()]}
        result = scored(
            model, margin[part], annotator[part] if panel else None, num_total, values=values
        )
        names = [name for name in ("strength", "choice") if name in result.nodes]
        return sum(result.nodes[name]["log_prob_sum"] for name in names)

    halves = likelihood(slice(0, 6)) + likelihood(slice(6, 12))
    torch.testing.assert_close(halves / 2, likelihood(slice(0, 12)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mean", ["prior", "fixed", "free"])
@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("panel", [False, True], ids=["pairs", "panel"])
def test_elbo_trains_a_guide_in_module_mode(family, mean, vectorize, panel):
    margin, annotator = torch.randn(10) * 10, torch.arange(10) // 3 if panel else None
    with pyro.settings.context(module_local_params=True):
        model = PreferenceModel(family, mean_anchor=mean)
        guide = AutoNormal(model) if family != "fixed" else lambda *args: None
        elbo = Trace_ELBO(4, max_plate_nesting=1, vectorize_particles=vectorize)(model, guide)
        loss = elbo(margin, annotator, 100)
        if family == "fixed":
            scale = 100 / (4 if panel else 10)
            expected = -scale * torch.nn.functional.logsigmoid(0.1 * margin).sum()
            torch.testing.assert_close(loss, expected)
        else:
            loss.backward()
            assert all(p.grad.isfinite().all() for p in elbo.parameters())


def test_particles_are_independent_replicates():
    """The vectorised ELBO of a point guide equals that of a single particle."""
    margin = torch.randn(10)
    model = PreferenceModel("gamma", mean_anchor="fixed")

    def guide(margin):
        pyro.sample("cv", dist.Delta(torch.tensor(0.5)))

    losses = [
        Trace_ELBO(n, max_plate_nesting=1, vectorize_particles=n > 1).loss(model, guide, margin)
        for n in (1, 5)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("family", RANDOM)
@pytest.mark.parametrize("flip", [0.0, 0.1])
@pytest.mark.parametrize("panel", [False, True], ids=["pairs", "panel"])
def test_integrating_the_latent_strength_gives_the_marginal_model(family, flip, panel):
    """Enumeration of the strength on a fine grid, of its logarithm where it is positive."""
    margin = torch.tensor([-6.0, 2.0, 11.0], dtype=float64)
    annotator = torch.zeros(3, dtype=torch.long) if panel else None
    grid = torch.linspace(-20.0, 4.0, 6001, dtype=float64).unsqueeze(-1)
    strength, log_slope = grid.exp(), grid
    if family == "normal":
        strength, log_slope = 0.2 + (grid + 8) / 8, torch.full_like(grid, -math.log(8))
    values = {**VALUES, "strength": strength.expand(-1, 1 if panel else 3)}
    nodes = scored(
        LatentStrengthModel(family, flip_probability=flip), margin, annotator, values=values
    ).nodes
    choices = nodes["choice"]["log_prob"]
    choices = choices.sum(-1, keepdim=True) if panel else choices
    log_joint = nodes["strength"]["log_prob"] + choices + log_slope
    integral = torch.trapezoid(log_joint.exp(), grid, dim=0).log()
    model = PreferenceModel(family, flip_probability=flip)
    marginal = model.log_prob(margin, *VALUES.values(), annotator)
    torch.testing.assert_close(integral, marginal, rtol=0, atol=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_simulated_choices_have_the_marginal_probability(family):
    """40,000 choices; five standard errors of a frequency."""
    margin = torch.tensor(8.0).expand(40_000)
    model = condition(
        LatentStrengthModel(family, beta=0.2), {k: v.float() for k, v in VALUES.items()}
    )
    frequency = model(margin, choice=None).mean().item()
    probability = mixed_logit_log_prob(margin[:1], 0.2, 0.7, family).exp().item()
    assert abs(frequency - probability) < 5 * math.sqrt(probability * (1 - probability) / 40_000)


def test_choices_of_one_annotator_are_simulated_with_one_strength():
    """Pairs of choices agree as often as E[p^2 + (1 - p)^2], not as often as independent ones."""
    margin, annotator = torch.full((40_000,), 8.0), torch.arange(40_000) // 2
    model = condition(
        LatentStrengthModel("gamma"), {"mean": torch.tensor(0.2), "cv": torch.tensor(2.0)}
    )
    agree = (model(margin, annotator, choice=None).view(-1, 2).diff() == 0).double().mean().item()
    two = [
        mixed_logit_log_prob(
            torch.tensor([s, s]) * 8, 0.2, 2.0, annotator=torch.zeros(2).long(), family="gamma"
        )
        for s in (1.0, -1.0)
    ]
    expected = sum(v.exp().item() for v in two)
    assert abs(agree - expected) < 5 * math.sqrt(expected * (1 - expected) / 20_000)


def test_enormous_utilities_are_scored():
    """Strength times margin overflows: agreeing is certain, disagreeing has a finite score."""
    margin = torch.tensor([3e38, -3e38])
    values = {
        "mean": torch.tensor(1.0),
        "cv": torch.tensor(1.0),
        "strength": torch.full((2,), 9.0),
    }
    choice = scored(LatentStrengthModel("gamma"), margin, values=values).nodes["choice"]
    assert choice["log_prob"].tolist() == [0.0, torch.finfo(torch.float32).min]


def test_other_estimators_are_used():
    margin = torch.randn(6)
    model = PreferenceModel("gamma", mean_anchor="fixed", estimator=Draws(4, seed=1))
    value = condition(model, {"cv": torch.tensor(0.5)})(margin)
    torch.testing.assert_close(
        value, mixed_logit_log_prob(margin, 0.1, 0.5, estimator=Draws(4, seed=1), family="gamma")
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"family": "weibull"}, "family to be one of"),
        ({"mean_anchor": "learned"}, "mean_anchor to be one of prior, fixed, free, got 'learned'"),
        ({"beta": 0.0}, "0 < beta, got 0.0"),
        ({"flip_probability": 0.7}, "0 <= flip_probability < 0.5, got 0.7"),
        ({"family": "normal", "estimator": "series"}, "got a normal pair"),
    ],
)
@pytest.mark.wrong_types
def test_wrong_arguments_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        PreferenceModel(**options)
