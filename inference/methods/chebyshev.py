"""The log-likelihood of (mean, cv) as a polynomial where the posterior lives, exact elsewhere.

SVI and NUTS evaluate the likelihood tens of thousands of times at parameters one by one. Near the
posterior it is an analytic function of two numbers, so a few hundred values, taken at once, give
it everywhere: a product of Chebyshev polynomials (Trefethen, Approximation Theory and
Approximation Practice, 2013). The error is measured before the polynomial is used.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial.chebyshev import chebfit, chebval, chebval2d, chebvander
from scipy.special import logsumexp
from torch import Tensor

from mixdpo_pyro.inference.likelihood.marginal import Likelihood
from mixdpo_pyro.inference.methods.laplace import RidgeLattice

__all__ = ["InterpolatedLikelihood", "interpolate"]

_DEGREES = (16, 32, 48)
"""Degrees in each direction, tried in order."""

_RIDGE_DEGREE = 6

_TOLERANCE = 1e-5
"""Largest error in nats, against which Monte Carlo errors of any posterior are enormous."""

_WINDOW_NATS = 14.0
"""Parameters whose posterior lies further below its top are not covered: exp(-14) = 1e-6."""

_NUM_CHECKED = 100
"""Random points at which the error is measured."""

_REACH = 8.0
"""Half-width of the window across the ridge, in the largest conditional standard deviation."""

_FIXED_REACH = 1e-9
"""The same where the mean is fixed: rounding."""

_EDGE = 0.9999
"""Beyond this share of the window the likelihood is exact: arccos has no slope at the ends."""


@dataclass(frozen=True)
class InterpolatedLikelihood:
    r"""A polynomial inside a window, the exact likelihood outside it.

    With :math:`x = (cv - c) / h` and :math:`y = (\log m - r(x)) / s`, r a polynomial that follows
    the ridge of the posterior,

    .. math:: \log L(m, cv) \approx \sum_{jk} C_{jk} T_j(x) T_k(y), \qquad |x|, |y| < 1

    Attributes:
        exact: The likelihood that is interpolated.
        centre: Middle c of the window of cv, which may begin at zero.
        half_width: Half-width h.
        ridge: Chebyshev coefficients of r.
        reach: Half-width s of the window of the log mean.
        coefficients: Matrix C.
        error: Largest error found at random points of the window, in nats.
    """

    exact: Likelihood
    centre: float
    half_width: float
    ridge: Float[Tensor, " degree"]
    reach: float
    coefficients: Float[Tensor, "degree_cv degree_mean"]
    error: float

    def __call__(
        self, mean: Float[Tensor, "*#points"], cv: Float[Tensor, "*#points"]
    ) -> Float[Tensor, "*points"]:
        """Log-likelihood of the whole dataset at each point, in nats."""
        mean, cv = torch.broadcast_tensors(mean, cv)
        x, y, basis = self._locate(mean, cv)
        inside = (x.abs() < _EDGE) & (y.abs() < _EDGE)
        if not inside.all():
            return self._partly_exact(mean, cv, inside)
        return ((basis @ self.coefficients) * _chebyshev(y, self.coefficients.shape[1])).sum(-1)

    def _locate(self, mean: Tensor, cv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates in the window, and the basis of the first one."""
        x = (cv - self.centre) / self.half_width
        basis = _chebyshev(x.clamp(-_EDGE, _EDGE), len(self.ridge))
        return x, (mean.log() - basis @ self.ridge) / self.reach, basis

    def _partly_exact(self, mean: Tensor, cv: Tensor, inside: Tensor) -> Tensor:
        flat_mean, flat_cv, kept = mean.reshape(-1), cv.reshape(-1), inside.reshape(-1)
        value = torch.zeros_like(flat_mean)
        outer = (~kept).nonzero()[:, 0]
        value = value.index_put((outer,), self.exact(flat_mean[outer], flat_cv[outer]))
        if kept.any():
            inner = kept.nonzero()[:, 0]
            value = value.index_put((inner,), self(flat_mean[inner], flat_cv[inner]))
        return value.reshape(mean.shape)


def interpolate(exact: Likelihood, lattice: RidgeLattice) -> Likelihood:
    """Replace a likelihood by a polynomial near its posterior.

    Args:
        exact: The likelihood.
        lattice: Where the posterior lives.

    Returns:
        The interpolated likelihood, or `exact` where no degree suffices, as with few data.
    """
    for degree in _DEGREES:
        candidate = _fit_polynomial(exact, lattice, degree)
        if candidate.error < _TOLERANCE:
            return candidate
    return exact


def _fit_polynomial(
    exact: Likelihood, lattice: RidgeLattice, degree: int
) -> InterpolatedLikelihood:
    window = _Window.around(lattice)
    is_free = lattice.scale.any()
    node, across = _nodes(degree), _nodes(degree if is_free else 1)
    x, y = (grid.ravel() for grid in np.meshgrid(node, across, indexing="ij"))
    value = window.evaluate(exact, x, y).reshape(degree, len(across))
    coefficients = _to_coefficients(node) @ value @ _to_coefficients(across).T
    x, y = np.random.default_rng(0).uniform(-_EDGE, _EDGE, (2, _NUM_CHECKED))
    fitted = chebval2d(x, y, coefficients)
    return InterpolatedLikelihood(
        exact,
        window.centre,
        window.half_width,
        torch.from_numpy(np.append(window.ridge, np.zeros(degree - len(window.ridge)))),
        window.reach,
        torch.from_numpy(coefficients),
        float(np.abs(fitted - window.evaluate(exact, x, y)).max()),
    )


@dataclass(frozen=True)
class _Window:
    """The window of :class:`InterpolatedLikelihood`, in numpy."""

    centre: float
    half_width: float
    ridge: Float[np.ndarray, " degree"]
    reach: float

    @classmethod
    def around(cls, lattice: RidgeLattice) -> "_Window":
        """The window that holds the posterior on the lattice."""
        height = logsumexp(lattice.log_density, axis=1)
        inside = height > height.max() - _WINDOW_NATS
        cv = np.exp(lattice.log_cv[inside])
        centre, half_width = (cv[-1] + cv[0]) / 2, (cv[-1] - cv[0]) / 2
        ridge = chebfit((cv - centre) / half_width, lattice.centre[inside], _RIDGE_DEGREE)
        reach = _REACH * lattice.scale[inside].max() or _FIXED_REACH
        return cls(centre, half_width, ridge, reach)

    def evaluate(self, exact: Likelihood, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The exact log-likelihood at points of the window."""
        mean = torch.from_numpy(np.exp(chebval(x, self.ridge) + self.reach * y))
        with torch.no_grad():
            return exact(mean, torch.from_numpy(self.centre + self.half_width * x)).numpy()


def _nodes(degree: int) -> Float[np.ndarray, " degree"]:
    """Zeros of the Chebyshev polynomial of this degree."""
    return np.cos(np.pi * (np.arange(degree) + 0.5) / degree)


def _to_coefficients(node: np.ndarray) -> Float[np.ndarray, "degree degree"]:
    """Matrix from values at the nodes to coefficients."""
    return np.linalg.inv(chebvander(node, len(node) - 1))


def _chebyshev(x: Float[Tensor, "*points"], degree: int) -> Float[Tensor, "*points degree"]:
    """First-kind polynomials 0, ..., degree - 1 at `x` in (-1, 1)."""
    order = torch.arange(degree, dtype=torch.float64)
    return (x.arccos()[..., None] * order).cos()
