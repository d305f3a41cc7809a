"""Learn what produces the margins together with the strength, by maximum likelihood.

A linear utility with a random scale per respondent is the scale-heterogeneity logit, S-MNL
(Fiebig, Keane, Louviere, Wasi, Marketing Science 29:3, 2010).
"""

import math
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import erfc
from torch import Tensor, nn
from torch.func import functional_call

from mixdpo_pyro.inference.choices import Choices, read_choices
from mixdpo_pyro.inference.likelihood.observed import marginal_log_prob
from mixdpo_pyro.inference.methods.bounds import BoundedModel
from mixdpo_pyro.inference.methods.svi import minimise
from mixdpo_pyro.inference.outcomes import Ties, name_parameters, read_outcomes
from mixdpo_pyro.models import Family, PreferenceModel, mean_prior, mixed_logit_log_prob
from mixdpo_pyro.models.pyro_models import MeanAnchor

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["JointFit", "JointObjective", "fit_joint"]

JointObjective = Literal["marginal", "importance", "elbo"]

_LOG_CV_BOUNDS = (math.log(1e-3), math.log(10.0))

_AT_BOUND = 1e-6
"""Distance in log cv within which an estimate stands at a bound."""

_NUDGE = 0.01
"""Standard deviation of the move off a start where all margins are equal: at zero the gradient of
a network with a hidden layer vanishes."""

_MAX_HESSIAN = 300
"""Parameters up to which the Hessian is taken: beyond, its cost is that of as many gradients."""


@dataclass(frozen=True)
class JointFit:
    """A fitted module and strength, in the form choice modellers expect.

    Attributes:
        module: A copy of the module with the estimates, in float64.
        cv: Coefficient of variation of the strength.
        mean: Mean of the strength, estimated or fixed.
        names: Names of the estimates: of the module, `mean` if it is estimated, thresholds of ties
            or grades, and `cv` last.
        estimates: Estimates, shape `(parameters,)`.
        covariance: Inverse Hessian of minus the log-likelihood (and the log prior of the mean, if
            any), or None where there are too many parameters; NaN where the Hessian is not
            positive definite. Estimates at a bound are held there, and have no variance.
        log_likelihood: In nats, at the estimates, by quadrature whichever objective was maximised.
        null_log_likelihood: In nats, of choices all of whose outcomes are equally likely.
        num_choices: Number of choices.
        is_converged: Whether the optimiser says so; at a bound it does too.
        at_bound: Names of estimates that stand at a bound of the search: the likelihood goes on
            rising beyond it, and has no maximum within.
    """

    module: nn.Module
    cv: float
    mean: float
    names: tuple[str, ...]
    estimates: np.ndarray
    covariance: np.ndarray | None
    log_likelihood: float
    null_log_likelihood: float
    num_choices: int
    is_converged: bool
    at_bound: tuple[str, ...] = ()

    @property
    def aic(self) -> float:
        """Akaike's criterion, smaller is better."""
        return 2 * len(self.names) - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        """Bayesian information criterion, smaller is better."""
        return len(self.names) * math.log(self.num_choices) - 2 * self.log_likelihood

    @property
    def mcfadden(self) -> float:
        """McFadden's pseudo R-squared against the null."""
        return 1 - self.log_likelihood / self.null_log_likelihood

    def table(self) -> "pd.DataFrame":
        """Estimate, standard error, z and two-sided p-value of every parameter.

        Raises:
            ValueError: If there is no covariance.
        """
        import pandas as pd

        if self.covariance is None:
            raise ValueError(f"Expected at most {_MAX_HESSIAN} parameters, got {len(self.names)}")
        error = np.sqrt(np.diag(self.covariance))
        z = self.estimates / error
        columns = {
            "estimate": self.estimates,
            "std_error": error,
            "z": z,
            "p_value": erfc(np.abs(z) / math.sqrt(2)),
        }
        return pd.DataFrame(columns, index=list(self.names))


