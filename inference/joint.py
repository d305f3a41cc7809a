"""Learn what produces the margins together with the strength, by maximum likelihood.

A linear utility with a random scale per respondent is the scale-heterogeneity logit, S-MNL
(Fiebig, Keane, Louviere, Wasi, Marketing Science 29:3, 2010).
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import erfc
from torch import Tensor, nn
from torch.func import functional_call

from mixdpo_pyro.inference.choices import read_choices
from mixdpo_pyro.models import Family, mixed_logit_log_prob

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["JointFit", "fit_joint"]

_LOG_CV_BOUNDS = (math.log(1e-3), math.log(10.0))
_MAX_HESSIAN = 300
"""Parameters up to which the Hessian is taken: beyond, its cost is that of as many gradients."""


@dataclass(frozen=True)
class JointFit:
    """A fitted module and strength, in the form choice modellers expect.

    Attributes:
        module: A copy of the module with the estimates, in float64.
        cv: Coefficient of variation of the strength.
        beta: Its mean, fixed.
        names: Names of the estimates, `cv` last.
        estimates: Estimates, shape `(parameters,)`.
        covariance: Inverse Hessian of minus the log-likelihood, or None where there are too many
            parameters; NaN where the Hessian is not positive definite.
        log_likelihood: In nats, at the estimates.
        null_log_likelihood: In nats, of choices that are coin flips.
        num_choices: Number of choices.
        is_converged: Whether the optimiser says so.
    """

    module: nn.Module
    cv: float
    beta: float
    names: tuple[str, ...]
    estimates: np.ndarray
    covariance: np.ndarray | None
    log_likelihood: float
    null_log_likelihood: float
    num_choices: int
    is_converged: bool

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


def fit_joint(
    module: nn.Module,
    inputs: Tensor,
    annotator: Sequence[Any] | np.ndarray | None = None,
    family: Family = "lognormal",
    mean: str = "fixed",
    beta: float = 1.0,
    initial_cv: float = 0.5,
    max_steps: int = 500,
) -> JointFit:
    r"""Maximise the marginal likelihood over a module's parameters and the cv of the strength.

    .. math:: \sum_g \log \mathbb{E}_{\beta \mid m, cv} \prod_t \sigma(\beta\, f_\theta(x_{gt}))

    All data are used in every step (L-BFGS-B in float64). The scale of the margins and the mean of
    the strength cannot be told apart, so the mean is fixed.

    Args:
        module: Maps `inputs` to margins, chosen minus rejected, shape `(pairs,)` or `(pairs, 1)`.
            It is not changed.
        inputs: First argument of the module, for instance differences of attributes.
        annotator: Ids of the respondents, one per choice.
        family: Law of the strength, `"gamma"` or `"lognormal"`.
        mean: `"fixed"`.
        beta: The mean of the strength; 1 makes coefficients those of the mean respondent.
        initial_cv: Start of the search in cv.
        max_steps: Most iterations of the optimiser.

    Returns:
        Estimates with the output of a discrete-choice model.

    Raises:
        ValueError: If an argument cannot be used, or the margins at the start are not finite.

    Example:
        >>> x = torch.tensor([[1.0], [0.5], [-0.2], [1.5], [-1.0], [0.7]])
        >>> fit_joint(torch.nn.Linear(1, 1, bias=False), x, [1, 1, 1, 2, 2, 2]).names
        ('weight[0, 0]', 'cv')
    """
    if family not in ("gamma", "lognormal"):
        raise ValueError(f"Expected family gamma or lognormal, got {family!r}")
    if mean != "fixed":
        raise ValueError(
            f"Expected mean='fixed', got {mean!r}: a module that may rescale its margins leaves "
            "the mean of the strength without information"
        )
    for name, value in {"beta": beta, "initial_cv": initial_cv}.items():
        if not 0 < value < math.inf:
            raise ValueError(f"Expected a finite {name} > 0, got {value}")
    problem = _Problem(module, inputs, annotator, family, beta)
    start = np.append(problem.start, math.log(initial_cv))
    bounds = [(None, None)] * len(problem.start) + [_LOG_CV_BOUNDS]
    found = minimize(
        problem.loss_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": max_steps, "ftol": 1e-13, "gtol": 1e-7},
    )
    estimates = np.append(found.x[:-1], math.exp(found.x[-1]))
    covariance = problem.covariance(estimates) if len(estimates) <= _MAX_HESSIAN else None
    return JointFit(
        module=problem.fitted(estimates),
        cv=float(estimates[-1]),
        beta=beta,
        names=problem.names,
        estimates=estimates,
        covariance=covariance,
        log_likelihood=-float(found.fun) * problem.num_choices,
        null_log_likelihood=-problem.num_choices * math.log(2),
        num_choices=problem.num_choices,
        is_converged=bool(found.success),
    )


class _Problem:
    """The likelihood as a function of one flat vector of parameters."""

    def __init__(
        self,
        module: nn.Module,
        inputs: Tensor,
        annotator: Sequence[Any] | np.ndarray | None,
        family: Family,
        beta: float,
    ) -> None:
        self.module = deepcopy(module).double()
        self.inputs = inputs.double()
        self.family = family
        self.beta = beta
        self._shapes = {name: value.shape for name, value in self.module.named_parameters()}
        self.start = torch.cat([p.detach().flatten() for p in self.module.parameters()]).numpy()
        with torch.no_grad():
            margin = self._margin(torch.from_numpy(self.start))
        choices = read_choices(margin, annotator)
        self.annotator = torch.from_numpy(choices.annotator) if choices.has_panels else None
        self.num_choices = choices.num_pairs

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries of the flat vector."""
        entries = (
            f"{name}{list(index) if shape else ''}"
            for name, shape in self._shapes.items()
            for index in np.ndindex(*shape)
        )
        return (*entries, "cv")

    def loss_and_gradient(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log-likelihood per choice at (parameters, log cv), and its gradient."""
        point = torch.from_numpy(vector).requires_grad_()
        loss = -self._log_likelihood(torch.cat([point[:-1], point[-1:].exp()])) / self.num_choices
        (gradient,) = torch.autograd.grad(loss, point)
        return loss.item(), gradient.numpy()

    def covariance(self, estimates: np.ndarray) -> np.ndarray:
        """Inverse Hessian of minus the log-likelihood at (parameters, cv)."""
        hessian = torch.autograd.functional.hessian(
            lambda point: -self._log_likelihood(point), torch.from_numpy(estimates)
        )
        factor, info = torch.linalg.cholesky_ex(hessian)
        if info.item() != 0:
            return np.full(hessian.shape, np.nan)
        return torch.cholesky_inverse(factor).numpy()

    def fitted(self, estimates: np.ndarray) -> nn.Module:
        """The module at the estimates."""
        self.module.load_state_dict(
            self._parameters(torch.from_numpy(estimates[:-1])), strict=False
        )
        return self.module

    def _log_likelihood(self, point: Tensor) -> Tensor:
        margin = self._margin(point[:-1])
        return mixed_logit_log_prob(
            margin, self.beta, point[-1], self.family, annotator=self.annotator
        ).sum()

    def _margin(self, flat: Tensor) -> Tensor:
        value = functional_call(self.module, self._parameters(flat), (self.inputs,))
        return value.squeeze(-1) if value.dim() == 2 else value

    def _parameters(self, flat: Tensor) -> dict[str, Tensor]:
        sizes = [shape.numel() for shape in self._shapes.values()]
        parts = zip(self._shapes.items(), flat.split(sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}
