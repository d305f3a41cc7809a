"""Are people careless, each at a rate of their own? Strength and care in one likelihood."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import RectBivariateSpline
from scipy.special import betainc, chdtrc, logsumexp

from mixdpo_pyro.inference.choices import Choices
from mixdpo_pyro.inference.likelihood.panels import tabulate
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.inference.predictive import choice_probabilities
from mixdpo_pyro.inference.verdict import boundary_p_value
from mixdpo_pyro.models import Family

__all__ = ["Agreement", "Care", "LapseRates", "agreement_beyond_margins", "compare_care"]

_RATES = np.array(
    [0, 0.01, 0.02, 0.04, 0.07, 0.11, 0.16, 0.23, 0.32, 0.43, 0.56, 0.7, 0.85, 0.999]
)
"""Nodes of a person's lapse rate; at 1 a strength would have no likelihood."""

_MEANS = np.array([0.003, 0.01, 0.02, 0.04, 0.07, 0.1, 0.14, 0.2, 0.28, 0.38, 0.5])
_SIZES = np.array([0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 200.0])
"""Means and sizes a + b of the Beta distributions of the rate; 0.2 makes two classes of people."""

_CV = np.array([0.0, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.2, 1.6, 2.2])
_LOG_MEAN = np.linspace(-0.8, 2.0, 29)
"""Lattice of the log mean, around the best without lapses: lapses hide strength."""

_CARELESS = 0.5
"""Lapse rate from which on a person counts as answering at random."""

_ONE_SIDED = 1.645
"""Standard errors of a one-sided test, and bound, of 5%."""

_LARGEST_CORRELATION = 0.2
"""Upper bound of the correlation of people whose answers are random; that of people who want the
opposite in half of what matters is between 0.3 and 0.4."""


@dataclass(frozen=True)
class LapseRates:
    """How carelessly each annotator chose, at the likeliest distributions of rate and strength.

    Attributes:
        weight: Mass of each rate under the likeliest Beta distribution.
        mean: The likeliest mean strength.
        cv: Its coefficient of variation.
        lapse_rate: Posterior mean of each annotator's lapse rate.
        careless: Posterior probability that they answer at random at least half of the time.
    """

    weight: Float[np.ndarray, " rates"]
    mean: float
    cv: float
    lapse_rate: Float[np.ndarray, " annotators"]
    careless: Float[np.ndarray, " annotators"]

    @classmethod
    def of(
        cls, weight: np.ndarray, mean: float, cv: float, value: Float[np.ndarray, "rates people"]
    ) -> "LapseRates":
        """From the log-likelihood of each annotator's choices at every rate."""
        log_mass = np.log(weight + 1e-300)[:, None] + value
        mass = np.exp(log_mass - logsumexp(log_mass, axis=0))
        return cls(weight, mean, cv, _RATES @ mass, mass[_RATES >= _CARELESS].sum(0))

    @torch.no_grad()
    def of_others(self, choices: Choices, family: Family) -> "LapseRates":
        """Those of other annotators under the same distributions."""
        point = torch.tensor([self.mean]).double(), torch.tensor([self.cv]).double()
        value = [
            tabulate(choices, family, float(rate) / 2).per_annotator(*point)[:, 0].numpy()
            for rate in _RATES
        ]
        return self.of(self.weight, self.mean, self.cv, np.stack(value))


@dataclass(frozen=True)
class Care:
    r"""Strength and care, each with and without the other.

    Attributes:
        strength_p_value: P-value of equal strengths where lapse rates may differ.
        care_p_value: P-value of no lapses where strengths may differ.
        advantage: Log-likelihood of lapses alone minus that of strengths alone, in nats.
        mean_rate: Mean lapse rate where both may differ.
        rates: The rate of each person who was looked at.
        log_likelihood: That of lapses and equal strengths, in nats.
    """

    strength_p_value: float
    care_p_value: float
    advantage: float
    mean_rate: float
    rates: LapseRates
    log_likelihood: float

    @property
    def careless(self) -> Float[np.ndarray, " annotators"]:
        """Posterior probability that a person answers at random at least half of the time."""
        return self.rates.careless