@torch.inference_mode(False)  # whatever mode the caller is in: gradients are needed
def fit_joint(
    module: nn.Module,
    inputs: Tensor,
    *,
    annotator: Sequence[Any] | np.ndarray | None = None,
    choice_set: Sequence[Any] | np.ndarray | None = None,
    rank: Any = None,
    outcome: Any = None,
    ties: Ties = "rao-kupper",
    family: Family = "lognormal",
    mean_anchor: MeanAnchor = "fixed",
    beta: float = 1.0,
    objective: JointObjective = "marginal",
    batch_size: int | None = None,
    num_draws: int = 16,
    initial_cv: float = 0.5,
    max_steps: int | None = None,
    seed: int = 0,
    **options: Any,
) -> JointFit:
    r"""Maximise the likelihood over a module's parameters and the family of the strength.

    .. math:: \sum_g \log \mathbb{E}_{\beta \mid m, cv} \prod_t \sigma(\beta\, f_\theta(x_{gt}))
              \;\big[ + \log p(m) \big]

    in float64. The marginal likelihood of all data is climbed by L-BFGS-B, minibatches and bounds
    by Adam with the stopping rule of :func:`minimise`. A bound biases estimates as far as it is
    loose: with 80 respondents of 12 choices the ELBO puts cv 0.7 standard errors too low, the
    importance bound with 16 draws 0.1.

    A choice need not be a pair. Rows of a `choice_set` are the chosen response against each other
    one, and their likelihood is that of the set or its ranking; thresholds of ties and grades are
    estimated too, in units of strength times margin.

    Args:
        module: Maps `inputs` to margins, chosen minus rejected (with `outcome`: first minus
            second), shape `(pairs,)` or `(pairs, 1)`. It is not changed, and may start at zero.
        inputs: First argument of the module, for instance differences of attributes, a row per
            margin.
        annotator: Ids of the respondents, one per row.
        choice_set: Ids of choice sets, see `read_choices`, as for the next three.
        rank: Ranks of the rejected responses in their set.
        outcome: `"win"`, `"tie"` or `"loss"`, or grades.
        ties: Model of ties, `"rao-kupper"` or `"davidson"`.
        family: Family of the strength, `"gamma"` or `"lognormal"`.
        mean_anchor: `"fixed"` at beta, or estimated: `"prior"`, with log mean ~ Normal(log beta,
            0.5), or `"free"`. A module that may rescale its margins leaves the mean without
            information: under `"free"` its standard error is then enormous or NaN.
        beta: The mean of the strength, or the median of its prior; 1 makes coefficients those of
            the mean respondent.
        objective: `"marginal"`, or, for plain pairs, a bound with draws of every strength:
            `"importance"`, `"elbo"`.
        batch_size: Choices (with repeated ids: respondents, with all their choices) a step;
            default, all.
        num_draws: Draws of each strength in a bound.
        initial_cv: Start of the search in cv.
        max_steps: Most iterations of the optimiser; default, 500 of L-BFGS-B or 4000 of Adam.
        seed: Seed of batches, draws, and the move off a start at zero.
        options: Further arguments of :func:`minimise`, for Adam only.

    Returns:
        Estimates with the output of a discrete-choice model. The search for cv ends at 0.001,
        where strengths are equal, and 10. An estimate that stands there is named in `at_bound`;
        of 10 there is a warning too.

    Raises:
        ValueError: If an argument cannot be used, or the margins at the start are not finite.
        NonFiniteLossError: If a loss is not finite.

    Example:
        >>> x = torch.tensor([[1.0], [0.5], [-0.2], [1.5], [-1.0], [0.7]])
        >>> fit_joint(torch.nn.Linear(1, 1, bias=False), x, annotator=[1, 1, 1, 2, 2, 2]).names
        ('weight[0, 0]', 'cv')
    """
    _check_arguments(family, mean_anchor, objective, {"beta": beta, "initial_cv": initial_cv})
    done = {"choice_set": choice_set, "rank": rank, "outcome": outcome, "ties": ties}
    joint = _JointLikelihood(module, inputs, annotator, done, family, mean_anchor, beta, seed)
    if joint.choices.outcomes is not None and objective != "marginal":
        raise ValueError(
            "Expected objective='marginal' for choices that are not plain pairs, got "
            f"{objective!r}"
        )
    start = np.append(joint.start, math.log(initial_cv))
    if objective == "marginal" and batch_size is None and not options:
        point, is_converged = _climb(joint, start, max_steps or 500)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of the weights of the local guide
            model = (
                PreferenceModel(family, mean_anchor=mean_anchor, beta=beta)
                if objective == "marginal"
                else BoundedModel(
                    family,
                    mean_anchor=mean_anchor,
                    beta=beta,
                    bound=objective,
                    num_draws=num_draws,
                )
            )
        options |= {"batch_size": batch_size, "max_steps": max_steps or 4000, "seed": seed}
        point, is_converged = _descend(joint, model, start, options)
    return _warned(joint.summarise(point, is_converged))


