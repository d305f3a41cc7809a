"""Each observation model, mixed over the strength, against integration by mpmath."""

import random

import likelihood_oracle as oracle
import mpmath as mp
import observation_oracle as reference
import pytest
import torch

from mixdpo_pyro.models import Draws, Quadrature, Series, mixed_logit_log_prob
from mixdpo_pyro.models.observation import (
    BestOf,
    BestWorst,
    Davidson,
    Graded,
    Lapse,
    Pair,
    Ranking,
    RaoKupper,
    observed_log_prob,
)

float64 = torch.float64


def tensor(values):
    return torch.tensor(values, dtype=float64)


CASES = {
    "best of": (BestOf(), reference.best_of),
    "ranking": (Ranking(), reference.ranking),
    "partial ranking": (Ranking(2), reference.ranking),
    "best-worst": (BestWorst(), reference.best_worst),
    "rao-kupper": (RaoKupper(0.7), reference.graded([0.7])),
    "davidson": (Davidson(1.3), reference.davidson(1.3)),
    "five grades": (Graded(tensor([0.4, 1.9])), reference.graded([0.4, 1.9])),
    "six grades": (Graded(tensor([0.8, 3.0]), False), reference.graded([0.8, 3.0], False)),
    "careless best of": (Lapse(BestOf(), 0.05), reference.lapse(reference.best_of, 0.05, 4)),
    "careless grades": (
        Lapse(Graded(tensor([0.4, 1.9])), 0.05),
        reference.lapse(reference.graded([0.4, 1.9]), 0.05, 5),
    ),
}


def draw_choices(observation, number, size, scale, generator):
    """Margins or sets with outcomes drawn at random, unlikely ones as well."""
    if not observation.takes_sets:
        outcomes = len(observation.support())
        return [
            ([generator.gauss(0.3, 1) * scale], generator.randrange(outcomes))
            for _ in range(number)
        ]
    support = observation.support(size).tolist()
    return [
        ([generator.gauss(0, 1) * scale for _ in range(size)], generator.choice(support))
        for _ in range(number)
    ]


def flat(observation, choices):
    margin = [v for values, _ in choices for v in values]
    if not observation.takes_sets:
        return margin, torch.tensor([y for _, y in choices]), None
    outcome = torch.tensor([y for _, ranks in choices for y in ranks])
    sizes = torch.tensor([len(values) for values, _ in choices])
    return margin, outcome, torch.arange(len(choices)).repeat_interleave(sizes)


def errors(case, family, number, points, seed):
    """Errors of the value and of its derivatives by mean, cv and margins, over max(1, size)."""
    observation, log_prob = CASES[case]
    generator = random.Random(seed)
    worst = [0.0, 0.0]
    for _ in range(points):
        mean, cv = 10 ** generator.uniform(-2, 1), 10 ** generator.uniform(-1.3, 0.3)
        scale = 10 ** generator.uniform(-2, 2) / mean
        choices = draw_choices(observation, number, 4, scale, generator)
        margin, outcome, choice_set = flat(observation, choices)
        inputs = [v.requires_grad_() for v in (tensor(margin), tensor(mean), tensor(cv))]
        annotator = None if number == 1 else torch.zeros(len(margin), dtype=torch.long)
        value = observed_log_prob(
            observation, *inputs, family, outcome=outcome, choice_set=choice_set,
            annotator=annotator,
        )  # fmt: skip
        slopes = [s.tolist() for s in torch.autograd.grad(value.sum(), inputs)]
        width = len(choices[0][0])

        def exact(mean, cv, *margin, choices=choices, width=width, family=family):
            sets = [margin[width * i : width * (i + 1)] for i in range(len(choices))]
            data = [
                (v if observation.takes_sets else v[0], y)
                for v, (_, y) in zip(sets, choices, strict=True)
            ]
            likelihood = lambda beta: sum(log_prob(v, y, beta) for v, y in data)  # noqa: E731
            return reference.mixed(likelihood, mean, cv, family)

        point = [mean, cv, *margin[:2]]
        rest = margin[2:]
        references = oracle.gradient(lambda *x, rest=rest: exact(*x, *rest), point, 1e-10)
        found = [slopes[1], slopes[2], *slopes[0][:2]]
        # Derivatives in the units of the parameters: by log mean, log cv and utility.
        units = [mean, cv, *[1 / mean] * len(margin[:2])]
        worst[0] = max(worst[0], relative(value.item(), exact(mean, cv, *margin)))
        for slope, wanted, unit in zip(found, references, units, strict=True):
            worst[1] = max(worst[1], relative(slope * unit, wanted * unit))
    return worst


