"""Is strength a trait? How well people's strengths agree over halves of their choices, or groups.

The correlation that is reported is that of the strengths, not of their estimates: how little each
person chose is in the likelihood (as in Rouder and Haaf, Psychonomic Bulletin & Review 26, 2019).
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import chdtrc, erfc, logsumexp

from mixdpo_pyro.inference.choices import Choices, number_labels, random_people, select_annotators
from mixdpo_pyro.inference.fitting import Fit
from mixdpo_pyro.inference.likelihood.observed import LARGEST_INFORMATION
from mixdpo_pyro.inference.likelihood.panels import log_likelihood_at, panel_sizes
from mixdpo_pyro.inference.robustness.nesting import examine_nesting

__all__ = ["Reliability", "estimate_reliability"]

_MAX_PEOPLE = 1_000
"""People who are looked at; of more, a random subset."""

_FEWEST_PEOPLE = 10
"""People with choices in two parts, below which there is no answer."""

_BELOW, _ABOVE = 7.0, 5.0
"""Reach of the grid of log strengths around the one strength that fits best."""

_COARSEST, _MAX_NODES = 0.1, 600
"""Step of that grid, and its size: steps are half the width of the narrowest likelihood."""

_SPREADS = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.25, 1.6, 2.0])
"""Standard deviations, at first; in place of 0 half a step of the grid, 0.05 at most."""

_CENTRES = np.linspace(-3.0, 1.5, 37)
"""Means of the log strength, at first, around the one strength that fits best."""

_NUM_FINE, _NUM_CENTRES = 13, 11
"""Points of spreads and means on the second lattice, which spans five deviations to each side."""

_NESTED = (
    "Annotators judge responses of their own again and again, and errors of these are the same in "
    "every part: to tell, let several people judge the same pairs."
)

_LEVEL = 0.05

_HALF = 0.5
"""Share of the variance above which strength counts as stable."""


@dataclass(frozen=True)
class Reliability:
    """How well strengths of the same people agree.

    Attributes:
        parts: What is compared: `"halves"`, or the name of a column.
        value: Whether more than half of the variance of log strengths is between people
            (`"stable"`), less than half (`"unstable"`), or whether these choices do not say.
        reason: One sentence in plain English.
        correlation: Correlation of the log strengths of one person in two parts: the share of
            their variance that is between people.
        interval: Its 5% and 95% posterior quantiles.
        bootstrap: Its 5% and 95% quantiles over resampled people.
        sd_between: Standard deviation of the log strength between people.
        sd_within: Standard deviation of it within people, between parts.
        p_value: P-value of equal strengths everywhere.
        num_people: People with choices in at least two parts.
        num_parts: Number of parts.
        observed: Correlation of the estimates of halves, which few choices attenuate, with its 5%
            and 95% quantiles over resampled people; None for groups, and where nothing differs.
        whole: The same, stepped up to all choices of a person (Spearman and Brown): how reliably
            they order people.
        num_drawn: Where people are a random part of all, how many.
    """

    parts: str
    value: Literal["stable", "unstable", "cannot tell"]
    reason: str
    correlation: float
    interval: tuple[float, float]
    bootstrap: tuple[float, float]
    sd_between: float
    sd_within: float
    p_value: float
    num_people: int
    num_parts: int
    observed: tuple[float, float, float] | None = None
    whole: tuple[float, float, float] | None = None
    num_drawn: int | None = None

    @property
    def cautious_interval(self) -> tuple[float, float]:
        """The wider of both intervals at each end, on which the answer rests."""
        (low, high), (lower, higher) = self.interval, self.bootstrap
        return min(low, lower), max(high, higher)


@torch.no_grad()
def estimate_reliability(
    result: Fit,
    group: Any = None,
    *,
    name: str = "group",
    num_splits: int = 10,
    num_bootstrap: int = 500,
    seed: int = 0,
) -> Reliability:
    r"""Compare strengths of the same people over random halves of their choices, or over groups.

    .. math:: \log\beta_{gt} = \mu + \delta_t + a\,u_g + b\,v_{gt}, \qquad
              \rho = \frac{a^2}{a^2 + b^2}

    with u and v standard normal, g a person and t a part: a half of the choices, or a group such
    as a topic. The likelihood of a person integrates over both,

    .. math:: L_g(\mu, a, b) = \mathbb{E}_u \prod_t \mathbb{E}_v
              \prod_{i \in (g, t)} \sigma(\beta_{gt} \Delta_i)

    on a grid of log strengths. Of several random splits the log-likelihoods are averaged, which
    takes the luck of the split out and counts the choices once. The prior of a and b is half
    normal with scale 1, that of the mean flat; the posterior is summed over a lattice, laid twice.
    Halves have no shift; those of groups, which everybody shares (a topic whose margins are
    small), are estimated and partially pooled first.

    Halves of people who are careless, or want something else, agree too: what is stable need not
    be strength. And halves share their topics: a trait is stable over these too.

    Args:
        result: A fit with annotator ids.
        group: A label of each row, whose groups take the place of halves.
        name: Name of the groups.
        num_splits: Random splits into halves.
        num_bootstrap: Times that people are resampled.
        seed: Seed of splits and resampling.

    Raises:
        ValueError: If nobody chose repeatedly, there is not one label per row, or one group only.
    """
    choices = result.choices
    if not choices.has_panels:
        raise ValueError("Expected annotators with several choices each")
    label = None if group is None else _group_numbers(choices, group, name)
    rng = np.random.default_rng((seed, 41))
    kept = random_people(choices, rng, max_people=_MAX_PEOPLE)
    if kept is not None:
        assert choices.annotator is not None
        label = None if label is None else label[np.isin(choices.annotator, kept)]
        choices = select_annotators(choices, kept)
    centre = math.log(result.null.mean)
    if label is None:
        halves = (_random_halves(choices, rng) for _ in range(num_splits))
        parts = [_Parts.of(choices, half, centre) for half in halves]
    else:
        parts = [_Parts.of(choices, label, centre).aligned(label)]
    found = _summarise(parts, name if group is not None else "halves", num_bootstrap, rng)
    if examine_nesting(choices).is_nested:
        found = replace(found, value="cannot tell", reason=_NESTED)
    return replace(found, num_drawn=None if kept is None else len(kept))


def _group_numbers(choices: Choices, group: Any, name: str) -> Int[np.ndarray, " rows"]:
    if len(group) != choices.num_pairs:
        raise ValueError(
            f"Expected one value of {name!r} per margin ({choices.num_pairs}), got {len(group)}"
        )
    number = number_labels(group)
    if number.max() == 0:
        raise ValueError(f"Expected several groups in {name!r}, got one")
    return number[np.unique(choices.choice, return_index=True)[1]][choices.choice]


def _random_halves(choices: Choices, rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
    """Half of each row: the choices of a person are dealt out in random order."""
    assert choices.annotator is not None
    person = choices.by_choice(choices.annotator)
    order = np.lexsort((rng.random(len(person)), person))
    first = np.concatenate([[0], np.cumsum(np.bincount(person))[:-1]])
    half = np.empty(len(person), dtype=int)
    half[order] = (np.arange(len(person)) - first[person[order]]) % 2
    return half[choices.choice]


# The likelihood


@dataclass(frozen=True)
class _Parts:
    """Log-likelihoods of the parts of everybody's choices, over a grid of log strengths.

    Attributes:
        choices: The choices.
        node: Log strengths, equally spaced.
        value: Log-likelihood of each part of a person at each of them.
        person: Person of each of these parts.
        part: Its number among the parts.
    """

    choices: Choices
    node: Float[np.ndarray, " nodes"]
    value: Float[np.ndarray, "cells nodes"]
    person: Int[np.ndarray, " cells"]
    part: Int[np.ndarray, " cells"]

    @classmethod
    def of(cls, choices: Choices, part: Int[np.ndarray, " rows"], centre: float) -> "_Parts":
        """Tabulate the choices, one part of a person being an annotator."""
        assert choices.annotator is not None
        key, cell = np.unique(np.stack([choices.annotator, part], 1), axis=0, return_inverse=True)
        cell = cell.reshape(-1)
        cells = replace(choices, annotator=cell, labels=tuple(map(str, range(len(key)))))
        width = 0.5 / math.sqrt(LARGEST_INFORMATION * panel_sizes(cells).max())
        step = max(min(_COARSEST, width), (_BELOW + _ABOVE) / _MAX_NODES)
        node = centre + np.arange(-_BELOW, _ABOVE, step)
        value = log_likelihood_at(torch.from_numpy(np.exp(node)), cells).numpy()
        return cls(choices, node, value, key[:, 0], key[:, 1])

    @property
    def step(self) -> float:
        """Distance of nodes."""
        return float(self.node[1] - self.node[0])

    @property
    def is_repeated(self) -> np.ndarray:
        """Whether a person has choices in two parts at least."""
        return np.bincount(self.person, minlength=self.choices.num_annotators) > 1

    def floored(self, spreads: np.ndarray) -> np.ndarray:
        """Spreads that the grid resolves: half a step at least."""
        return np.unique(np.maximum(spreads, self.step / 2))

    def within(self, spread: float) -> Float[np.ndarray, "cells nodes"]:
        """Log-likelihood of each part, were the person's log strength at each node."""
        top = self.value.max(1, keepdims=True)
        kernel = _normal_mass(self.node, self.node[:, None], spread)
        return np.log(np.exp(self.value - top) @ kernel.T + 1e-300) + top

    def per_person(
        self, centres: np.ndarray, between: np.ndarray, within: np.ndarray
    ) -> Float[np.ndarray, "people within between centres"]:
        """Log-likelihood of each person's choices."""
        mass = _normal_mass(self.node, centres[None, :, None], between[:, None, None])
        found = []
        for spread in within:
            joint = np.zeros((self.choices.num_annotators, len(self.node)))
            np.add.at(joint, self.person, self.within(spread))
            top = joint.max(1, keepdims=True)
            expected = np.exp(joint - top) @ mass.reshape(-1, len(self.node)).T
            found.append((np.log(expected + 1e-300) + top).reshape(-1, *mass.shape[:2]))
        return np.stack(found, axis=1)

    def aligned(self, part: Int[np.ndarray, " rows"]) -> "_Parts":
        """The same with margins in units of their group's typical strength, partially pooled."""
        first = _Lattice.coarse([self])
        likelihood = self.within(first.mean_spread())
        total = np.zeros((self.part.max() + 1, len(self.node)))
        np.add.at(total, self.part, likelihood)
        mass = np.exp(total - logsumexp(total, axis=1, keepdims=True))
        mean = mass @ self.node
        variance = mass @ self.node**2 - mean**2
        weight = 1 / variance
        pooled = weight @ mean / weight.sum()
        # DerSimonian and Laird (Controlled Clinical Trials 7, 1986)
        excess = weight @ (mean - pooled) ** 2 - (len(mean) - 1)
        spread = max(0.0, excess / (weight.sum() - weight @ weight / weight.sum()))
        shift = spread / (spread + variance) * (mean - pooled)
        margin = self.choices.margin * np.exp(shift[part])
        return _Parts.of(replace(self.choices, margin=margin), part, self.node[0] + _BELOW)

    def estimates(self, lattice: "_Lattice") -> Float[np.ndarray, "people 2"]:
        """Posterior mean of the log strength in each half, by that half alone; NaN without one."""
        prior = _normal_mass(self.node, lattice.mean_centre(), lattice.mean_spread())
        log_mass = self.value + np.log(prior + 1e-300)
        found = np.full((self.choices.num_annotators, 2), np.nan)
        mass = np.exp(log_mass - logsumexp(log_mass, axis=1, keepdims=True))
        found[self.person, self.part] = mass @ self.node
        return found


