"""Every objective against quadrature: whole data, minibatches, and a global latent."""

import numpy as np
import pyro
import pytest
import torch

from mixdpo_pyro.inference import BoundedModel, StrengthObjective, build_strength_guide
from mixdpo_pyro.models import Draws, PreferenceModel, cv_prior, mean_prior, mixed_logit_log_prob

MEAN, CV = 0.1, 0.6


def _panel(simulate, num_annotators=12, choices_each=5):
    margin, annotator, _ = simulate(num_annotators, choices_each, CV)
    return torch.from_numpy(margin), torch.from_numpy(annotator)


def _at_the_truth(model):
    """Objective with a point guide at the truth: the loss is minus the bound per unit."""
    return StrengthObjective(model, build_strength_guide(model, CV).double()).double()


def _models(family, num_draws):
    common = {"family": family, "mean_anchor": "free", "beta": MEAN}
    return {
        "marginal": PreferenceModel(**common),
        "draws": PreferenceModel(**common, estimator=Draws(num_draws)),
        "importance": BoundedModel(**common, num_draws=num_draws),
        "elbo": BoundedModel(**common, bound="elbo", num_draws=num_draws),
    }


@pytest.mark.untyped
@pytest.mark.parametrize("panels", [False, True])
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_objectives_are_ordered_below_the_quadrature(simulate, family, panels):
    margin, annotator = _panel(simulate)
    ids = annotator if panels else None
    exact = -mixed_logit_log_prob(margin, MEAN, CV, family, annotator=ids).mean().item()
    loss = {}
    for name, model in _models(family, 16).items():
        objective = _at_the_truth(model)
        with torch.no_grad():
            loss[name] = np.mean([objective(margin, ids).item() for _ in range(200)])
    assert loss["marginal"] == pytest.approx(exact, rel=1e-6)
    assert exact < loss["importance"] < loss["elbo"]
    assert exact < loss["draws"] < loss["elbo"]
    if (
        family == "lognormal"
    ):  # the guide starts as the distribution, which is the paper's estimator
        assert loss["importance"] == pytest.approx(loss["draws"], abs=0.02)


@pytest.mark.parametrize("panels", [False, True])
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_importance_bound_reaches_the_quadrature_with_many_draws(simulate, family, panels):
    margin, annotator = _panel(simulate)
    ids = annotator if panels else None
    exact = -mixed_logit_log_prob(margin, MEAN, CV, family, annotator=ids).mean().item()
    with torch.no_grad():
        loss = _at_the_truth(_models(family, 20_000)["importance"])(margin, ids).item()
    assert loss == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("bound", ["importance", "elbo"])