@dataclass(frozen=True)
class Agreement:
    """How people who answer at random at times agree with each other on the same pair.

    Attributes:
        correlation: That of two such choices, beyond what the margins explain.
        error: Its standard error, were their answers random.
    """

    correlation: float
    error: float

    @property
    def upper(self) -> float:
        """95% bound of the correlation."""
        return self.correlation + _ONE_SIDED * self.error

    @property
    def is_known(self) -> bool:
        """Whether random answers would be told from shared wants."""
        return _ONE_SIDED * self.error < _LARGEST_CORRELATION

    @property
    def is_beyond_chance(self) -> bool:
        """Whether they agree more often than by chance."""
        return self.correlation >= _ONE_SIDED * self.error

    @property
    def is_by_chance(self) -> bool:
        """Whether they do not, and would be known to if they wanted the same something else."""
        return self.upper < _LARGEST_CORRELATION and not self.is_beyond_chance


def compare_care(choices: Choices, family: Family, mean: float) -> Care:
    r"""Let every person answer at random at a rate of their own, and let strengths differ.

    .. math:: L_g(m, cv, a, b) = \mathbb{E}_{\epsilon_g \sim \mathrm{Beta}(a, b)}
              \mathbb{E}_{\beta_g \mid m, cv} \prod_t
              \big[(1 - \epsilon_g)\, p(y_t \mid \beta_g) + \epsilon_g / J\big]

    with J the number of outcomes. Two nulls are tested against it, each with its own best m: equal
    strengths, :math:`2(\ell - \ell_{cv=0})`, half zero and half :math:`\chi^2_1`; and no lapses,
    :math:`2(\ell - \ell_{\epsilon=0})` against :math:`\chi^2_2`, which is cautious at a boundary.
    Everything is tabulated over rates, means and cv, and interpolated between.

    Args:
        choices: Data with annotator ids.
        family: Family of the strength.
        mean: The best mean strength without lapses.

    Returns:
        The comparison.
    """
    lattice = _Lattice.tabulate(choices, family, mean)
    both, alike, no_lapses = lattice.best(), lattice.best(equal=True), lattice.best(lapses=False)
    return Care(
        strength_p_value=boundary_p_value(2 * max(0.0, both - alike)),
        care_p_value=float(chdtrc(2, 2 * max(0.0, both - no_lapses))),
        advantage=alike - no_lapses,
        mean_rate=float(_RATES @ lattice.rates.weight),
        rates=lattice.rates,
        log_likelihood=alike,
    )


