"""The likelihood of people whose strengths go with columns, expanded around its best effects."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import logsumexp
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixdpo_pyro.inference.choices import Choices

__all__ = ["Expansion", "ShiftedPanels"]

_STEP = 1e-3
"""Step of differences in the log strength; second differences are then off by about 1e-7."""

_REACH, _NUM_SEARCHED = 6.0, 25
_NODES = np.linspace(-6.5, 6.5, 21)
"""Nodes of a person's z around its posterior mean, in posterior standard deviations. What lies
beyond them, where the posterior is skew, is 1e-6 of a person's likelihood at cv 0.6 and 4e-5 at
1.5; see the tests."""

_MAX_STEPS, _TOLERANCE = 12, 1e-4


@dataclass(frozen=True)
class Expansion:
    r"""The log-likelihood to second order around the effects that are best under a prior.

    .. math:: \ell(\theta) \approx \ell - \tfrac12 (\theta - \mu)^\top H (\theta - \mu)

    Attributes:
        spread: Standard deviation of the log strength between people beside the columns.
        best: The best effects under the prior: where it is expanded.
        value: The largest value of the parabola.
        centre: Where that is, without a prior.
        information: H.
        scores: Slope of the log-likelihood of each person where it is expanded.
        pair_scores: The same summed over the choices on each pair, where pairs are known.
    """

    spread: float
    best: Float[np.ndarray, " parameters"]
    value: float
    centre: Float[np.ndarray, " parameters"]
    information: Float[np.ndarray, "parameters parameters"]
    scores: Float[np.ndarray, "annotators parameters"]
    pair_scores: Float[np.ndarray, "pairs parameters"] | None


@dataclass(frozen=True)
class ShiftedPanels:
    r"""The likelihood of each person's choices, whose log strengths are shifted by columns.

    .. math:: L_g(\theta, s) = \mathbb{E}_{z \sim \mathrm{Normal}(0, 1)} \prod_{i \in g}
              p\big(y_i \mid \log\beta = x_i^\top \theta + s z\big)

    Attributes:
        design: Rows x, one per choice, in the order of people.
        person: Person of each choice, ascending.
        first: First choice of each person.
        pair: Number of the pair of each choice, or None.
        log_prob: Log-probability of all choices at strengths, last axis the choices.
    """

    design: Float[np.ndarray, "choices parameters"]
    person: Int[np.ndarray, " choices"]
    first: Int[np.ndarray, " annotators"]
    pair: Int[np.ndarray, " choices"] | None
    log_prob: Callable[[Tensor], Tensor]

    @classmethod
    def of(
        cls, choices: Choices, design: Float[np.ndarray, "choices parameters"]
    ) -> "ShiftedPanels":
        """Sort the choices by person."""
        assert choices.annotator is not None
        person = choices.by_choice(choices.annotator)
        order = np.argsort(person, kind="stable")
        first = np.searchsorted(person[order], np.arange(choices.num_annotators))
        pair = None
        if choices.pair is not None:
            pair = np.unique(choices.by_choice(choices.pair), return_inverse=True)[1][order]
        return cls(design[order], person[order], first, pair, _log_prob(choices, order))

    def expand(
        self,
        spread: float,
        start: Float[np.ndarray, " parameters"],
        prior_mean: Float[np.ndarray, " parameters"],
        precision: Float[np.ndarray, " parameters"],
    ) -> Expansion:
        """Expand the log-likelihood around the best effects under a normal prior, by Newton."""
        theta = start
        for step in range(_MAX_STEPS):
            if step % 2 == 0:
                nodes = self._place_nodes(theta, spread)
            _, scores, information, _ = self._evaluate(theta, spread, *nodes)
            gradient = scores.sum(0) - precision * (theta - prior_mean)
            move = np.linalg.solve(_definite(information) + np.diag(precision), gradient)
            theta = theta + move * min(1.0, 1.0 / np.abs(move).max())
            if np.abs(move).max() < _TOLERANCE:
                break
        value, scores, information, slopes = self._evaluate(
            theta, spread, *self._place_nodes(theta, spread)
        )
        information, slope = _definite(information), scores.sum(0)
        move = np.linalg.pinv(information, rcond=1e-9, hermitian=True) @ slope
        top = value + 0.5 * float(slope @ move)
        pair_scores = self._by_pair(slopes)
        return Expansion(spread, theta, top, theta + move, information, scores, pair_scores)

    def log_likelihood(self, theta: Float[np.ndarray, " parameters"], spread: float) -> float:
        """Log-likelihood of all choices, in nats."""
        return self._evaluate(theta, spread, *self._place_nodes(theta, spread))[0]

    def _place_nodes(
        self, theta: np.ndarray, spread: float
    ) -> tuple[Float[np.ndarray, "nodes annotators"], Float[np.ndarray, "nodes annotators"]]:
        """Each person's nodes of z, around their posterior, and the log mass of each."""
        shift, people = self.design @ theta, len(self.first)
        mean, sd = np.zeros(people), np.ones(people)
        for _ in range(3):
            z = mean + sd * np.linspace(-_REACH, _REACH, _NUM_SEARCHED)[:, None]
            log_mass = self._summed(self._at(shift, spread, z)) - z**2 / 2
            mass = np.exp(log_mass - logsumexp(log_mass, axis=0))
            mean = (mass * z).sum(0)
            resolved = 2 * _REACH / (_NUM_SEARCHED - 1) * sd
            sd = np.maximum(np.sqrt((mass * (z - mean) ** 2).sum(0)), 0.7 * resolved)
        z = mean + sd * _NODES[:, None]
        width = (_NODES[1] - _NODES[0]) * sd
        return z, -(z**2) / 2 - 0.5 * math.log(2 * math.pi) + np.log(width)

    def _evaluate(
        self, theta: np.ndarray, spread: float, z: np.ndarray, log_mass: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Log-likelihood, its slope for each person, and minus its second derivatives (Louis).

        And its slope over the log strength of each choice.
        """
        shift = self.design @ theta
        at = self._at(shift, spread, z)
        above, below = (self._at(shift + h, spread, z) for h in (_STEP, -_STEP))
        slope, bend = (above - below) / (2 * _STEP), (above - 2 * at + below) / _STEP**2
        log_joint = self._summed(at) + log_mass
        log_evidence = logsumexp(log_joint, axis=0)
        mass = np.exp(log_joint - log_evidence)
        weight = mass[:, self.person]
        information = -self.design.T @ ((weight * bend).sum(0)[:, None] * self.design)
        scores = np.zeros((len(self.first), self.design.shape[1]))
        for share, each in zip(mass, slope, strict=True):
            score = np.add.reduceat(each[:, None] * self.design, self.first)
            information -= score.T @ (share[:, None] * score)
            scores += share[:, None] * score
        information += scores.T @ scores
        return float(log_evidence.sum()), scores, information, (weight * slope).sum(0)

    def _by_pair(self, slopes: Float[np.ndarray, " choices"]) -> np.ndarray | None:
        """Slopes of the log-likelihood, summed over the choices on each pair."""
        if self.pair is None or len(np.unique(self.pair)) == len(self.pair):
            return None
        found = np.zeros((self.pair.max() + 1, self.design.shape[1]))
        np.add.at(found, self.pair, slopes[:, None] * self.design)
        return found

    def _at(self, shift: np.ndarray, spread: float, z: np.ndarray) -> np.ndarray:
        """Log-probability of each choice at each node of its person, `(nodes, choices)`."""
        log_strength = shift + spread * z[:, self.person]
        return self.log_prob(torch.from_numpy(np.exp(log_strength))).numpy()

    def _summed(self, value: np.ndarray) -> np.ndarray:
        return np.add.reduceat(value, self.first, axis=1)


def _log_prob(choices: Choices, order: np.ndarray) -> Callable[[Tensor], Tensor]:
    """The log-probability of choices in another order, by their strengths."""
    if choices.outcomes is None:
        margin = torch.from_numpy(choices.margin[order])
        return lambda strength: logsigmoid(strength * margin)
    terms = choices.outcomes.terms(choices.margin)
    place = np.argsort(order)
    return lambda strength: terms.log_prob(strength[:, place])[:, order]


def _definite(information: np.ndarray) -> np.ndarray:
    """The nearest matrix without negative eigenvalues."""
    value, vector = np.linalg.eigh((information + information.T) / 2)
    return (vector * np.maximum(value, 0.0)) @ vector.T
