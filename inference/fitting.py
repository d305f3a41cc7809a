"""One call from margins to the posterior of the strength's mean and coefficient of variation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mixdpo_pyro.inference.choices import Choices, read_choices, with_parameters
from mixdpo_pyro.inference.likelihood.marginal import build_likelihood
from mixdpo_pyro.inference.likelihood.panels import PanelTable
from mixdpo_pyro.inference.methods.chebyshev import InterpolatedLikelihood, interpolate
from mixdpo_pyro.inference.methods.dataset_model import DatasetModel
from mixdpo_pyro.inference.methods.guides import FoldedGuide
from mixdpo_pyro.inference.methods.laplace import RidgeLattice, explore
from mixdpo_pyro.inference.methods.log_joint import LogJoint, Maximum, maximise, maximum_at
from mixdpo_pyro.inference.methods.nuts import run_nuts
from mixdpo_pyro.inference.methods.objectives import StrengthObjective
from mixdpo_pyro.inference.methods.svi import run_svi
from mixdpo_pyro.inference.methods.thresholds import (
    ThresholdDraws,
    ThresholdJoint,
    fit_thresholds,
)
from mixdpo_pyro.inference.outcomes import Ties, describe_observation, name_parameters
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.models import FAMILIES, Family, PreferenceModel
from mixdpo_pyro.models.pyro_models import MeanAnchor

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Fit", "Method", "StrengthDraws", "fit"]

Method = Literal["laplace", "svi", "nuts"]

_MAX_STRENGTH_CELLS = 50_000_000
"""Draws times annotators that are kept: 400 MB."""

StrengthDraws = bool | Literal["summary"]

_STARTS = ((-1.0, 1.5), (1.0, 0.6))
"""Starts of the two runs of SVI: shift of cv in posterior sd, factor of the scales."""

_SVI_OPTIONS: dict[str, Any] = {
    "window": 50,
    "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.02),
}
"""Starts near the posterior need neither large steps nor long windows."""


@dataclass(frozen=True, repr=False)
class Fit:
    """What the margins say about the strength.

    Attributes:
        posterior: Draws of mean and cv and, where annotators chose repeatedly, of their strengths.
        choices: The checked data.
        maximum: Where likelihood times the mean's prior is largest over cv >= 0.
        null: The same for cv = 0, with its own best mean.
    """

    posterior: Posterior
    choices: Choices
    maximum: Maximum
    null: Maximum

    @property
    def log_likelihood(self) -> float:
        """Log-likelihood at `maximum`, in nats."""
        return self.maximum.log_likelihood

    @property
    def null_log_likelihood(self) -> float:
        """Log-likelihood of one strength for everybody, at its best mean, in nats."""
        return self.null.log_likelihood

    def summary(self) -> "pd.DataFrame":
        """Posterior summary of every parameter, see :meth:`Posterior.summary`."""
        return self.posterior.summary()

    def __repr__(self) -> str:
        return f"Fit({self.choices!r}, {self.posterior!r})"

    def _repr_html_(self) -> str:
        return f"<p>{self.choices!r}</p>{self.posterior._repr_html_()}"


@torch.inference_mode(False)  # whatever mode the caller is in: gradients are needed
def fit(
    margin: Any,
    *,
    annotator: Sequence[Any] | np.ndarray | None = None,
    choice_set: Sequence[Any] | np.ndarray | None = None,
    rank: Any = None,
    outcome: Any = None,
    ties: Ties = "rao-kupper",
    family: Family = "lognormal",
    method: Method = "laplace",
    mean_anchor: MeanAnchor = "prior",
    beta: float = 0.1,
    seed: int = 0,
    num_samples: int = 1000,
    flip_probability: float = 0.0,
    draw_strengths: StrengthDraws = True,
    **options: Any,
) -> Fit:
    r"""Posterior of the strength's mean and cv given margins, the strengths integrated out.

    .. math:: p(m, cv \mid \Delta) \propto p(m)\, p(cv) \prod_i
              \mathbb{E}_{\beta \mid m, cv} \, \sigma(\beta \Delta_i)

    With annotator ids the product over an annotator's choices goes inside the expectation, and
    each annotator's strength is drawn as well. Ids that never repeat change nothing.

    A choice need not be a pair: rows of a `choice_set` are one choice among several responses, or
    their ranking, and `outcome` says of each pair whether it is a tie, or how clear the preference
    is. Thresholds of ties and grades are estimated with the strength (method `"laplace"`), each
    log step between cut points, or log threshold, with the prior Normal(0, 1).

    Args:
        margin: Margins in nats, chosen minus rejected, shape `(pairs,)`; or checked `Choices`.
        annotator: Annotator ids of any type, one per margin.
        choice_set: Ids of choice sets, see :func:`read_choices`, as for the next three.
        rank: Ranks of the rejected responses in their set.
        outcome: `"win"`, `"tie"` or `"loss"`, or grades.
        ties: Model of ties, `"rao-kupper"` or `"davidson"`.
        family: Family of the strength: `"lognormal"`, `"gamma"`, `"normal"` (may be negative), or
            `"fixed"` (one strength for everybody, cv = 0).
        method: `"laplace"`, corrected by quadrature over (log mean, log cv), the default; `"svi"`,
            a folded normal guide, see :class:`FoldedGuide`; `"nuts"`, the yardstick. The family
            `"fixed"` has one parameter, which is tabulated.
        mean_anchor: `"prior"` (log mean ~ Normal(log beta, 0.5), cv ~ HalfNormal(1)), `"fixed"`
            (mean = beta), `"free"` (flat in mean and in cv below 10).
        beta: Median of the mean's prior, or its fixed value; > 0.
        seed: Seed of the draws; equal seeds give equal draws.
        num_samples: Number of posterior draws.
        flip_probability: Probability that a label was flipped, in [0, 0.5).
        draw_strengths: Draw every annotator's strength too, where annotators chose repeatedly;
            `"summary"` (and more than 50 million draws) keeps mean, sd and quantiles instead.
        options: Further arguments of :func:`run_svi` or :func:`run_nuts`.

    Returns:
        The posterior, with the maximum of the likelihood and that of the null hypothesis cv = 0.

    Raises:
        ValueError: If the data or an argument cannot be used; the message says which and why.
        TypeError: If margins or ids are of a type that cannot be used.

    Example:
        >>> margin = np.random.default_rng(0).normal(0, 10, 500) + 3
        >>> sorted(fit(margin).posterior.draws)
        ['cv', 'mean']
    """
    _check_arguments(family, method, mean_anchor, beta, num_samples, flip_probability)
    choices = read_choices(
        margin, annotator, choice_set=choice_set, rank=rank, outcome=outcome, ties=ties
    )
    _check_identified(choices, mean_anchor)
    _check_method(method, family, mean_anchor)
    thresholds = None
    if _has_thresholds(choices):
        _check_thresholds(method, options, flip_probability)
        thresholds = fit_thresholds(
            ThresholdJoint(choices, family, mean_anchor, beta), num_samples, seed
        )
        choices = with_parameters(choices, np.median(thresholds.vector, axis=0))
    likelihood = build_likelihood(choices, family, flip_probability)
    log_joint = LogJoint(likelihood, mean_anchor, beta)
    task = _FitTask(choices, family, flip_probability, log_joint, num_samples, seed)
    maximum, null, draws = _draw(task, thresholds, method, options)
    mean, cv = draws.posterior.get("mean", np.full(num_samples, beta)), draws.posterior["cv"]
    strength, summary = _describe_strengths(task, mean, cv, draw_strengths)
    with np.errstate(divide="ignore"):
        has_lp = family != "fixed" and thresholds is None
        stats = {"lp": log_joint(np.log(mean), np.log(cv))} if has_lp else {}
    posterior = Posterior(
        mean=mean,
        cv=cv,
        family=family,
        mean_anchor=mean_anchor,
        beta=beta,
        strength=strength,
        strength_summary=summary,
        annotators=() if strength is None and not summary else choices.labels,
        flip_probability=flip_probability,
        observation=describe_observation(choices.outcomes),
        parameters=_name_parameters(choices, thresholds),
        method=method,
        seed=seed,
        num_chains=draws.num_chains,
        sample_stats=stats | draws.sample_stats,
        diagnostics=_provenance(choices, maximum, null) | draws.attributes,
    )
    return Fit(posterior, choices, maximum, null)


def _draw(
    task: "_FitTask", thresholds: ThresholdDraws | None, method: Method, options: dict[str, Any]
) -> tuple[Maximum, Maximum, "_Draws"]:
    """The maximum, that of cv = 0, and draws by a method."""
    joint = task.log_joint
    if thresholds is not None:
        draws = _Draws({"mean": thresholds.mean, "cv": thresholds.cv})
        return thresholds.maximum, thresholds.null, draws
    if task.family == "fixed":
        null = maximum_at(joint, 0.0, np.log(joint.beta))
        return null, null, _fixed(task, null)
    maximum, null = maximise(joint)
    draws = {"laplace": _laplace, "svi": _svi, "nuts": _nuts}[method](task, **options)
    return maximum, null, draws


def _has_thresholds(choices: Choices) -> bool:
    """Whether the observation model has parameters of its own."""
    return (
        choices.outcomes is not None and choices.outcomes.observation.unconstrained().numel() > 0
    )


def _check_thresholds(method: str, options: dict[str, Any], flip_probability: float) -> None:
    if method != "laplace" or options:
        raise ValueError(
            "Expected method='laplace' without further options for ties and grades, whose "
            f"thresholds are estimated, got {method!r}"
        )
    if flip_probability:
        raise ValueError(
            "Expected flip_probability=0 for ties and grades: their lapses are estimated by "
            "diagnose_choices"
        )


def _name_parameters(choices: Choices, thresholds: ThresholdDraws | None) -> dict[str, np.ndarray]:
    if choices.outcomes is None or thresholds is None:
        return {}
    return name_parameters(choices.outcomes.observation, thresholds.vector)


def _provenance(choices: Choices, maximum: Maximum, null: Maximum) -> dict[str, Any]:
    """What a posterior was computed from."""
    return {
        "num_pairs": choices.num_pairs,
        "num_choices": choices.num_choices,
        "num_annotators": choices.num_annotators,
        "log_likelihood_maximum": maximum.log_likelihood,
        "log_likelihood_null": null.log_likelihood,
    }


@dataclass(frozen=True)
class _FitTask:
    """What a method is given."""

    choices: Choices
    family: Family
    flip_probability: float
    log_joint: LogJoint
    num_samples: int
    seed: int

    def dataset_model(self, lattice: RidgeLattice) -> DatasetModel:
        """The Pyro model of the whole dataset, interpolated where its posterior lives."""
        joint = self.log_joint
        cheap = interpolate(joint.likelihood, lattice)
        num_units = self.choices.num_units
        return DatasetModel(cheap, num_units, self.family, joint.mean_anchor, joint.beta)

    def minibatch_model(self) -> PreferenceModel:
        """The Pyro model of a batch."""
        return PreferenceModel(
            self.family,
            mean_anchor=self.log_joint.mean_anchor,
            beta=self.log_joint.beta,
            flip_probability=self.flip_probability,
        )


@dataclass(frozen=True)
class _Draws:
    """What a method hands back."""

    posterior: dict[str, np.ndarray]
    sample_stats: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    num_chains: int = 1


def _fixed(task: _FitTask, null: Maximum) -> _Draws:
    """One strength for everybody: its log is tabulated within eight deviations of the mode."""
    joint, size = task.log_joint, task.num_samples
    mean = np.full(size, joint.beta)
    if joint.mean_anchor != "fixed":
        mode, step = np.log(null.mean), 1e-3
        at = joint.penalised(mode + step * np.array([-1.0, 0.0, 1.0]), np.zeros(3))
        curvature = max((2 * at[1] - at[0] - at[2]) / step**2, 1.0)
        grid = mode + np.linspace(-8, 8, 161) / np.sqrt(curvature)
        log_density = joint.penalised(grid, np.zeros_like(grid))
        cumulative = np.exp(log_density - log_density.max()).cumsum()
        uniform = np.random.default_rng((task.seed, 7)).random(size) * cumulative[-1]
        mean = np.exp(np.interp(uniform, cumulative, grid))
    return _Draws({"mean": mean, "cv": np.zeros(size)})


def _laplace(task: _FitTask) -> _Draws:
    rng = np.random.default_rng(task.seed)
    return _Draws(explore(task.log_joint).draw(task.num_samples, rng))


def _svi(
    task: _FitTask,
    *,
    batch_size: int | None = None,
    num_particles: int | None = None,
    **options: Any,
) -> _Draws:
    """Two runs from different starts; the draws are the first's, the difference is reported."""
    lattice = explore(task.log_joint)
    is_whole = batch_size is None
    model = task.dataset_model(lattice) if is_whole else task.minibatch_model()
    is_cheap = is_whole and isinstance(model.likelihood, InterpolatedLikelihood)
    num_particles = num_particles or (256 if is_cheap else 16)
    objectives, states = [], []
    for run, (shift, factor) in enumerate(_STARTS):
        guide = _start_guide(task, lattice, shift, factor)
        objectives.append(StrengthObjective(model, guide, num_particles))
        seed = int(np.random.SeedSequence((task.seed, run)).generate_state(1)[0])
        options = _SVI_OPTIONS | options | {"batch_size": batch_size, "seed": seed}
        states.append(run_svi(objectives[-1], task.choices, **options))
    first, second = (each.draw(task.num_samples, task.seed) for each in objectives)
    num_units = task.choices.num_units
    attributes = {
        "elbo": -states[0].progress.best * num_units,
        "elbo_trace": -num_units * np.array(states[0].progress.losses),
        "num_steps": states[0].progress.step,
        "converged": int(all(state.progress.is_converged for state in states)),
        "seed_disagreement_in_sd": max(
            _distance_in_sd(first[k], second[k]) for k in objectives[0].guide.names
        ),
    }
    return _Draws({k: v.numpy() for k, v in first.items()}, attributes=attributes)