@dataclass(frozen=True)
class _Lattice:
    """Log-likelihood per annotator at lapse rates, log means and cv."""

    log_mean: Float[np.ndarray, " means"]
    value: Float[np.ndarray, "rates annotators means cvs"]

    @classmethod
    @torch.no_grad()
    def tabulate(cls, choices: Choices, family: Family, mean: float) -> "_Lattice":
        log_mean = np.log(mean) + _LOG_MEAN
        grid = torch.from_numpy(np.exp(log_mean))[:, None], torch.from_numpy(_CV)[None, :]
        value = [
            tabulate(choices, family, float(rate) / 2).per_annotator(*grid).numpy()
            for rate in _RATES
        ]
        return cls(log_mean, np.stack(value))

    @cached_property
    def weights(self) -> Float[np.ndarray, "priors rates"]:
        """Mass of each rate under each Beta distribution."""
        edges = np.concatenate([[0.0], (_RATES[1:] + _RATES[:-1]) / 2, [1.0]])
        mean, size = (x.ravel() for x in np.meshgrid(_MEANS, _SIZES, indexing="ij"))
        a, b = mean * size, (1 - mean) * size
        return np.diff(betainc(a[:, None], b[:, None], edges), axis=1)

    @cached_property
    def mixed(self) -> Float[np.ndarray, "priors means cvs"]:
        """Log-likelihood of all annotators, their rates integrated out, under each Beta."""
        top = self.value.max(0)
        relative = np.exp(self.value - top)
        found = [
            np.log(np.tensordot(weight, relative, 1) + 1e-300).sum(0) for weight in self.weights
        ]
        return np.stack(found) + top.sum(0)

    def best(self, equal: bool = False, lapses: bool = True) -> float:
        """The largest log-likelihood, by a spline through the lattice."""
        profile = self.value[0].sum(0)  # no lapses
        if lapses:
            profile = np.maximum(self.mixed.max(0), profile)
        if equal:
            profile = np.repeat(profile[:, :1], 4, axis=1)
        columns = np.log1p(10 * _CV)[: profile.shape[1]]
        spline = RectBivariateSpline(self.log_mean, columns, profile, kx=3, ky=3)
        fine = np.linspace(self.log_mean[0], self.log_mean[-1], 281)
        return float(spline(fine, np.linspace(0, columns[-1], 61)).max())

    @cached_property
    def rates(self) -> LapseRates:
        """The rate of each person at the best Beta, mean and cv."""
        prior, mean, cv = np.unravel_index(self.mixed.argmax(), self.mixed.shape)
        best = float(np.exp(self.log_mean[mean])), float(_CV[cv])
        return LapseRates.of(self.weights[prior], *best, self.value[:, :, mean, cv])


def agreement_beyond_margins(
    choices: Choices, rates: LapseRates, family: Family
) -> Agreement | None:
    r"""How much do people who answer at random at times agree on the same pair?

    .. math:: \hat\rho = \frac{\sum_p \sum_{g < h} w_g w_h (y_g - p_g)(y_h - p_h)}
              {\sum_p \sum_{g < h} w_g w_h s_g s_h}, \qquad
              p_g = (1 - w_g)\, \mathbb{E}_\beta\, \sigma(\beta |\Delta|) + w_g / 2, \quad
              s_g^2 = p_g (1 - p_g)

    over the judges g and h of each pair p, with y whether a choice agrees with its margin and w
    the lapse rate, so that the attentive do not count. Answers at random agree by chance; people
    who want the same something else than the margins say agree more often, and so does everybody
    where margins are wrong for all.

    Args:
        choices: Data with annotator ids.
        rates: Lapse rates of these annotators.
        family: Family of the strength.

    Returns:
        None where nobody who lapses shares a pair with another one, or choices are no pairs.
    """
    assert choices.annotator is not None
    if choices.pair is None or choices.outcomes is not None:
        return None
    # At margin zero nothing says which response was chosen; one judgement of each person counts.
    rows = np.flatnonzero(choices.margin != 0)
    cells = np.stack([choices.pair[rows], choices.annotator[rows]], axis=1)
    rows = rows[np.sort(np.unique(cells, axis=0, return_index=True)[1])]
    error = {"pair_error": np.array([choices.margin_error])} if choices.margin_error else {}
    at_best = Posterior(np.array([rates.mean]), np.array([rates.cv]), family, parameters=error)
    lapse = rates.lapse_rate[choices.annotator[rows]]
    attentive = choice_probabilities(at_best, np.abs(choices.margin[rows]))[0]
    chance = (1 - lapse) * attentive + lapse / 2
    spread = np.sqrt(chance * (1 - chance))
    pair = choices.pair[rows]
    together = _two_by_two(lapse * spread, pair)
    if together <= 0:
        return None
    residual = lapse * ((choices.margin[rows] > 0) - chance)
    variance = _two_by_two(np.square(lapse * spread), pair)
    return Agreement(_two_by_two(residual, pair) / together, float(np.sqrt(variance)) / together)


def _two_by_two(value: Float[np.ndarray, " rows"], pair: Int[np.ndarray, " rows"]) -> float:
    """Sum over pairs of the products of two different rows of each."""
    return float((np.bincount(pair, value) ** 2 - np.bincount(pair, value**2)).sum() / 2)