def _warned(found: JointFit) -> JointFit:
    """The fit, with a warning where cv grows without end; at 0.001 strengths are just equal."""
    if found.at_bound and found.cv > 1:
        warnings.warn(
            f"cv stands at a bound, {found.cv:g}: the likelihood rises beyond it. Perhaps some "
            "respondents follow the margins always and others not at all. It has no standard "
            "error, and the other estimates depend on the bound",
            stacklevel=4,  # the caller of fit_joint, whose decorator has a frame of its own
        )
    return found


def _check_arguments(
    family: str, mean_anchor: str, objective: str, positive: dict[str, float]
) -> None:
    allowed = {
        "family": (family, ("gamma", "lognormal")),
        "mean_anchor": (mean_anchor, get_args(MeanAnchor)),
        "objective": (objective, get_args(JointObjective)),
    }
    for name, (value, choices) in allowed.items():
        if value not in choices:
            raise ValueError(f"Expected {name} to be one of {', '.join(choices)}, got {value!r}")
    for name, number in positive.items():
        if not 0 < number < math.inf:
            raise ValueError(f"Expected a finite {name} > 0, got {number}")


def _climb(
    joint: "_JointLikelihood", start: np.ndarray, max_steps: int
) -> tuple[np.ndarray, bool]:
    """Maximise the marginal likelihood of all data by L-BFGS-B."""
    found = minimize(
        joint.loss_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None)] * (len(start) - 1) + [_LOG_CV_BOUNDS],
        options={"maxiter": max_steps, "ftol": 1e-13, "gtol": 1e-7},
    )
    return found.x, bool(found.success)


def _descend(
    joint: "_JointLikelihood", model: PreferenceModel, start: np.ndarray, options: dict[str, Any]
) -> tuple[np.ndarray, bool]:
    """Maximise an objective over minibatches by Adam."""
    vector = nn.Parameter(torch.from_numpy(start).clone())
    parameters = nn.ParameterList([vector, *model.double().parameters()])

    def loss(rows: Tensor) -> Tensor:
        return joint.batch_loss(model, vector, rows)

    state = minimise(parameters, loss, joint.choices, **options)
    point = vector.detach().numpy()
    return np.append(point[:-1], np.clip(point[-1], *_LOG_CV_BOUNDS)), state.progress.is_converged


class _Parts(NamedTuple):
    """The estimates in their natural units.

    Attributes:
        theta: Parameters of the module, flat.
        mean: Mean strength.
        thresholds: Threshold, cut points or tie propensity of the observation model.
        cv: Coefficient of variation.
    """

    theta: Tensor
    mean: Tensor
    thresholds: Tensor
    cv: Tensor

    def of_strength(self) -> tuple[Tensor, Tensor]:
        """Mean and cv."""
        return self.mean, self.cv


