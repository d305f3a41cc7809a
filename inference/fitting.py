"""One call from margins to the posterior of the strength's mean and coefficient of variation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from mixdpo_pyro.inference.choices import Choices, read_choices
from mixdpo_pyro.inference.likelihood.marginal import Likelihood, likelihood
from mixdpo_pyro.inference.likelihood.panels import PanelTable
from mixdpo_pyro.inference.methods.chebyshev import InterpolatedLikelihood, interpolate
from mixdpo_pyro.inference.methods.dataset_model import DatasetModel
from mixdpo_pyro.inference.methods.guides import FoldedGuide
from mixdpo_pyro.inference.methods.laplace import RidgeLattice, explore
from mixdpo_pyro.inference.methods.log_joint import LogJoint, Maximum, maximise
from mixdpo_pyro.inference.methods.nuts import run_nuts
from mixdpo_pyro.inference.methods.objectives import StrengthObjective
from mixdpo_pyro.inference.methods.svi import run_svi
from mixdpo_pyro.models import Family, PreferenceModel
from mixdpo_pyro.models.pyro_models import MeanAnchor

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Fit", "Method", "fit"]

Method = Literal["laplace", "svi", "nuts"]

_MAX_STRENGTH_CELLS = 50_000_000
"""Draws times annotators that are kept: 400 MB."""

_STARTS = ((-1.0, 1.5), (1.0, 0.6))
"""Starts of the two runs of SVI: shift of cv in posterior sd, factor of the scales."""

_SVI_OPTIONS: dict[str, Any] = {
    "window": 50,
    "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=0.02),
}
"""Starts near the posterior need neither large steps nor long windows."""


@dataclass(frozen=True)
class Fit:
    """What the margins say about the strength.

    Attributes:
        posterior: Draws: `mean` and `cv` of shape `(samples,)` and, where annotators chose
            repeatedly, `strength` of shape `(samples, annotators)`, columns as in `annotators`.
        choices: The checked data.
        family: Law of the strength.
        mean: Anchoring of the mean.
        beta: Median of the mean's prior, or its fixed value.
        method: How the posterior was computed.
        flip_probability: Probability that a label was flipped, as assumed.
        seed: Seed of the draws.
        maximum: Where likelihood times the mean's prior is largest over cv >= 0.
        null: The same for cv = 0, with its own best mean.
        sample_stats: Per draw: `lp`, the log joint in unconstrained space, in nats; for NUTS,
            `diverging`.
        attributes: Diagnostics of the method.
        num_chains: Chains that the draws come from, in order; 1 where draws are independent.
    """

    posterior: dict[str, np.ndarray]
    choices: Choices
    family: Family
    mean: MeanAnchor
    beta: float
    method: Method
    flip_probability: float
    seed: int
    maximum: Maximum
    null: Maximum
    sample_stats: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    num_chains: int = 1

    @property
    def annotators(self) -> tuple[str, ...]:
        """Labels of the columns of `posterior["strength"]`."""
        return self.choices.labels if "strength" in self.posterior else ()

    @property
    def log_likelihood(self) -> float:
        """Log-likelihood at `maximum`, in nats."""
        return self.maximum.log_likelihood

    @property
    def null_log_likelihood(self) -> float:
        """Log-likelihood of one strength for everybody, at its best mean, in nats."""
        return self.null.log_likelihood

    def summary(self) -> "pd.DataFrame":
        """Mean, sd and the 5%, 50% and 95% quantiles of every parameter, one a row.

        Rows are `mean`, `cv` and `strength[LABEL]`.
        """
        import pandas as pd

        rows = {name: self.posterior[name] for name in ("mean", "cv")}
        for k, label in enumerate(self.annotators):
            rows[f"strength[{label}]"] = self.posterior["strength"][:, k]
        columns = np.stack(list(rows.values()), axis=1)
        table = {"mean": columns.mean(0), "sd": columns.std(0, ddof=1)}
        for percent in (5, 50, 95):
            table[f"{percent}%"] = np.percentile(columns, percent, axis=0)
        return pd.DataFrame(table, index=list(rows))


def fit(
    margins: Any,
    annotator: Sequence[Any] | np.ndarray | None = None,
    family: Family = "gamma",
    method: Method = "laplace",
    mean: MeanAnchor = "prior",
    beta: float = 0.1,
    seed: int = 0,
    num_samples: int = 1000,
    flip_probability: float = 0.0,
    **options: Any,
) -> Fit:
    r"""Posterior of the strength's mean and cv given margins, the strengths integrated out.

    .. math:: p(m, cv \mid \Delta) \propto p(m)\, p(cv) \prod_i
              \mathbb{E}_{\beta \mid m, cv} \, \sigma(\beta \Delta_i)

    With annotator ids the product over an annotator's choices goes inside the expectation, and
    each annotator's strength is drawn as well. Ids that never repeat change nothing.

    Args:
        margins: Margins in nats, chosen minus rejected, shape `(pairs,)`.
        annotator: Annotator ids of any type, one per margin.
        family: Law of the strength: `"gamma"`, `"lognormal"`, or `"normal"` (may be negative).
        method: `"laplace"`, corrected by quadrature over (log mean, log cv), the default; `"svi"`,
            a folded normal guide, see :class:`FoldedGuide`; `"nuts"`, the yardstick.
        mean: Anchoring: `"prior"` (log mean ~ Normal(log beta, 0.5), cv ~ HalfNormal(1)),
            `"fixed"` (mean = beta), `"free"` (flat in mean and in cv below 10).
        beta: Median of the mean's prior, or its fixed value; > 0.
        seed: Seed of the draws; equal seeds give equal draws.
        num_samples: Number of posterior draws.
        flip_probability: Probability that a label was flipped, in [0, 0.5).
        options: Further arguments of :func:`run_svi` or :func:`run_nuts`.

    Returns:
        The posterior, with the maximum of the likelihood and that of the null hypothesis cv = 0.

    Raises:
        ValueError: If the data or an argument cannot be used; the message says which and why.

    Example:
        >>> margin = np.random.default_rng(0).normal(0, 10, 500) + 3
        >>> sorted(fit(margin).posterior)
        ['cv', 'mean']
    """
    _check_arguments(family, method, mean, beta, num_samples, flip_probability)
    choices = read_choices(margins, annotator)
    _check_identified(choices, mean)
    if method == "svi" and mean == "free":
        raise ValueError(
            "Expected mean='prior' or 'fixed' for method='svi': without a prior its guide is a "
            "point; method='laplace' and method='nuts' take mean='free'"
        )
    log_joint = LogJoint(likelihood(choices, family, flip_probability), mean, beta)
    problem = _FitTask(choices, family, flip_probability, log_joint, num_samples, seed)
    draws = {"laplace": _laplace, "svi": _svi, "nuts": _nuts}[method](problem, **options)
    posterior = {"mean": np.full(len(draws.posterior["cv"]), beta)} | draws.posterior
    log_density = log_joint(np.log(posterior["mean"]), np.log(posterior["cv"]))
    rng = np.random.default_rng((seed, 1))
    posterior |= _draw_strengths(log_joint.likelihood, posterior, rng)
    maximum, null = maximise(log_joint)
    return Fit(
        posterior=posterior,
        choices=choices,
        family=family,
        mean=mean,
        beta=beta,
        method=method,
        flip_probability=flip_probability,
        seed=seed,
        maximum=maximum,
        null=null,
        sample_stats={"lp": log_density} | draws.sample_stats,
        attributes=draws.attributes,
        num_chains=draws.num_chains,
    )


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
        return DatasetModel(cheap, num_units, self.family, joint.anchor, joint.beta)

    def minibatch_model(self) -> PreferenceModel:
        """The Pyro model of a batch."""
        return PreferenceModel(
            self.family,
            self.log_joint.anchor,
            self.log_joint.beta,
            flip_probability=self.flip_probability,
        )


@dataclass(frozen=True)
class _Draws:
    """What a method hands back."""

    posterior: dict[str, np.ndarray]
    sample_stats: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    num_chains: int = 1


def _laplace(problem: _FitTask) -> _Draws:
    rng = np.random.default_rng(problem.seed)
    return _Draws(explore(problem.log_joint).draw(problem.num_samples, rng))


def _svi(
    problem: _FitTask,
    *,
    batch_size: int | None = None,
    num_particles: int | None = None,
    **options: Any,
) -> _Draws:
    """Two runs from different starts; the draws are the first's, the difference is reported."""
    lattice = explore(problem.log_joint)
    is_whole = batch_size is None
    model = problem.dataset_model(lattice) if is_whole else problem.minibatch_model()
    is_cheap = is_whole and isinstance(model.likelihood, InterpolatedLikelihood)
    num_particles = num_particles or (256 if is_cheap else 16)
    objectives, states = [], []
    for run, (shift, factor) in enumerate(_STARTS):
        guide = _start_guide(problem, lattice, shift, factor)
        objectives.append(StrengthObjective(model, guide, num_particles))
        seed = int(np.random.SeedSequence((problem.seed, run)).generate_state(1)[0])
        options = _SVI_OPTIONS | options | {"batch_size": batch_size, "seed": seed}
        states.append(run_svi(objectives[-1], problem.choices, **options))
    first, second = (each.draw(problem.num_samples, problem.seed) for each in objectives)
    num_units = problem.choices.num_units
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
    problem: _FitTask, lattice: RidgeLattice, shift: float, factor: float
) -> FoldedGuide:
    """A guide beside the posterior: cv shifted by so many standard deviations, scales times it."""
    at = lattice.moments()
    cv, cv_scale = max(at.cv + shift * at.cv_scale, at.cv_scale / 2), factor * at.cv_scale
    if problem.log_joint.anchor == "fixed":
        return FoldedGuide(("cv",), (cv,), (cv_scale,)).double()
    scales = factor * at.log_mean_scale, cv_scale
    start = float(np.exp(at.log_mean)), cv
    return FoldedGuide(("mean", "cv"), start, scales, at.slope).double()