def test_trained_guide_tightens_the_bound(simulate, bound):
    margin, annotator = _panel(simulate, 50, 10)
    exact = -mixed_logit_log_prob(margin, MEAN, CV, "lognormal", annotator=annotator).mean().item()
    objective = _at_the_truth(
        BoundedModel("lognormal", mean_anchor="free", beta=MEAN, bound=bound, num_draws=8)
    )

    def gap():
        with torch.no_grad():
            return np.mean([objective(margin, annotator).item() for _ in range(50)]) - exact

    before = gap()
    optimizer = torch.optim.Adam(objective.model.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        objective(margin, annotator).backward()
        optimizer.step()
    assert 0 < gap() < before / 4


@pytest.mark.parametrize("panels", [False, True])
def test_minibatches_average_to_the_whole(simulate, panels):
    """With N/B outside the log the mean over disjoint batches is the loss of all data, exactly."""
    margin, annotator = _panel(simulate)
    ids = annotator if panels else None
    num_total = 12 if panels else len(margin)
    model = PreferenceModel("gamma", beta=MEAN)
    objective = StrengthObjective(model, build_strength_guide(model, CV).double())

    def loss(rows):
        pyro.set_rng_seed(0)  # the same global latent for every batch
        return objective(margin[rows], None if ids is None else ids[rows], num_total).item()

    parts = [annotator % 4 == k for k in range(4)]
    whole = loss(torch.arange(len(margin)))
    assert np.mean([loss(part) for part in parts]) == pytest.approx(whole, rel=1e-10)


@pytest.mark.untyped
@pytest.mark.parametrize("name", ["draws", "importance", "elbo"])
def test_minibatch_bounds_stay_below_the_exact_marginal(simulate, name):
    """Scaling the weights before the log, as RenyiELBO does, would rise above it."""
    margin, annotator = _panel(simulate, 40, 2)
    exact = mixed_logit_log_prob(margin, MEAN, CV, "lognormal", annotator=annotator).sum().item()
    objective = _at_the_truth(_models("lognormal", 4)[name])
    with torch.no_grad():
        batches = [
            -objective(margin[rows], annotator[rows], num_total=40).item() * 40
            for _ in range(100)
            for rows in [annotator % 10 == k for k in range(10)]
        ]
    assert np.mean(batches) < exact
    assert np.mean(batches) > 1.5 * exact  # yet of its size


@pytest.mark.parametrize("anchor", ["prior", "fixed", "free"])
@pytest.mark.parametrize("family", ["gamma", "lognormal", "fixed"])
@pytest.mark.parametrize("panels", [False, True])
def test_loss_is_that_of_pyro_for_the_same_draw(simulate, family, anchor, panels):
    margin, annotator = _panel(simulate)
    ids = annotator if panels else None
    model = PreferenceModel(family, mean_anchor=anchor, beta=MEAN)
    guide = build_strength_guide(model, CV, initial_scale=0.3).double()
    if hasattr(guide, "correlation"):
        torch.nn.init.constant_(guide.correlation, 0.4)
    objective, elbo = StrengthObjective(model, guide), pyro.infer.Trace_ELBO(max_plate_nesting=1)
    pyro.set_rng_seed(3)
    loss = objective(margin, ids, num_total=500)
    pyro.set_rng_seed(3)
    expected = elbo.differentiable_loss(model, guide, margin, ids, num_total=500) / 500
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    if family == "fixed":
        return
    parameters = [p for p in guide.parameters() if p.numel()]
    gradients = (torch.autograd.grad(value, parameters) for value in (loss, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)


def test_loss_with_a_global_guide_is_minus_the_elbo_by_quadrature(simulate):
    margin, _ = _panel(simulate)
    model = PreferenceModel("gamma", beta=MEAN)
    guide = build_strength_guide(model, CV, initial_scale=0.3).double()
    objective = StrengthObjective(model, guide, num_particles=400)
    node, weight = np.polynomial.hermite_e.hermegauss(15)
    first, second = (torch.from_numpy(x).flatten() for x in np.meshgrid(node, node))
    weights = torch.from_numpy(np.outer(weight, weight)).flatten() / (2 * np.pi)
    log_mean, log_cv = np.log(MEAN) + 0.3 * first, np.log(CV) + 0.3 * second
    mean, cv = log_mean.exp(), log_cv.exp()
    log_joint = mixed_logit_log_prob(margin, mean[:, None], cv[:, None], family="gamma").sum(1)
    log_joint += mean_prior(MEAN).log_prob(mean) + log_mean + cv_prior().log_prob(cv) + log_cv
    normal = torch.distributions.Normal(0.0, 1.0)
    log_guide = normal.log_prob(first) + normal.log_prob(second) - 2 * np.log(0.3)
    elbo = ((log_joint - log_guide) * weights).sum().item()
    with torch.no_grad():
        losses = [objective(margin).item() * len(margin) for _ in range(30)]
    error = np.std(losses) / np.sqrt(len(losses))
    assert np.mean(losses) == pytest.approx(-elbo, abs=5 * error)
    assert error < 0.05


def test_two_objectives_live_in_one_process_without_the_global_store(simulate):
    margin, annotator = _panel(simulate)
    models = [PreferenceModel("gamma"), BoundedModel("lognormal")]
    objectives = [StrengthObjective(m, build_strength_guide(m)) for m in models]
    names = [sorted(name for name, _ in objective.named_parameters()) for objective in objectives]
    for objective in objectives:
        before = {k: v.clone() for k, v in objective.state_dict().items()}
        optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
        objective(margin.float(), annotator).backward()
        optimizer.step()
        assert any(not torch.equal(v, before[k]) for k, v in objective.state_dict().items())
    assert [
        sorted(n for n, _ in objective.named_parameters()) for objective in objectives
    ] == names
    assert not pyro.get_param_store()


def test_gradient_reaches_the_margins(simulate):
    margin, annotator = _panel(simulate)
    for model in _models("lognormal", 8).values():
        leaf = margin.clone().requires_grad_()
        _at_the_truth(model)(leaf, annotator).backward()
        assert torch.isfinite(leaf.grad).all() and (leaf.grad < 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"family": "normal"}, "family gamma or lognormal, got 'normal'"),
        ({"bound": "renyi"}, "bound to be importance or elbo, got 'renyi'"),
        ({"num_draws": 0}, "num_draws >= 1, got 0"),
    ],
)
@pytest.mark.wrong_types
def test_unusable_bounds_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoundedModel(**arguments)


@pytest.mark.parametrize("argument", ["initial_cv", "initial_scale"])
def test_unusable_start_of_the_guide_raises(argument):
    with pytest.raises(ValueError, match=f"{argument} > 0, got 0.0"):
        build_strength_guide(PreferenceModel(family="gamma"), **{argument: 0.0})
