r"""Do annotators draw the line of a tie or a grade at different places, and is that all?

Annotators who are equally strong, but call a draw at different margins, agree with the margins
unequally often: a model with one threshold for all takes them for annotators of different
strength. Here every annotator has a threshold of their own,

.. math:: \log \tau_g \sim \mathrm{Normal}(\mu, s^2), \qquad
          p(y_g \mid m, cv, \mu, s) = \int\!\!\int \prod_t P(y_{gt} \mid \beta, \tau)\,
          p(\beta \mid m, cv)\, p(\tau \mid \mu, s)\, d\beta\, d\tau

and grades are reduced to a win, a tie or a loss, whatever further lines there are.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize
from torch import Tensor

from mixdpo_pyro.inference.choices import Choices, with_observation
from mixdpo_pyro.inference.fitting import Fit
from mixdpo_pyro.inference.likelihood.panels import (
    PanelTable,
    log_likelihood_at,
    panel_sizes,
    tabulate,
)
from mixdpo_pyro.inference.outcomes import Outcomes, describe_observation
from mixdpo_pyro.inference.robustness.priors import density_interval
from mixdpo_pyro.inference.verdict import boundary_p_value
from mixdpo_pyro.models import mean_prior
from mixdpo_pyro.models.observation import Davidson, RaoKupper

__all__ = ["OwnThresholds", "fit_own_thresholds", "reduce_grades"]

_REACH = 3.5
"""Farthest log thresholds from the common one: a thirtieth of it, and thirty times."""

_TABLE_STEP = 0.35
"""Distance of tabulated log thresholds, between which log-likelihoods are cubic splines."""

_INFORMATION = 0.5
"""Most that a judgement says about its log threshold."""

_MEAN_STEP = 0.1
"""Distance of the five log means between which log-likelihoods are polynomials."""

_LOG_SD = (np.log(0.05), np.log(2.0))
"""Bounds of the log of s."""

_MAX_MOVES = 8
"""Most times that the window of log means follows the best one."""

_NUM_CV = 10
"""Points at which cv is looked at, and again where the likelihood is large."""


@dataclass(frozen=True)
class OwnThresholds:
    """Differences of strengths and of thresholds, estimated together.

    Attributes:
        threshold_sd: Standard deviation s of the log thresholds where the likelihood is largest.
        cv_interval: 5% and 95% quantiles of cv, its likelihood maximised over the rest.
        likelihood_ratio: Twice the gain over cv = 0, each with its own best thresholds.
        p_value: Of cv = 0.
    """

    threshold_sd: float
    cv_interval: tuple[float, float]
    likelihood_ratio: float
    p_value: float


def reduce_grades(choices: Choices) -> Choices:
    """Grades as win, tie or loss; without a middle grade as plain pairs. Ties stay as they are."""
    outcomes = choices.outcomes
    assert outcomes is not None
    if describe_observation(outcomes) != "grades":
        return choices
    sign = np.sign(outcomes.sign).astype(np.int64)
    if len(outcomes.observation.support()) % 2 == 0:
        return replace(choices, margin=choices.margin * sign, outcomes=None)
    return replace(choices, outcomes=Outcomes.of(RaoKupper(1.0), outcomes.choice, sign + 1))


def fit_own_thresholds(result: Fit, choices: Choices, level: float = 0.05) -> OwnThresholds:
    """Fit strengths and thresholds that both differ, under both models of ties.

    Args:
        result: A fit with one threshold for all, whose family and prior of the mean are taken.
        choices: Judgements with ties of annotators who judged repeatedly.
        level: A p-value from here on is the answer, without a look at the other model.

    Returns:
        What the model of ties gives whose p-value is the larger one.
    """
    outcomes = choices.outcomes
    assert outcomes is not None
    models = [RaoKupper(1.0), Davidson(1.0)]
    models.sort(key=lambda model: not isinstance(outcomes.observation, type(model)))
    answers: list[OwnThresholds] = []
    for model in models:
        found = Outcomes.of(model, outcomes.choice, outcomes.code)
        task = _Task.of(result, replace(choices, outcomes=found))
        answers.append(_Lattice.whole(task).answer())
        if answers[-1].p_value >= level:
            break
    return max(answers, key=lambda answer: answer.p_value)


@dataclass(frozen=True)
class _Task:
    """Log-likelihoods of annotators at tabulated thresholds.

    Attributes:
        result: The fit with one threshold for all.
        choices: The data.
        log_threshold: Log thresholds, or log nu, that are tabulated.
        table: Tables of all annotators at the first of them, then at the second, ...
        refine: Splines from the tabulated log thresholds to `fine`.
        fine: Log thresholds over which is integrated.
    """

    result: Fit
    choices: Choices
    log_threshold: Float[np.ndarray, " tabulated"]
    table: PanelTable
    refine: Float[Tensor, "fine tabulated"]
    fine: Float[Tensor, " fine"]

    @classmethod
    def of(cls, result: Fit, choices: Choices) -> "_Task":
        centre = _common_threshold(choices, result.null.mean)
        log_threshold = centre + np.arange(-_REACH, _REACH + 1e-9, _TABLE_STEP)
        sizes = np.max([panel_sizes(_at(choices, u)) for u in log_threshold[::4]], axis=0)
        family = result.posterior.family
        tables = [tabulate(_at(choices, u), family, sizes=sizes) for u in log_threshold]
        most = np.bincount(choices.annotator).max()  # type: ignore[arg-type]
        step = min(0.1, 1 / np.sqrt(_INFORMATION * most))
        fine = np.linspace(log_threshold[0], log_threshold[-1], int(2 * _REACH / step) + 1)
        refine = CubicSpline(log_threshold, np.eye(len(log_threshold)))(fine)
        return cls(
            result, choices, log_threshold, _stacked(tables), torch.from_numpy(refine),
            torch.from_numpy(fine),
        )  # fmt: skip

    @torch.no_grad()
    def log_likelihoods(
        self, log_mean: Float[np.ndarray, " means"], cv: float
    ) -> Float[Tensor, "means annotators fine"]:
        """Of each annotator at each fine threshold, their strength integrated out."""
        mean = torch.from_numpy(np.exp(log_mean))
        if cv == 0:
            parts = [log_likelihood_at(mean, _at(self.choices, u)) for u in self.log_threshold]
            value = torch.stack(parts)
        else:
            value = self.table.per_annotator(mean, torch.full_like(mean, cv))
            value = value.view(len(self.log_threshold), self.choices.num_annotators, len(mean))
        return torch.einsum("fk,kam->maf", self.refine, value)


def _common_threshold(choices: Choices, mean: float) -> float:
    """The best log threshold for all, at one strength."""
    grid = np.linspace(-4, 4, 65)
    beta = torch.tensor([mean], dtype=torch.float64)
    value = [log_likelihood_at(beta, _at(choices, u)).sum().item() - u**2 / 2 for u in grid]
    return float(grid[np.argmax(value)])


def _at(choices: Choices, log_threshold: float) -> Choices:
    assert choices.outcomes is not None
    observation = choices.outcomes.observation
    vector = torch.tensor([log_threshold], dtype=torch.float64)
    return with_observation(choices, observation.constrained(vector))


def _stacked(tables: list[PanelTable]) -> PanelTable:
    """One table of many: annotators of the first, then of the second, and so on."""
    first, size = tables[0], tables[0].num_annotators
    grids = tuple(
        replace(grid, log_likelihood=torch.cat([t.grids[k].log_likelihood for t in tables]))
        for k, grid in enumerate(first.grids)
    )
    members = tuple(
        torch.cat([member + size * k for k in range(len(tables))]) for member in first.members
    )
    return PanelTable(grids, members)


@dataclass(frozen=True)
class _Lattice:
    """The likelihood at some cv, maximised over mean and thresholds.

    Attributes:
        task: The data.
        place: Values of log(1 + 10 cv).
        height: Log-likelihood and log priors of mean and thresholds.
        point: Log mean, and mean and log standard deviation of the log thresholds.
        null: The same as `height`, at cv = 0.
    """

    task: _Task
    place: Float[np.ndarray, " cvs"]
    height: Float[np.ndarray, " cvs"]
    point: Float[np.ndarray, "cvs coordinates"]
    null: float

    @classmethod
    def whole(cls, task: _Task) -> "_Lattice":
        """Between 0 and 3, and narrower until the posterior is resolved."""
        start = np.array([np.log(task.result.null.mean), task.log_threshold.mean(), np.log(0.3)])
        null, start = _climb(task, 0.0, start)
        lattice = cls.evaluate(task, np.linspace(0, np.log1p(30), _NUM_CV), start, null)
        while (inside := np.flatnonzero(lattice.height > lattice.height.max() - 14)).size < 5:
            low, high = max(inside[0] - 1, 0), min(inside[-1] + 1, _NUM_CV - 1)
            place = np.linspace(lattice.place[low], lattice.place[high], _NUM_CV)
            lattice = cls.evaluate(task, place, lattice.point[low], null)
        return lattice

    @classmethod
    def evaluate(
        cls, task: _Task, place: np.ndarray, start: np.ndarray, null: float
    ) -> "_Lattice":
        heights, points = [], []
        for each in place:
            height, start = _climb(task, float(np.expm1(each) / 10), start)
            heights.append(height)
            points.append(start)
        return cls(task, place, np.array(heights), np.array(points), null)

    def answer(self) -> OwnThresholds:
        """Interval and test."""
        is_even = self.place[0] == 0
        ends = ((1, 0.0), "not-a-knot") if is_even else "not-a-knot"
        fine = np.linspace(np.expm1(self.place[0]) / 10, np.expm1(self.place[-1]) / 10, 1001)
        height = CubicSpline(self.place, self.height, bc_type=ends)(np.log1p(10 * fine))
        density = height - fine**2 / 2
        ratio = max(0.0, 2 * float(height.max() - self.null))
        best = self.point[self.height.argmax()]
        return OwnThresholds(
            float(np.exp(best[2])),
            density_interval(fine, np.exp(density - density.max())),
            ratio,
            boundary_p_value(ratio),
        )


def _climb(task: _Task, cv: float, start: np.ndarray) -> tuple[float, np.ndarray]:
    """Maximise over the log mean, and mean and log sd of the log thresholds, at one cv."""
    point, is_fixed = start, task.result.posterior.mean_anchor == "fixed"
    for _ in range(_MAX_MOVES):
        centre = point[0]
        table = task.log_likelihoods(centre + _MEAN_STEP * np.arange(-2.0, 3.0), cv)
        reach = 0.0 if is_fixed else 2 * _MEAN_STEP
        found = minimize(
            lambda x, table=table, centre=centre: _loss(task, table, centre, x),
            point, jac=True, method="L-BFGS-B",
            bounds=[(centre - reach, centre + reach),
                    (task.log_threshold[0], task.log_threshold[-1]), _LOG_SD],
        )  # fmt: skip
        point = found.x
        if abs(point[0] - centre) < 1.9 * _MEAN_STEP:
            break
    return -float(found.fun), point


def _loss(
    task: _Task, table: Float[Tensor, "means annotators fine"], centre: float, x: np.ndarray
) -> tuple[float, np.ndarray]:
    """Minus the log joint, and its gradient."""
    point = torch.from_numpy(x.copy()).requires_grad_()
    log_mean, middle, log_sd = point
    place = (log_mean - centre) / _MEAN_STEP
    nodes = torch.arange(-2.0, 3.0, dtype=torch.float64)
    others = [torch.cat([nodes[:k], nodes[k + 1 :]]) for k in range(5)]
    basis = torch.stack([((place - o) / (nodes[k] - o)).prod() for k, o in enumerate(others)])
    value = torch.einsum("m,maf->af", basis, table)
    scaled = (task.fine - middle) / log_sd.exp()
    log_weight = (-0.5 * scaled.square()).log_softmax(0)
    total = (value + log_weight).logsumexp(1).sum()
    assert task.choices.outcomes is not None
    prior = torch.from_numpy(task.choices.outcomes.prior)
    total = total - 0.5 * (middle - prior[0]).square() - 0.5 * (2 * log_sd).exp()
    posterior = task.result.posterior
    if posterior.mean_anchor == "prior":
        total = total + mean_prior(posterior.beta).base_dist.log_prob(log_mean)
    (gradient,) = torch.autograd.grad(-total, point)
    return -total.item(), gradient.numpy()
