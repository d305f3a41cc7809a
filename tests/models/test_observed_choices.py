import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta

from mixdpo_pyro.models import MixedLogit, MixedObservation, ObservationModel, PreferenceModel
from mixdpo_pyro.models.observation import BestOf, Graded, Lapse, Pair, Ranking, RaoKupper

float64 = torch.float64
SHAPES = {
    "ties": (RaoKupper(0.5), torch.tensor([[-3.0], [5.0]], dtype=float64), ()),
    "best of": (BestOf(), torch.randn(2, 1, 3, dtype=float64), (3,)),
    "ranking": (Lapse(Ranking(), 0.1), torch.randn(2, 1, 3, dtype=float64), (3,)),
}


def example(name, family="lognormal"):
    observation, margin, _ = SHAPES[name]
    mean = torch.tensor([0.1, 0.5, 2.0, 3.0], dtype=float64)
    return MixedObservation(observation, margin, mean, 0.7, family)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_follow_the_parameters(name):
    choice, event = example(name), SHAPES[name][2]
    assert choice.batch_shape == (2, 4) and choice.event_shape == event
    drawn = choice.sample((5,))
    assert drawn.shape == (5, 2, 4, *event)
    assert choice.support.check(drawn).all()
    assert choice.log_prob(drawn).shape == (5, 2, 4)
    wide = choice.expand((6, 2, 4))
    torch.testing.assert_close(wide.log_prob(drawn[0]), choice.log_prob(drawn[0]).expand(6, 2, 4))


@pytest.mark.parametrize("family", ["gamma", "lognormal", "fixed"])
@pytest.mark.parametrize("name", SHAPES)
def test_probabilities_of_the_support_add_up_to_one(name, family):
    choice = example(name, family)
    total = choice.log_prob(choice.enumerate_support()).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(2, 4, dtype=float64), rtol=1e-8, atol=0)
    narrow = choice.log_prob(choice.enumerate_support(expand=False)).exp().sum(0)
    torch.testing.assert_close(narrow, total)


def test_frequencies_are_the_probabilities():
    choice = MixedObservation(BestOf(), torch.tensor([1.0, 0.0, -1.0]), 1.0, 0.9, "gamma")
    drawn = choice.sample((40_000,)).float().mean(0)
    exact = choice.log_prob(choice.enumerate_support()).exp()
    # Five standard errors.
    assert ((drawn - exact).abs() < 5 * (exact * (1 - exact) / 40_000).sqrt()).all()


def test_a_pair_is_the_mixed_logit():
    margin = torch.tensor([-3.0, 5.0], dtype=float64)
    choice = MixedObservation(Pair(), margin, 0.4, 0.7)
    value = torch.tensor([1, 0])
    torch.testing.assert_close(
        choice.log_prob(value), MixedLogit(margin, 0.4, 0.7).log_prob(value.double()),
        rtol=1e-8, atol=1e-8,
    )  # fmt: skip


def test_parameters_outside_their_constraints_are_refused():
    with pytest.raises(ValueError, match="strength_cv"):
        MixedObservation(Pair(), torch.ones(2), 0.1, -1.0)


def test_the_model_of_pairs_scores_as_the_preference_model():
    margin = torch.tensor([-3.0, 5.0, 0.3], dtype=float64)
    annotator = torch.tensor([4, 4, 2])
    latents = {"mean": torch.tensor(0.4, dtype=float64), "cv": torch.tensor(0.7, dtype=float64)}
    totals = []
    for model in (PreferenceModel("gamma"), ObservationModel(Pair(), family="gamma")):
        trace = pyro.poutine.trace(pyro.condition(model, latents))
        totals.append(trace.get_trace(margin, annotator, 20).log_prob_sum())
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-8, atol=1e-8)


def test_known_parameters_and_absent_ones_are_no_site():
    margin = torch.tensor([1.0, 0.2], dtype=float64)
    data = {"outcome": torch.tensor([0, 1])}
    for model in (ObservationModel(RaoKupper(0.5), known=True), ObservationModel(Pair())):
        trace = pyro.poutine.trace(model).get_trace(margin, **data)
        assert "observation" not in trace
    with pytest.raises(ValueError, match="Expected Lapse"):
        ObservationModel(Pair(), flip_probability=0.1)


@pytest.mark.untyped
def test_map_recovers_cut_points_and_mean():
    """Cut points of 4,000 graded pairs, to five standard errors of about 0.03."""
    truth = Graded(torch.tensor([0.5, 1.8], dtype=float64))
    margin = torch.randn(4000, dtype=float64) * 2
    outcome = MixedObservation(truth, margin, 1.0, 0.5).sample()
    start = Graded(torch.tensor([1.0, 2.0], dtype=float64))
    model = ObservationModel(start, mean_anchor="prior", beta=1.0)
    guide = AutoDelta(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(120):
        svi.step(margin, outcome=outcome)
    found = guide.median()
    points = start.constrained(found["observation"]).cut_points
    pyro.clear_param_store()
    torch.testing.assert_close(points, truth.cut_points, rtol=0.1, atol=0.05)
    assert found["mean"].item() == pytest.approx(1.0, abs=0.15)