def _distance_in_sd(first: Tensor, second: Tensor) -> float:
    """Difference of the means, in standard deviations of the first."""
    return ((first.mean() - second.mean()).abs() / first.std()).item()


def _nuts(problem: _FitTask, **options: Any) -> _Draws:
    model = problem.dataset_model(explore(problem.log_joint))
    run = run_nuts(model, problem.num_samples, seed=problem.seed, **options)
    attributes = {f"r_hat_{name}": value for name, value in run.r_hat.items()}
    attributes |= {f"ess_{name}": value for name, value in run.ess.items()}
    return _Draws(run.draws, {"diverging": run.diverging}, attributes, run.num_chains)


def _draw_strengths(
    likelihood: Likelihood, posterior: dict[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    if not isinstance(likelihood, PanelTable):
        return {}
    if len(posterior["cv"]) * len(likelihood.log_likelihood) > _MAX_STRENGTH_CELLS:
        return {}
    mean, cv = (torch.from_numpy(posterior[name]) for name in ("mean", "cv"))
    return {"strength": likelihood.draw_strengths(mean, cv, rng).numpy()}


def _check_arguments(
    family: str, method: str, mean: str, beta: float, num_samples: int, flip_probability: float
) -> None:
    allowed = {
        "family": (family, ("gamma", "lognormal", "normal")),
        "method": (method, get_args(Method)),
        "mean": (mean, get_args(MeanAnchor)),
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


def _check_identified(choices: Choices, mean: str) -> None:
    margin = choices.margin
    if mean == "free" and (margin.min() >= 0 or margin.max() <= 0):
        sign = "agrees with" if margin.min() >= 0 else "contradicts"
        raise ValueError(
            f"Expected choices on both sides for mean='free': every choice {sign} its margin, "
            "so the likelihood has no maximum in the mean; use mean='prior' or mean='fixed'"
        )