def _start_guide(
    task: _FitTask, lattice: RidgeLattice, shift: float, factor: float
) -> FoldedGuide:
    """A guide beside the posterior: cv shifted by so many standard deviations, scales times it."""
    at = lattice.moments()
    cv, cv_scale = max(at.cv + shift * at.cv_scale, at.cv_scale / 2), factor * at.cv_scale
    if task.log_joint.mean_anchor == "fixed":
        return FoldedGuide(("cv",), (cv,), (cv_scale,)).double()
    scales = factor * at.log_mean_scale, cv_scale
    start = float(np.exp(at.log_mean)), cv
    return FoldedGuide(("mean", "cv"), start, scales, at.slope).double()


def _distance_in_sd(first: Tensor, second: Tensor) -> float:
    """Difference of the means, in standard deviations of the first."""
    return ((first.mean() - second.mean()).abs() / first.std()).item()


def _nuts(task: _FitTask, **options: Any) -> _Draws:
    model = task.dataset_model(explore(task.log_joint))
    run = run_nuts(model, task.num_samples, seed=task.seed, **options)
    attributes = {f"r_hat_{name}": value for name, value in run.r_hat.items()}
    attributes |= {f"ess_{name}": value for name, value in run.ess.items()}
    return _Draws(run.draws, {"diverging": run.diverging}, attributes, run.num_chains)