class _JointLikelihood:
    """The likelihood as a function of one flat vector.

    It holds the parameters of the module, the log mean if any, the logs of the steps from one
    threshold to the next, and log cv.
    """

    def __init__(
        self,
        module: nn.Module,
        inputs: Tensor,
        annotator: Sequence[Any] | np.ndarray | None,
        done: dict[str, Any],
        family: Family,
        mean_anchor: MeanAnchor,
        beta: float,
        seed: int,
    ) -> None:
        self.module = deepcopy(module).double()
        self.inputs = inputs.to(torch.float64, copy=True)  # may be of inference mode
        self.family = family
        self.mean_anchor = mean_anchor
        self.beta = beta
        self._shapes = {name: value.shape for name, value in self.module.named_parameters()}
        theta = self._start(seed)
        with torch.no_grad():
            margin = self.margin(theta)
        self.choices = read_choices(margin, annotator, **done)
        self.annotator = (
            torch.from_numpy(self.choices.annotator) if self.choices.has_panels else None
        )
        self.num_choices = self.choices.num_choices
        self._sign = _signs_of_pairs(self.choices, done)
        outcomes = self.choices.outcomes
        steps = np.zeros(0) if outcomes is None else outcomes.prior
        self._num_thresholds = len(steps)
        log_mean = [] if mean_anchor == "fixed" else [math.log(beta)]
        self.start = np.concatenate([theta.numpy(), log_mean, steps])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries of the flat vector."""
        entries = (
            f"{name}{list(index) if shape else ''}"
            for name, shape in self._shapes.items()
            for index in np.ndindex(*shape)
        )
        mean = () if self.mean_anchor == "fixed" else ("mean",)
        outcomes = self.choices.outcomes
        if outcomes is None:
            return (*entries, *mean, "cv")
        named = name_parameters(outcomes.observation, outcomes.prior[None])
        thresholds = (
            f"{name}[{k + 1}]" if value.ndim > 1 else name
            for name, value in named.items()
            for k in range(value[0].size)
        )
        return (*entries, *mean, *thresholds, "cv")

    def parts(self, point: Tensor) -> _Parts:
        """What a flat vector with its logarithms says."""
        sizes = [self._num_theta, self._num_means, self._num_thresholds, 1]
        theta, log_mean, steps, log_cv = point.split(sizes)
        thresholds = steps.exp().cumsum(0)
        return self._split(torch.cat([theta, log_mean.exp(), thresholds, log_cv.exp()]))

    def margin(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Margins of some rows of the inputs, of all by default."""
        inputs = self.inputs if rows is None else self.inputs[rows]
        value = functional_call(self.module, self._parameters(theta), (inputs,))
        return value.squeeze(-1) if value.dim() == 2 else value

    def log_prior(self, mean: Tensor) -> Tensor:
        """Log prior density of the log mean, in nats; zero without one."""
        if self.mean_anchor != "prior":
            return torch.zeros((), dtype=torch.float64)
        return mean_prior(self.beta).base_dist.log_prob(mean.log())

    def batch_loss(self, model: PreferenceModel, point: Tensor, rows: Tensor) -> Tensor:
        """Minus a bound on the log-likelihood of the rows of a batch, in nats per unit."""
        parts, rows = self.parts(point), rows.sort().values
        if self.choices.outcomes is None:
            ids = None if self.annotator is None else self.annotator[rows]
            margin = self._sign[rows] * self.margin(parts.theta, rows)
            log_prob = model.log_prob(margin, *parts.of_strength(), ids)
        else:
            log_prob = self._log_prob(parts, rows)
        return -log_prob.mean() - self.log_prior(parts.mean) / self.choices.num_units

    def loss_and_gradient(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log joint per choice at the flat vector, and its gradient."""
        point = torch.from_numpy(vector).requires_grad_()
        loss = -self._log_joint(self.parts(point)) / self.num_choices
        (gradient,) = torch.autograd.grad(loss, point)
        return loss.item(), gradient.numpy()

    def summarise(self, point: np.ndarray, is_converged: bool) -> JointFit:
        """The fit at the flat vector."""
        with torch.no_grad():
            parts = self.parts(torch.from_numpy(point))
            log_likelihood = self._log_prob(parts).sum()
        mean = [parts.mean] if self._num_means else []
        estimates = np.concatenate([parts.theta, mean, parts.thresholds, [parts.cv]])
        is_small = len(estimates) <= _MAX_HESSIAN
        is_at_bound = bool(np.isclose(point[-1], _LOG_CV_BOUNDS, rtol=0, atol=_AT_BOUND).any())
        is_free = np.append(np.full(len(estimates) - 1, True), not is_at_bound)
        return JointFit(
            module=self._fitted(parts.theta),
            cv=parts.cv.item(),
            mean=parts.mean.item(),
            names=self.names,
            estimates=estimates,
            covariance=self._covariance(estimates, is_free) if is_small else None,
            log_likelihood=log_likelihood.item(),
            null_log_likelihood=-self._log_num_outcomes(),
            num_choices=self.num_choices,
            is_converged=is_converged,
            at_bound=("cv",) if is_at_bound else (),
        )

    @property
    def _num_theta(self) -> int:
        return sum(shape.numel() for shape in self._shapes.values())

    @property
    def _num_means(self) -> int:
        return int(self.mean_anchor != "fixed")

    def _log_num_outcomes(self) -> float:
        """Sum over the choices of the log of the number of their outcomes."""
        outcomes = self.choices.outcomes
        if outcomes is None:
            return self.num_choices * math.log(2)
        margin = self.choices.margin
        rows = outcomes.utilities(margin) if outcomes.are_sets else (torch.from_numpy(margin),)
        return outcomes.observation.log_num_outcomes(*rows).sum().item()

    def _start(self, seed: int) -> Tensor:
        """The module's parameters; moved a little where they give equal margins, as zeros do."""
        theta = torch.cat([p.detach().flatten() for p in self.module.parameters()])
        with torch.no_grad():
            margin = self.margin(theta)
        if (margin != margin.flatten()[:1]).any():
            return theta
        noise = torch.randn(len(theta), generator=torch.Generator().manual_seed(seed))
        return theta + _NUDGE * noise.double()

    def _split(self, estimates: Tensor) -> _Parts:
        """What estimates in their natural units say."""
        sizes = [self._num_theta, self._num_means, self._num_thresholds, 1]
        theta, mean, thresholds, cv = estimates.split(sizes)
        mean = mean if self._num_means else torch.tensor([self.beta], dtype=torch.float64)
        return _Parts(theta, mean[0], thresholds, cv[0])

    def _covariance(self, estimates: np.ndarray, is_free: np.ndarray) -> np.ndarray:
        """Inverse Hessian of minus the log joint at the estimates, in those that are free."""
        hessian = torch.autograd.functional.hessian(
            lambda point: -self._log_joint(self._split(point)), torch.from_numpy(estimates)
        )
        covariance = np.full(hessian.shape, np.nan)
        factor, info = torch.linalg.cholesky_ex(hessian[is_free][:, is_free])
        if info.item() == 0:
            covariance[np.ix_(is_free, is_free)] = torch.cholesky_inverse(factor).numpy()
        return covariance

    def _fitted(self, theta: Tensor) -> nn.Module:
        self.module.load_state_dict(self._parameters(theta), strict=False)
        return self.module

    def _log_joint(self, parts: _Parts) -> Tensor:
        return self._log_prob(parts).sum() + self.log_prior(parts.mean)

    def _log_prob(self, parts: _Parts, rows: Tensor | None = None) -> Tensor:
        """Log-probability of each choice, or of all of a respondent's, by quadrature."""
        rows = torch.arange(len(self.inputs)) if rows is None else rows
        margin = self._sign[rows] * self.margin(parts.theta, rows)
        ids = None if self.annotator is None else self.annotator[rows]
        outcomes, family = self.choices.outcomes, self.family
        if outcomes is None:
            return mixed_logit_log_prob(margin, *parts.of_strength(), family, annotator=ids)
        steps = parts.thresholds.diff(prepend=parts.thresholds.new_zeros(1)).log()
        some = outcomes if len(rows) == len(self.inputs) else outcomes.take(rows.numpy())
        return marginal_log_prob(some, margin, *parts.of_strength(), family, steps, ids)

    def _parameters(self, flat: Tensor) -> dict[str, Tensor]:
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), flat.split(sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}


def _signs_of_pairs(choices: Choices, done: dict[str, Any]) -> Tensor:
    """-1 where the second response of a plain pair has won: its margin is turned."""
    sign = np.ones(choices.num_pairs)
    if choices.outcomes is None and done["outcome"] is not None:
        _, sign = read_outcomes(sign, None, None, done["outcome"], done["ties"])
    return torch.from_numpy(sign)
