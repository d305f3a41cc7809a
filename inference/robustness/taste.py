"""Do people want different things? Strength and taste in one likelihood."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import chdtrc, comb
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixdpo_pyro.inference.choices import Choices, random_people, select_annotators
from mixdpo_pyro.inference.verdict import boundary_p_value

__all__ = ["Taste", "compare_taste", "standardise"]

_NUM_DRAWS = 512
"""Quasi-random draws of every person's strength and taste, the same for all."""

_MAX_CHOICES = 10_000
"""Choices that are looked at; of more, those of a random subset of people."""


@dataclass(frozen=True)
class Taste:
    """Strength and taste, each with and without the other.

    Attributes:
        attributes: Names of the attributes, in the order of what follows.
        strength_p_value: P-value of equal strengths where tastes may differ.
        taste_p_value: P-value of equal tastes where strengths may differ.
        mean: Common coefficient of each attribute, per standard deviation of it.
        sd: Standard deviation between people of each coefficient.
        cv: Coefficient of variation of the strength beside tastes.
    """

    attributes: tuple[str, ...]
    strength_p_value: float
    taste_p_value: float
    mean: Float[np.ndarray, " attributes"]
    sd: Float[np.ndarray, " attributes"]
    cv: float


def compare_taste(
    choices: Choices, attributes: Mapping[str, Float[np.ndarray, " pairs"]], mean: float
) -> Taste:
    r"""Let every person weigh observed attributes in a way of their own.

    .. math:: \text{logit} P = \beta_g \Delta_p + \theta_g^\top a_p, \qquad
              \log\beta_g \sim \mathrm{Normal}(\mu, s^2), \quad
              \theta_{gk} \sim \mathrm{Normal}(\theta_k, T_k^2)

    a mixed logit with random coefficients (Train, Discrete Choice Methods with Simulation, 2009,
    chapter 6), its likelihood simulated with 512 Sobol draws for every person and maximised
    by L-BFGS-B. Tested are s = 0, and all :math:`T_k = 0`, whose likelihood ratio is a mixture of
    :math:`\chi^2_j` with binomial weights, were the attributes independent.

    Args:
        choices: Pairs with annotator ids.
        attributes: Name -> difference of the attribute, chosen minus rejected, one per pair.
        mean: The best mean strength without tastes; a start.

    Raises:
        ValueError: If an attribute is 0 everywhere, or not finite; the message names it.
    """
    columns = np.stack([standardise(name, value) for name, value in attributes.items()], 1)
    kept = random_people(choices, np.random.default_rng(17), max_choices=_MAX_CHOICES)
    if kept is not None:
        assert choices.annotator is not None
        columns = columns[np.isin(choices.annotator, kept)]
        choices = select_annotators(choices, kept)
    model = _SimulatedLikelihood.of(choices, columns)
    full = model.maximise(mean, strength=True, taste=True)
    alike = model.maximise(mean, strength=False, taste=True)
    same_taste = model.maximise(mean, strength=True, taste=False)
    best = max(full.value, alike.value, same_taste.value)
    return Taste(
        attributes=tuple(attributes),
        strength_p_value=boundary_p_value(2 * (best - alike.value)),
        taste_p_value=_binomial_p_value(2 * (best - same_taste.value), columns.shape[1]),
        mean=full.theta,
        sd=full.spread,
        cv=math.sqrt(math.expm1(full.scale**2)),
    )


def standardise(name: str, value: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """An attribute in units of its root mean square, so that zero stays zero.

    Args:
        name: Its name, for the message.
        value: Differences, chosen minus rejected.

    Raises:
        ValueError: If all are 0, or one is not finite.
    """
    size = float(np.sqrt(np.mean(np.square(value, dtype=np.float64))))
    if not 0 < size < np.inf:
        raise ValueError(f"Expected finite values that are not all 0 as attribute {name!r}")
    return value / size


def _binomial_p_value(ratio: float, size: int) -> float:
    """P-value where `size` variances are zero, each at its bound, and estimates independent."""
    if ratio <= 0:
        return 1.0
    weights = comb(size, np.arange(1, size + 1)) / 2.0**size
    return float(weights @ chdtrc(np.arange(1, size + 1), ratio))


@dataclass(frozen=True)
class _Estimate:
    value: float
    scale: float
    theta: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class _SimulatedLikelihood:
    """The likelihood of all people, averaged over common draws of strength and taste."""

    margin: Float[Tensor, " pairs"]
    attribute: Float[Tensor, "pairs attributes"]
    annotator: Int[Tensor, " pairs"]
    num_annotators: int
    normal: Float[Tensor, "draws effects"]

    @classmethod
    def of(cls, choices: Choices, columns: np.ndarray) -> "_SimulatedLikelihood":
        assert choices.annotator is not None
        num_effects = columns.shape[1] + 1
        engine = torch.quasirandom.SobolEngine(num_effects, scramble=True, seed=0)
        uniform = engine.draw(_NUM_DRAWS, dtype=torch.float64)
        normal = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
        return cls(
            torch.from_numpy(choices.margin), torch.from_numpy(columns),
            torch.from_numpy(choices.annotator), choices.num_annotators, normal,
        )  # fmt: skip

    def maximise(self, mean: float, strength: bool, taste: bool) -> _Estimate:
        """The best parameters: log mean of the log strength, its scale, tastes, their spreads."""
        size = self.attribute.shape[1]
        start = np.concatenate([[math.log(mean), 0.3], np.zeros(size), np.full(size, 0.3)])
        bounds = [
            (None, None),
            (0.0, 3.0) if strength else (0.0, 0.0),
            *[(None, None)] * size,
            *[(0.0, None) if taste else (0.0, 0.0)] * size,
        ]
        found = minimize(
            self._loss_and_gradient,
            np.clip(start, *np.array([_filled(b) for b in bounds]).T),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 60, "ftol": 1e-9},
        )
        _, scale = found.x[:2]
        theta, spread = found.x[2:].reshape(2, -1)
        return _Estimate(-found.fun, scale, theta, spread)

    def _loss_and_gradient(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(vector).requires_grad_()
        loss = -self._log_likelihood(point)
        (gradient,) = torch.autograd.grad(loss, point)
        return loss.item(), gradient.numpy()

    def _log_likelihood(self, point: Tensor) -> Tensor:
        size = self.attribute.shape[1]
        theta, spread = point[2 : 2 + size], point[2 + size :]
        beta = torch.exp(point[0] + point[1] * self.normal[:, 0])
        weight = theta + spread * self.normal[:, 1:]
        logit = self.margin[:, None] * beta + self.attribute @ weight.T
        shape = (self.num_annotators, len(self.normal))
        each = torch.zeros(shape, dtype=logit.dtype).index_add(
            0, self.annotator, logsigmoid(logit)
        )
        return (each.logsumexp(1) - math.log(len(self.normal))).sum()


def _filled(bound: tuple[float | None, float | None]) -> tuple[float, float]:
    low, high = bound
    return -np.inf if low is None else low, np.inf if high is None else high
