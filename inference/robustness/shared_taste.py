"""Do people who agreed with each other agree again? Taste without attributes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, logit, ndtr

from mixdpo_pyro.inference.choices import Choices
from mixdpo_pyro.inference.likelihood.margin_errors import log_error_mass
from mixdpo_pyro.inference.methods.log_joint import Maximum
from mixdpo_pyro.inference.robustness.errors.shared import given_others, shared_rows

__all__ = ["SharedTaste", "compare_agreement"]

_FEWEST = 200
"""Times that two people judged the same two pairs, below which nothing is said."""

_LEVEL = 2e-4
"""P-value below which camps are seen: where margins have large errors, and strengths are not
lognormal, z is around two without them in simulations."""

_FEWEST_NATS = 5.0
"""Nats by which predictions have to be better for it."""

_NEIGHBOURS = 30
"""Others on a pair that each of its judges is compared with."""


@dataclass(frozen=True)
class SharedTaste:
    """Whether people fall into camps, beyond one ordering of the responses and their strengths.

    Attributes:
        p_value: P-value of one ordering for all, whatever the strengths.
        z: Its normal score; positive where people who agreed before agree again.
        gain: Nats by which left-out choices are predicted better by those of people who agreed
            with their maker on other pairs.
        num_choices: Choices that were predicted.
        level: P-value below which camps are seen.
    """

    p_value: float
    z: float
    gain: float
    num_choices: int
    level: float = _LEVEL

    @property
    def are_seen(self) -> bool:
        """Whether camps predict better, by more than a misfit of strengths and errors may do."""
        return self.p_value < self.level and self.gain > _FEWEST_NATS


def compare_agreement(choices: Choices, best: Maximum, seed: int = 0) -> SharedTaste | None:
    r"""Predict everybody's choice on a pair from those of people who agreed with them elsewhere.

    With :math:`y_{gp}` whether person g chose what the margin of pair p favours, one ordering says

    .. math:: q_{gp} = P(y_{gp} = 1 \mid y_{g,-p}, y_{-g,p}), \qquad
              m_{hp} = P(y_{hp} = 1 \mid y_{h,-p})

    strengths and the error of the pair integrated out. Whatever else h chose, under one ordering
    :math:`\epsilon_{gp} = y_{gp} - q_{gp}` has mean zero given :math:`x_{hp} = y_{hp} - m_{hp}`.
    Where tastes differ it does not, and has the sign that it had on other pairs:

    .. math:: T = \sum_p t_p, \qquad t_p = \sum_{g < h} b_{ghp} \sum_{p' \ne p} b_{ghp'}, \qquad
              b_{ghp} = \epsilon_{gp} x_{hp} + \epsilon_{hp} x_{gp} - \bar b

    so that a choice is never predicted from itself. Under one ordering T has mean zero and
    variance :math:`2 \sum_p t_p^2`, each product of two pairs standing in two terms.

    Args:
        choices: Pairs with annotator ids and the errors of their margins that are known.
        best: The best mean and cv of the strength under these errors.
        seed: Seed of the pairs that are looked at, where there are many.

    Returns:
        The test, or None where too few people judged the same pairs.
    """
    rows = shared_rows(choices, seed)
    if not len(rows):
        return None
    assert choices.annotator is not None and choices.pair is not None
    person, pair = choices.annotator[rows], np.unique(choices.pair[rows], return_inverse=True)[1]
    first, second = _dyads(person, pair, np.random.default_rng((seed, 59)))
    who = np.sort(np.stack([person[first], person[second]]), axis=0)
    dyad = np.unique(who, axis=1, return_inverse=True)[1].ravel()
    times = np.bincount(dyad)
    if (times * (times - 1)).sum() < _FEWEST:
        return None
    side = np.sign(choices.margin[rows])
    chosen, error, other = _predictions(choices, best, rows)
    error, other = side * error, side * other
    product = error[first] * other[second] + error[second] * other[first]
    product = product - product.mean()
    elsewhere = np.bincount(dyad, product)[dyad] - product
    term = np.bincount(pair[first], elsewhere * product)
    z = float(term.sum() / np.sqrt(2 * np.square(term).sum()))
    lean = np.bincount(first, elsewhere * other[second], len(rows))
    lean += np.bincount(second, elsewhere * other[first], len(rows))
    return SharedTaste(float(ndtr(-z)), z, _gain(logit(chosen), side * lean, pair), len(rows))


def _dyads(
    person: Int[np.ndarray, " rows"], pair: Int[np.ndarray, " rows"], rng: np.random.Generator
) -> tuple[Int[np.ndarray, " dyads"], Int[np.ndarray, " dyads"]]:
    """Rows of two people on one pair; of many people each with the next few in random order."""
    order = np.lexsort((rng.random(len(pair)), pair))
    first, second = [], []
    for step in range(1, min(_NEIGHBOURS, int(np.bincount(pair).max()) - 1) + 1):
        one, two = order[:-step], order[step:]
        kept = (pair[one] == pair[two]) & (person[one] != person[two])
        first.append(one[kept])
        second.append(two[kept])
    return np.concatenate(first), np.concatenate(second)


@torch.no_grad()
def _predictions(
    choices: Choices, best: Maximum, rows: Int[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, " rows"], ...]:
    """Probabilities of choices given all else, and what is missing from them to one.

    The third are what is missing from those given the other choices of the same person alone.
    """
    assert choices.pair is not None
    each, log_mass = given_others(choices, best, rows).log(), log_error_mass()[:, None]
    pair = torch.from_numpy(np.unique(choices.pair[rows], return_inverse=True)[1])
    total = torch.zeros(len(each), int(pair.max()) + 1, dtype=torch.float64)
    total = total.index_add_(1, pair, each)[:, pair] + log_mass
    chosen = (total.logsumexp(0) - (total - each).logsumexp(0)).exp().clamp(1e-9, 1 - 1e-9)
    alone = (each + log_mass).logsumexp(0).exp()
    return chosen.numpy(), 1 - chosen.numpy(), 1 - alone.numpy()


def _gain(
    log_odds: Float[np.ndarray, " rows"],
    lean: Float[np.ndarray, " rows"],
    pair: Int[np.ndarray, " rows"],
) -> float:
    """Nats gained by what people who agreed elsewhere chose, its weight from the other pairs."""
    lean = lean / max(float(np.sqrt(np.mean(np.square(lean)))), 1e-12)
    gain = 0.0
    for half in (0, 1):
        here, there = pair % 2 == half, pair % 2 != half

        def loss(weight: float, rows: np.ndarray = there) -> float:
            return -float(log_expit(log_odds[rows] + weight * lean[rows]).sum())

        weight = minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded").x
        gain += loss(0.0, here) - loss(weight, here)
    return gain