def relative(value, exact):
    return float(abs(value - exact) / max(1, abs(exact)))


@pytest.mark.untyped
@pytest.mark.parametrize("family", [pytest.param("gamma", marks=pytest.mark.slow), "lognormal"])
@pytest.mark.parametrize("case", CASES)
def test_one_choice_equals_mpmath(case, family):
    with mp.workdps(30):
        assert max(errors(case, family, number=1, points=1, seed=0)) <= 1e-8


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("case", "family"),
    [
        ("best of", "gamma"),
        ("davidson", "lognormal"),
        pytest.param("careless grades", "gamma", marks=pytest.mark.slow),
    ],
)
def test_a_panel_equals_mpmath(case, family):
    assert max(errors(case, family, number=3, points=1, seed=1)) <= 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
@pytest.mark.parametrize("number", [1, 3, 8])
@pytest.mark.parametrize("case", CASES)
def test_many_points_equal_mpmath(case, number, family):
    assert max(errors(case, family, number=number, points=12, seed=2)) <= 1e-8


def rows(observation, number=6, size=3):
    generator = random.Random(3)
    margin, outcome, choice_set = flat(
        observation, draw_choices(observation, number, size, 2.0, generator)
    )
    return tensor(margin), outcome, choice_set


BUILDERS = {
    "best of": lambda p: BestOf(),
    "ranking": lambda p: Ranking(),
    "best-worst": lambda p: BestWorst(),
    "rao-kupper": lambda p: RaoKupper(p[0]),
    "davidson": lambda p: Davidson(p[0]),
    "grades": lambda p: Graded(torch.stack([p[0], p[0] + p[1]])),
    "careless grades": lambda p: Lapse(Graded(p[0].reshape(1)), p[1] / 10),
    "careless ranking": lambda p: Lapse(Ranking(), p[1] / 10),
}


@pytest.mark.untyped
@pytest.mark.parametrize("family", ["gamma", "lognormal", "fixed"])
@pytest.mark.parametrize("panel", [False, True], ids=["choices", "panel"])
@pytest.mark.parametrize("name", BUILDERS)
def test_derivatives_pass_gradcheck_and_gradgradcheck(name, panel, family):
    build = BUILDERS[name]
    margin, outcome, choice_set = rows(build(tensor([0.7, 0.9])))
    if panel:
        choice = torch.arange(len(margin)) if choice_set is None else choice_set
        annotator = torch.tensor([4, 1, 4, 4, 1, 9])[choice]
    inputs = [margin, tensor(0.7), tensor(0.6), tensor([0.7, 0.9])]
    if family == "fixed":
        inputs.pop(2)
    inputs = [v.requires_grad_() for v in inputs]

    def log_prob(margin, mean, *rest):
        return observed_log_prob(
            build(rest[-1]), margin, mean, rest[0] if len(rest) > 1 else 0.0, family,
            outcome=outcome, choice_set=choice_set, annotator=annotator if panel else None,
        )  # fmt: skip

    if "careless" not in name and not name.startswith(("rao", "david", "grades")):
        parameters = inputs.pop()
        wrapped = lambda *x: log_prob(*x, parameters.detach())  # noqa: E731
    else:
        wrapped = log_prob
    assert torch.autograd.gradcheck(wrapped, inputs)
    assert torch.autograd.gradgradcheck(wrapped, inputs)


