"""Whole panels, batch by batch: the likelihood of all that an annotator chose, and its slopes."""

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from mixdpo_pyro.inference import Design, build_strength_guide, fit, read_choices, simulate_choices
from mixdpo_pyro.inference.methods.running_panels import PanelObjective, RunningPanels
from mixdpo_pyro.models import PreferenceModel, mixed_logit_log_prob


def world(cv=0.6, annotators=40, choices=20, seed=0):
    rng = np.random.default_rng(seed)
    design = Design(annotators, choices, beta=1.0)
    margin, annotator, _ = simulate_choices(1.0, cv, "lognormal", design, rng)
    order = rng.permutation(len(margin))
    return torch.from_numpy(margin[order]), annotator[order]


def objective(annotator, cv, family="lognormal", flip_probability=0.0):
    model = PreferenceModel(
        family, mean_anchor="fixed", beta=1.0, fixed_cv=cv, flip_probability=flip_probability
    )
    return PanelObjective(model, build_strength_guide(model), annotator)


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
@pytest.mark.parametrize("flip_probability", [0.0, 0.1])
@pytest.mark.parametrize("cv", [0.01, 0.1, 0.6, 1.5])
def test_gradient_is_that_of_the_likelihood_of_whole_panels(family, cv, flip_probability):
    margin, annotator = world()
    exact = margin.clone().requires_grad_()
    mixed_logit_log_prob(
        exact, 1.0, cv, family, annotator=torch.from_numpy(annotator),
        flip_probability=flip_probability,
    ).sum().backward()  # fmt: skip
    panels = objective(annotator, cv, family, flip_probability)
    panels.panels.update(torch.arange(len(margin)), margin)
    for batch in torch.arange(len(margin)).split(64):  # in whatever batches
        part = margin[batch].float().requires_grad_()
        misfit, _ = panels.panel_terms(part, batch)
        (misfit * len(batch)).backward()
        torch.testing.assert_close(-part.grad.double(), exact.grad[batch], atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize("cv", [0.05, 0.6])
def test_panels_of_all_margins_have_their_marginal_likelihood(cv):
    margin, annotator = world()
    panels = objective(annotator, cv).panels
    order = torch.randperm(len(margin))
    for batch in order.split(8):
        panels.update(batch, margin[batch])
    expected = mixed_logit_log_prob(
        margin, 1.0, cv, "lognormal", annotator=torch.from_numpy(annotator)
    )
    point = torch.tensor([1.0]).double(), torch.tensor([cv]).double()
    found = panels.grid(panels.latest).per_annotator(*point)[:, 0]
    torch.testing.assert_close(found, expected.double(), atol=3e-5, rtol=0)  # float32 margins
    later = order[len(order) // 2 :]  # without a cv to learn, margins have the scale they have
    of_later = torch.zeros_like(panels.first)
    log_prob = panels._log_prob(margin[later].float())
    of_later.index_add_(0, torch.from_numpy(annotator)[later], log_prob)
    torch.testing.assert_close(panels.first, of_later, atol=1e-8, rtol=1e-12)


def test_first_margins_stay_and_latest_ones_replace():
    margin, annotator = world()
    panels, again = (objective(annotator, 0.5).panels for _ in range(2))
    pairs = torch.arange(len(margin))
    again.update(pairs, 0.1 * margin)
    first = again.first.clone()
    again.update(torch.cat([pairs, pairs[:5]]), torch.cat([margin, margin[:5]]))  # five twice
    panels.update(pairs, margin)
    torch.testing.assert_close(again.first, first)
    torch.testing.assert_close(again.latest, panels.latest, atol=1e-5, rtol=0)


def test_misfit_is_the_loss_of_dpo_where_people_are_equal():
    margin, annotator = world()
    panels = objective(annotator, 1e-4)
    pairs = torch.arange(len(margin))
    panels.panels.update(pairs, margin)
    misfit, divergence = panels.panel_terms(margin.float(), pairs)
    assert misfit.item() == pytest.approx(-logsigmoid(margin).mean().item(), abs=1e-6)
    assert divergence == 0


def learn(margin, annotator, steps=400, batch=None):
    """Mean and cv as training learns them from margins that come in batches, or at once."""
    model = PreferenceModel("lognormal", mean_anchor="fixed", beta=1.0)
    panels = PanelObjective(model, build_strength_guide(model, 0.5), annotator)
    batches = torch.arange(len(margin)).split(batch or len(margin))
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(panels.parameters(), lr=0.05, betas=(0.9, 0.98))
    for step in range(steps):
        if step < len(batches):
            panels.panels.update(batches[step], margin[batches[step]])
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        optimiser.zero_grad()
        pair = batches[min(step, len(batches) - 1)][:32]
        sum(panels.panel_terms(margin[pair].float(), pair)).backward()
        optimiser.step()
    return panels


@pytest.mark.untyped
@pytest.mark.parametrize("cv", [0.0, pytest.param(0.4, marks=pytest.mark.slow), 0.8])
def test_cv_is_that_of_whole_panels_whatever_the_scale_of_the_margins(cv):
    margin, annotator = world(max(cv, 1e-6), annotators=100, choices=30, seed=3)
    exact = fit(read_choices(margin.numpy(), annotator), beta=1.0, draw_strengths=False)
    low, high = exact.posterior.interval("cv")
    for scale in (0.5, 2.0):  # the mean is fixed at 1 all the same
        panels = learn(scale * margin, annotator)
        found = panels.location()["cv"].item()
        assert low - 0.02 < found < high + 0.02
        assert found < 0.12 or cv > 0
        slope = scale * (panels.panels.slope * panels.log_scale.exp()).item()
        assert slope == pytest.approx(exact.posterior.mean.mean(), rel=0.1)


@pytest.mark.untyped
@pytest.mark.parametrize("cv", [0.0, 0.4, 0.8])
def test_exact_posterior_of_cv_is_that_of_the_fit_and_the_guide_is_near(cv):
    margin, annotator = world(max(cv, 1e-6), annotators=100, choices=30, seed=3)
    panels = learn(margin, annotator)
    scaled = read_choices((margin * panels.panels.slope).numpy(), annotator)
    exact = fit(scaled, beta=1.0, draw_strengths=False)
    mean, sd = panels.exact_cv()
    assert mean == pytest.approx(exact.posterior.cv.mean(), abs=0.1 * sd)
    assert sd == pytest.approx(exact.posterior.cv.std(), rel=0.1)
    assert panels.draw(1000)["cv"].mean().item() == pytest.approx(mean, abs=0.5 * sd)


def test_settling_brings_a_guide_that_lags_to_the_exact_posterior():
    """From far off, with the same numbers whatever was drawn before."""
    margin, annotator = world(0.8, annotators=100, choices=30, seed=3)
    model = PreferenceModel("lognormal", mean_anchor="fixed", beta=1.0)
    found = []
    for k in range(2):
        panels = PanelObjective(model, build_strength_guide(model, 0.2), annotator)
        panels.panels.update(torch.arange(len(margin)), margin)
        torch.manual_seed(k)
        before = torch.random.get_rng_state()
        panels.settle(0.05)
        assert torch.equal(torch.random.get_rng_state(), before)
        found.append(panels.draw(1000)["cv"].mean().item())
    mean, sd = panels.exact_cv()
    assert found[0] == found[1] == pytest.approx(mean, abs=0.5 * sd)


@pytest.mark.untyped
def test_cv_is_not_moved_by_margins_that_grow():
    """Equal people whose first margins are those of a policy that is learning."""
    margin, annotator = world(1e-6, annotators=100, choices=40, seed=4)
    growth = torch.linspace(0.05, 1, len(margin))  # pairs come in random order
    found = learn(growth * margin, annotator, batch=40).location()["cv"].item()
    assert found < 0.12


@pytest.mark.untyped
def test_cv_is_not_attenuated_by_what_the_policy_did_not_know_at_first():
    """Errors of first margins, as large as the margins themselves, that end half-way."""
    margin, annotator = world(0.8, annotators=100, choices=60, seed=5)
    error = torch.randn(len(margin), generator=torch.Generator().manual_seed(1)).double()
    error[len(margin) // 2 :] = 0
    seen = margin + margin.std() * error
    found = learn(seen, annotator, batch=40).location()["cv"].item()
    everything, later = (
        fit(read_choices(part.numpy(), who), beta=1.0, draw_strengths=False).posterior
        for part, who in ((seen, annotator), (seen[3000:], annotator[3000:]))
    )
    low, high = later.interval("cv")
    assert np.median(everything.cv) < 0.6 < low < found < high


def test_panels_of_other_pairs_are_refused():
    _, annotator = world()
    panels = objective(annotator, 0.5).panels
    state = {name: value.clone() for name, value in panels.state_dict().items()}
    panels.load_state_dict(state)
    state["margin"] = state["margin"][1:]
    with pytest.raises(ValueError, match="'margin': expected shape"):
        panels.load_state_dict(state)


def test_a_pair_of_a_busy_annotator_costs_no_more_than_one_of_others():
    many = RunningPanels(np.zeros(30_000, dtype=int), objective(np.zeros(1, int), 0.5).model)
    assert many.latest.shape[1] < 700