def _normal_mass(node: np.ndarray, centre: Any, spread: Any) -> np.ndarray:
    """Mass of a normal distribution on the nodes, last axis."""
    mass = np.exp(-0.5 * ((node - centre) / spread) ** 2)
    return mass / (mass.sum(-1, keepdims=True) + 1e-300)


# The posterior


@dataclass(frozen=True)
class _Lattice:
    """Log-likelihood over means and spreads, with the log prior's mass.

    Attributes:
        centres: Means of the log strength.
        between: Spreads between people.
        within: Spreads within people.
        value: Log-likelihood, of everybody or of each person, averaged over splits.
    """

    centres: np.ndarray
    between: np.ndarray
    within: np.ndarray
    value: Float[np.ndarray, "*people within between centres"]

    @classmethod
    def over(
        cls, parts: list[_Parts], centres: np.ndarray, between: np.ndarray, within: np.ndarray
    ) -> "_Lattice":
        """The log-likelihood of each person."""
        value = np.mean([each.per_person(centres, between, within) for each in parts], axis=0)
        return cls(centres, between, within, value)

    @classmethod
    def coarse(cls, parts: list[_Parts]) -> "_Lattice":
        """Where the posterior is: that of the first split, people summed."""
        middle = parts[0].node[0] + _BELOW
        spreads = parts[0].floored(_SPREADS)
        axes = middle + _CENTRES, spreads, spreads
        return cls(*axes, parts[0].per_person(*axes).sum(0))

    def finer(self, parts: list[_Parts]) -> "_Lattice":
        """The lattice where this one has its mass, person by person."""
        mass = self.mass()
        axes = []
        for axis, name in ((2, "centres"), (1, "between"), (0, "within")):
            points = getattr(self, name)
            share = mass.sum(tuple({0, 1, 2} - {axis}))
            mean = share @ points
            sd = math.sqrt(max(share @ (points - mean) ** 2, 1e-4))
            number = _NUM_CENTRES if axis == 2 else _NUM_FINE
            fine = np.linspace(mean - 5 * sd, mean + 5 * sd, number)
            if axis != 2:
                fine = parts[0].floored(np.linspace(max(fine[0], 0.0), fine[-1], number))
            axes.append(fine)
        return _Lattice.over(parts, *axes)

    def mass(self, weight: Float[np.ndarray, " people"] | None = None) -> np.ndarray:
        """Posterior mass, each person counted so often."""
        value = self.value
        if value.ndim == 4:
            value = value.sum(0) if weight is None else np.tensordot(weight, value, 1)
        log_mass = value + self._log_prior()
        return np.exp(log_mass - logsumexp(log_mass))

    def _log_prior(self) -> np.ndarray:
        """Half normal in both spreads, and the width of each cell of the lattice."""
        within, between = (
            -0.5 * x**2 + np.log(np.gradient(x)) for x in (self.within, self.between)
        )
        return within[:, None, None] + between[None, :, None] + np.zeros(len(self.centres))

    def correlations(self) -> Float[np.ndarray, "within between"]:
        """Share of the variance that is between people."""
        within, between = self.within[:, None] ** 2, self.between**2
        return between / (within + between)

    def quantiles(
        self, levels: list[float], weight: Float[np.ndarray, " people"] | None = None
    ) -> np.ndarray:
        """Posterior quantiles of the correlation."""
        share, value = self.mass(weight).sum(2).ravel(), self.correlations().ravel()
        order = value.argsort()
        cumulative = share[order].cumsum() - 0.5 * share[order]
        return np.interp(levels, cumulative, value[order])

    def spreads(self) -> tuple[float, float]:
        """Posterior means of the spreads between and within people."""
        mass = self.mass().sum(2)
        return float(mass.sum(0) @ self.between), float(mass.sum(1) @ self.within)

    def mean_spread(self) -> float:
        """Posterior root mean square of both spreads together."""
        total = self.within[:, None] ** 2 + self.between**2
        return math.sqrt(float((self.mass().sum(2) * total).sum()))

    def mean_centre(self) -> float:
        """Posterior mean of the mean."""
        return float(self.mass().sum((0, 1)) @ self.centres)

    def p_value(self) -> float:
        r"""Of equal strengths, both spreads at bounds: a mixture of :math:`\chi^2_{0,1,2}`."""
        total = self.value.sum(0) if self.value.ndim == 4 else self.value
        ratio = 2 * float(total.max() - total[0, 0].max())
        if ratio <= 0:
            return 1.0
        return 0.5 * float(erfc(math.sqrt(ratio / 2))) + 0.25 * float(chdtrc(2, ratio))