def _describe_strengths(
    task: _FitTask, mean: np.ndarray, cv: np.ndarray, draw_strengths: StrengthDraws
) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
    """Draws of the annotators' strengths, or their summary."""
    table = task.log_joint.likelihood
    if not (draw_strengths and task.choices.has_panels and isinstance(table, PanelTable)):
        return None, {}
    if draw_strengths == "summary" or len(cv) * table.num_annotators > _MAX_STRENGTH_CELLS:
        return None, table.summarise_strengths(mean, cv)
    point = torch.from_numpy(mean), torch.from_numpy(cv)
    return table.draw_strengths(*point, np.random.default_rng((task.seed, 1))).numpy(), {}


def _check_arguments(
    family: str,
    method: str,
    mean_anchor: str,
    beta: float,
    num_samples: int,
    flip_probability: float,
) -> None:
    allowed = {
        "family": (family, FAMILIES),
        "method": (method, get_args(Method)),
        "mean_anchor": (mean_anchor, get_args(MeanAnchor)),
    }
    for name, (value, choices) in allowed.items():
        if value not in choices:
            raise ValueError(f"Expected {name} to be one of {', '.join(choices)}, got {value!r}")
    if not 0 < beta < np.inf:
        raise ValueError(f"Expected a finite beta > 0, got {beta}")
    if not num_samples >= 2:
        raise ValueError(f"Expected num_samples >= 2, got {num_samples}")
    if not 0 <= flip_probability < 0.5:
        raise ValueError(f"Expected 0 <= flip_probability < 0.5, got {flip_probability}")


def _check_method(method: str, family: str, mean_anchor: str) -> None:
    if family == "fixed" and method != "laplace":
        raise ValueError(f"Expected method='laplace' for family='fixed', got {method!r}")
    if method == "svi" and mean_anchor == "free":
        raise ValueError(
            "Expected mean_anchor='prior' or 'fixed' for method='svi': without a prior its guide "
            "is a point; method='laplace' and method='nuts' take mean_anchor='free'"
        )


def _check_identified(choices: Choices, mean_anchor: str) -> None:
    margin = choices.margin
    if mean_anchor == "free" and (margin.min() >= 0 or margin.max() <= 0):
        sign = "agrees with" if margin.min() >= 0 else "contradicts"
        raise ValueError(
            f"Expected choices on both sides for mean_anchor='free': every choice {sign} its "
            "margin, so the likelihood has no maximum in the mean; use mean_anchor='prior' or "
            "'fixed'"
        )
