"""What else could make equal annotators look different, and does the evidence survive it?

A strength that differs between annotators leaves two traces: the link flattens, and some
annotators agree with the margins more than others. The first trace is shared by label noise,
errors in the margins, omitted covariates and any other link; the second is not, and the
permutation test looks at it alone.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar
from scipy.special import logit

from mixdpo_pyro.inference.fitting import Fit, fit
from mixdpo_pyro.inference.likelihood.marginal import Likelihood, build_likelihood
from mixdpo_pyro.inference.likelihood.pairs import compress
from mixdpo_pyro.inference.methods.log_joint import LogJoint, at_rows, climb_ridge
from mixdpo_pyro.inference.robustness.priors import density_interval
from mixdpo_pyro.inference.verdict import boundary_p_value
from mixdpo_pyro.models.observation import Lapse

__all__ = ["LabelNoise", "profile_label_noise"]

_LAPSE_RATE = 0.02
"""Prior median of the rate of careless choices; the prior of its logit is Normal(., 1)."""

_MAX_FLIP = 0.4
"""The prior of the flip probability is uniform up to here."""


# Label noise


@dataclass(frozen=True)
class LabelNoise:
    """Heterogeneity and label noise, estimated together.

    Attributes:
        flip_probability: Where the likelihood is largest.
        flip_interval: 90% posterior interval under a uniform prior on [0, 0.4].
        cv_interval: 5% and 95% posterior quantiles of cv, label noise integrated out.
        likelihood_ratio: Twice the gain over cv = 0, each with its own best flip probability.
        p_value: Of cv = 0.
    """

    flip_probability: float
    flip_interval: tuple[float, float]
    cv_interval: tuple[float, float]
    likelihood_ratio: float
    p_value: float


def profile_label_noise(result: Fit) -> LabelNoise:
    r"""Let labels be flipped with an unknown probability :math:`\epsilon`, the same for all.

    .. math:: P(\text{choice}) = (1-\epsilon)\,\sigma(\beta\Delta) + \epsilon\,\sigma(-\beta\Delta)

    For every (epsilon, cv) on a lattice the likelihood is maximised, and integrated by Laplace's
    method, over the mean; the lattice is narrowed until it resolves the posterior, and then
    interpolated by cubic splines. Choices that are not plain pairs are careless instead, every
    outcome being equally likely then (`Lapse`), and their
    rate is estimated as thresholds are.

    Args:
        result: A fit without label noise.
    """
    if result.choices.outcomes is not None:
        return _fit_lapses(result)
    lattice = _NoiseLattice.whole(result)
    while (narrowed := lattice.narrowed()) is not None:
        lattice = narrowed
    flip, cv = (np.linspace(axis[0], axis[-1], 161) for axis in (lattice.flip, lattice.cv))
    profile = lattice.refine(lattice.profile, flip, cv)
    density = profile + lattice.refine(lattice.log_area, flip, cv) - 0.5 * cv**2
    mass = np.exp(density - density.max())
    ratio = max(0.0, 2 * float(profile.max() - lattice.best_null()))
    return LabelNoise(
        float(flip[np.unravel_index(profile.argmax(), profile.shape)[0]]),
        density_interval(flip, mass.sum(1)),
        density_interval(cv, mass.sum(0)),
        ratio,
        boundary_p_value(ratio),
    )


def _fit_lapses(result: Fit) -> LabelNoise:
    outcomes = result.choices.outcomes
    assert outcomes is not None
    lapsing = replace(
        outcomes,
        observation=Lapse(outcomes.observation, _LAPSE_RATE),
        prior=np.append(outcomes.prior, logit(_LAPSE_RATE)),
    )
    posterior = result.posterior
    refit = fit(
        replace(result.choices, outcomes=lapsing), family=posterior.family,
        mean_anchor=posterior.mean_anchor, beta=posterior.beta, seed=posterior.seed,
        num_samples=posterior.num_samples, draw_strengths=False,
    )  # fmt: skip
    ratio = max(0.0, 2 * (refit.maximum.penalised - refit.null.penalised))
    low, high = refit.posterior.interval("lapse_rate")
    return LabelNoise(
        float(np.median(refit.posterior.parameters["lapse_rate"])),
        (low, high),
        refit.posterior.interval("cv"),
        ratio,
        boundary_p_value(ratio),
    )


@dataclass(frozen=True)
class _NoiseLattice:
    """Likelihood maximised over the mean, at flip probabilities times cv."""

    result: Fit
    root_flip: Float[np.ndarray, " flips"]
    log_cv: Float[np.ndarray, " cvs"]
    profile: Float[np.ndarray, "flips cvs"]
    log_area: Float[np.ndarray, "flips cvs"]

    @classmethod
    def whole(cls, result: Fit) -> "_NoiseLattice":
        return cls.evaluate(
            result, np.linspace(0, np.sqrt(_MAX_FLIP), 7), np.linspace(0, np.log1p(30), 10)
        )

    @classmethod
    def evaluate(cls, result: Fit, root_flip: np.ndarray, log_cv: np.ndarray) -> "_NoiseLattice":
        start = np.full(len(log_cv), np.log(result.null.mean))
        profile, log_area = np.empty((2, len(root_flip), len(log_cv)))
        for k, flip in enumerate(root_flip**2):
            likelihood = build_likelihood(result.choices, result.posterior.family, float(flip))
            start, scale, profile[k] = _best_means(
                result, likelihood, np.expm1(log_cv) / 10, start
            )
            log_area[k] = np.log(np.where(scale > 0, scale, 1.0))
        return cls(result, root_flip, log_cv, profile, log_area)

    @property
    def flip(self) -> np.ndarray:
        return self.root_flip**2

    @property
    def cv(self) -> np.ndarray:
        return np.expm1(self.log_cv) / 10

    def narrowed(self) -> "_NoiseLattice | None":
        """The lattice around what is within 14 nats of the best, or None if it is fine enough."""
        inside = self.profile > self.profile.max() - 14
        flips, cvs = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
        if len(flips) >= 4 and len(cvs) >= 4:
            return None
        axes = [
            np.linspace(axis[max(at[0] - 1, 0)], axis[min(at[-1] + 1, len(axis) - 1)], len(axis))
            for axis, at in ((self.root_flip, flips), (self.log_cv, cvs))
        ]
        return self.evaluate(self.result, *axes)

    def refine(self, value: np.ndarray, flip: np.ndarray, cv: np.ndarray) -> np.ndarray:
        """Spline through the lattice; the likelihood is even in cv, so its slope at 0 is 0."""
        is_even = self.log_cv[0] == 0
        ends = ((1, np.zeros(len(value))), "not-a-knot") if is_even else "not-a-knot"
        along_cv = CubicSpline(self.log_cv, value, axis=1, bc_type=ends)(np.log1p(10 * cv))
        return CubicSpline(self.root_flip, along_cv, axis=0)(np.sqrt(flip))

    def best_null(self) -> float:
        """The largest likelihood at cv = 0, over flip probability and mean."""
        start = np.array([np.log(self.result.null.mean)])

        def loss(root_flip: float) -> float:
            # With one strength for all, an annotator's choices are like those of many.
            likelihood = compress(self.result.choices.margin, "fixed", root_flip**2)
            return -_best_means(self.result, likelihood, np.zeros(1), start)[2][0]

        bounds = 0.0, np.sqrt(_MAX_FLIP)
        inner = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
        return -min(loss(0.0), inner.fun)


def _best_means(
    result: Fit, likelihood: Likelihood, cv: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best log mean at each cv, its standard deviation, and the penalised likelihood there."""
    joint = LogJoint(likelihood, result.posterior.mean_anchor, result.posterior.beta)
    best, scale = climb_ridge(partial(at_rows, joint.penalised, cv), start, joint.mean_anchor)
    return best, scale, joint.penalised(best, cv)