@pytest.mark.parametrize("family", ["gamma", "lognormal"])
def test_pieces_do_not_change_the_value_or_its_gradient(family, monkeypatch):
    """Ragged sets of ragged panels, in many pieces and in one."""
    torch.manual_seed(0)
    sizes = torch.randint(2, 7, (60,))
    choice_set = torch.arange(60).repeat_interleave(sizes)[torch.randperm(int(sizes.sum()))]
    annotator = (choice_set * 7) % 11
    utility = torch.randn(len(choice_set), dtype=float64)
    outcome = Ranking().sample(utility, 1.0, choice_set)
    results = []
    for chunk in (1 << 18, 3000):
        monkeypatch.setattr("mixdpo_pyro.models.quadrature._CHUNK", chunk)
        value = utility.clone().requires_grad_()
        log_prob = observed_log_prob(
            Ranking(), value, 1.0, 0.5, family, outcome=outcome, choice_set=choice_set,
            annotator=annotator,
        )  # fmt: skip
        log_prob.mul(torch.arange(11)).sum().backward()
        results.append((log_prob.detach(), value.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@pytest.mark.untyped
@pytest.mark.parametrize("cv", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("family", ["gamma", "lognormal"])
@pytest.mark.parametrize("case", CASES)
def test_many_choices_at_once_equal_a_far_finer_rule(case, family, cv):
    """Many choices have a narrower window and fewer nodes than the few that mpmath can check."""
    observation, size = CASES[case][0], 4 if CASES[case][0].takes_sets else 1
    for scale in (0.01, 3.0, 30.0, 1e4):
        margin = torch.randn(300 * size, dtype=float64) * scale
        choice_set = torch.arange(300).repeat_interleave(size) if size > 1 else None
        outcome = observation.sample_uniformly(margin, choice_set)
        results = []
        for rule in ("auto", Quadrature(700)):
            inputs = [margin.clone(), torch.ones(300, dtype=float64), tensor([cv]).expand(300)]
            inputs = [v.requires_grad_() for v in inputs]
            value = observed_log_prob(
                observation, *inputs, family, rule, outcome=outcome, choice_set=choice_set
            )
            results.append([value.detach(), *torch.autograd.grad(value.sum(), inputs)])
            results[-1][3] *= cv
        torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", ["gamma", "lognormal", "fixed"])
@pytest.mark.parametrize("name", BUILDERS)
def test_one_choice_per_annotator_equals_the_choices(name, family):
    observation = BUILDERS[name](tensor([0.7, 0.9]))
    margin, outcome, choice_set = rows(observation)
    choice = torch.arange(len(margin)) if choice_set is None else choice_set
    data = {"outcome": outcome, "choice_set": choice_set}
    alone = observed_log_prob(observation, margin, 0.4, 0.5, family, **data)
    panel = observed_log_prob(observation, margin, 0.4, 0.5, family, annotator=choice, **data)
    torch.testing.assert_close(panel, alone, rtol=1e-8, atol=1e-8)


def test_parameters_may_have_leading_axes():
    margin, outcome, choice_set = rows(BestOf())
    mean = tensor([[0.3], [2.0]])
    data = {"outcome": outcome, "choice_set": choice_set}
    both = observed_log_prob(BestOf(), margin, mean, 0.5, **data)
    second = observed_log_prob(BestOf(), margin, 2.0, 0.5, **data)
    assert both.shape == (2, 6)
    torch.testing.assert_close(both[1], second)


def test_draws_tend_to_the_quadrature():
    margin, outcome, choice_set = rows(BestOf())
    data = {"outcome": outcome, "choice_set": choice_set}
    exact = observed_log_prob(BestOf(), margin, 0.5, 0.4, **data)
    many = observed_log_prob(
        BestOf(), margin, 0.5, 0.4, "lognormal", Draws(20_000, seed=0), **data
    )
    torch.testing.assert_close(many, exact, rtol=0.03, atol=0.03)
    fine = observed_log_prob(BestOf(), margin, 0.5, 0.4, "lognormal", Quadrature(500), **data)
    torch.testing.assert_close(fine, exact, rtol=1e-9, atol=1e-9)


def test_mixed_logit_log_prob_takes_observations():
    margin, outcome, choice_set = rows(BestOf())
    data = {"outcome": outcome, "choice_set": choice_set}
    assert torch.equal(
        mixed_logit_log_prob(margin, 0.5, 0.4, observation=BestOf(), **data),
        observed_log_prob(BestOf(), margin, 0.5, 0.4, **data),
    )
    with pytest.raises(ValueError, match="observation model"):
        mixed_logit_log_prob(margin, 0.5, 0.4, choice_set=choice_set)
    with pytest.raises(ValueError, match="Expected Lapse"):
        mixed_logit_log_prob(margin, 0.5, 0.4, flip_probability=0.1, observation=Pair())


@pytest.mark.wrong_types
def test_what_makes_no_sense_is_refused():
    margin, outcome, choice_set = rows(BestOf())
    with pytest.raises(ValueError, match="positive strengths, got 'normal'"):
        observed_log_prob(Pair(), margin, 0.5, 0.4, "normal")
    with pytest.raises(ValueError, match="got the series"):
        observed_log_prob(Pair(), margin, 0.5, 0.4, "gamma", Series())
    with pytest.raises(ValueError, match="one annotator per choice set"):
        observed_log_prob(
            BestOf(), margin, 0.5, 0.4, outcome=outcome, choice_set=choice_set,
            annotator=torch.arange(len(margin)),
        )  # fmt: skip
    with pytest.raises(ValueError, match="one annotator per row"):
        observed_log_prob(Pair(), margin, 0.5, 0.4, annotator=torch.zeros(3, dtype=torch.long))