def _summarise(
    parts: list[_Parts], name: str, num_bootstrap: int, rng: np.random.Generator
) -> Reliability:
    coarse = _Lattice.coarse(parts)
    lattice = coarse.finer(parts)
    people = lattice.value.shape[0]
    weights = rng.multinomial(people, np.full(people, 1 / people), size=num_bootstrap)
    low, middle, high = lattice.quantiles([0.05, 0.5, 0.95])
    resampled = [lattice.quantiles([0.5], weight.astype(float))[0] for weight in weights]
    bounds = np.quantile(resampled, [0.05, 0.95])
    found = Reliability(
        parts=name,
        value="cannot tell",
        reason="",
        correlation=float(middle),
        interval=(float(low), float(high)),
        bootstrap=(float(bounds[0]), float(bounds[1])),
        sd_between=lattice.spreads()[0],
        sd_within=lattice.spreads()[1],
        p_value=coarse.p_value(),
        num_people=int(parts[0].is_repeated.sum()),
        num_parts=int(parts[0].part.max()) + 1,
    )
    if name == "halves":
        observed, whole = _observed(parts, lattice, weights)
        found = replace(found, observed=observed, whole=whole)
    return _judged(found)


def _observed(
    parts: list[_Parts], lattice: _Lattice, weights: Int[np.ndarray, "times people"]
) -> tuple[Any, Any]:
    """Correlation of the estimates of both halves, and that stepped up, with intervals."""
    estimates = [each.estimates(lattice)[each.is_repeated] for each in parts]
    weights = weights[:, parts[0].is_repeated].astype(float)
    ones = np.ones((1, weights.shape[1]))
    found = np.mean([_correlations(e, np.concatenate([ones, weights])) for e in estimates], axis=0)
    if not np.isfinite(found[0]):
        return None, None
    stepped = 2 * found / (1 + found)
    return tuple(
        (float(x[0]), *(float(q) for q in np.nanquantile(x[1:], [0.05, 0.95])))
        for x in (found, stepped)
    )  # type: ignore[return-value]


def _correlations(
    pair: Float[np.ndarray, "people 2"], weights: Float[np.ndarray, "times people"]
) -> Float[np.ndarray, " times"]:
    """Intraclass correlation of two columns, whose order is arbitrary, under each weighting."""
    share = weights / weights.sum(1, keepdims=True)
    mean = share @ pair.mean(1)
    centred = pair[None] - mean[:, None, None]
    covariance = (share * centred.prod(2)).sum(1)
    variance = (share * (centred**2).mean(2)).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return covariance / variance


def _judged(found: Reliability) -> Reliability:
    """The answer: both intervals have to lie on one side of a half."""
    low, high = found.cautious_interval
    what = "halves of their choices" if found.parts == "halves" else f"groups of {found.parts!r}"
    words = f"log strengths of one annotator correlate with {found.correlation:.2f}"
    evidence = f"between two {what}, {words} ({low:.2f} to {high:.2f}, 90%)"
    if found.num_people < _FEWEST_PEOPLE:
        words = f"{found.num_people} annotators have choices in two parts"
        return replace(found, reason=f"{words}; {_FEWEST_PEOPLE} are needed.")
    if found.p_value >= _LEVEL:
        reason = (
            f"These choices fit equal strengths everywhere (p = {found.p_value:.2g}), and where "
            "nobody differs nothing can be stable."
        )
        return replace(found, reason=reason)
    if low > _HALF:
        reason = f"More than half of the variance is between annotators: {evidence}."
        return replace(found, value="stable", reason=reason)
    if high < _HALF:
        reason = f"Less than half of the variance is between annotators: {evidence}."
        return replace(found, value="unstable", reason=reason)
    return replace(found, reason=f"It may be more than half of the variance or less: {evidence}.")
