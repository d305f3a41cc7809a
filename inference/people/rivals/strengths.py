"""One strength or reward, one of each person, and distributions of strengths."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import expit, logsumexp
from torch.nn.functional import softplus

from mixdpo_pyro.inference.choices import Choices
from mixdpo_pyro.inference.likelihood.marginal import build_likelihood
from mixdpo_pyro.inference.likelihood.panels import log_likelihood_at
from mixdpo_pyro.inference.methods.log_joint import LogJoint, Maximum, maximise
from mixdpo_pyro.inference.people.rivals.optimising import (
    MARGIN_RIDGE,
    fit_logistic,
    minimise,
    ridges,
)
from mixdpo_pyro.inference.people.rivals.records import FittedRival, KnownChoices, Setting
from mixdpo_pyro.inference.people.rivals.types import deal_folds
from mixdpo_pyro.models import Family
from mixdpo_pyro.models.families import strength_log_density

__all__ = [
    "fit_mixed_rewards", "fit_mixed_strengths", "fit_one_weight", "fit_person_weights",
]  # fmt: skip

_REWARD_FOLDS = 5

_NODES = np.linspace(-9.0, 9.0, 361)
"""Log strengths around the mean; a strength known to 0.05 still spans two steps."""


def fit_one_weight(choices: KnownChoices, setting: Setting, seed: int = 0) -> FittedRival:
    r"""One strength, or with embeddings one reward: :math:`P = \sigma(x^\top\theta)`.

    The features x are the margin and, where given, the difference of embeddings.
    """
    features = choices.features
    theta = fit_logistic(features, ridges(features.shape[1], setting.get("ridge", 0.0)))
    return FittedRival.by_logit(len(theta), lambda held: held.features @ theta)


def fit_person_weights(choices: KnownChoices, setting: Setting, seed: int = 0) -> FittedRival:
    r"""Bradley-Terry with person effects: :math:`P = \sigma(x^\top(\theta + u_g))`.

    The ridge `person` on the deviations u is the precision of their normal distribution.
    """
    features, person = torch.from_numpy(choices.features), torch.from_numpy(choices.annotator)
    size = features.shape[1]
    ridge = torch.from_numpy(ridges(size, setting.get("ridge", 0.0)))

    def loss(at: dict[str, torch.Tensor]) -> torch.Tensor:
        logit = features @ at["theta"] + (features * at["u"][person]).sum(1)
        penalty = (ridge * at["theta"] ** 2).sum() + setting["person"] * (at["u"] ** 2).sum()
        return softplus(-logit).sum() + penalty / 2

    start = {
        "theta": fit_logistic(choices.features, ridge.numpy()),
        "u": np.zeros((choices.num_annotators, size)),
    }
    found, _ = minimise(loss, start)
    theta, deviation = found["theta"], found["u"]

    def logit(held: KnownChoices) -> Float[np.ndarray, " choices"]:
        return np.einsum("nf,nf->n", held.features, theta + deviation[held.annotator])

    number = size + deviation.size
    return FittedRival.by_logit(number, logit, {"strength": theta[0] + deviation[:, 0]})


def fit_mixed_strengths(choices: KnownChoices, family: Family) -> FittedRival:
    r"""Strengths drawn from a distribution, one for each person, as `mixdpo diagnose` has them.

    .. math:: P = \int \sigma(\beta \Delta)\, p(\beta \mid \text{choices of the person},
              \hat m, \widehat{cv})\, d\beta

    with mean and cv where the marginal likelihood is largest.
    """
    start = float(fit_logistic(choices.margin[:, None], np.array([MARGIN_RIDGE]))[0])
    known = _as_choices(choices)
    likelihood = build_likelihood(known, family)
    best, _ = maximise(LogJoint(likelihood, "prior", max(start, 1e-3)))
    beta, mass = _strength_masses(known, choices.num_annotators, best, family)

    def log_prob(held: KnownChoices) -> Float[np.ndarray, " choices"]:
        found = np.empty(len(held))
        for rows in np.array_split(np.arange(len(held)), max(1, len(held) // 5_000)):
            chance = expit(held.margin[rows, None] * beta)
            found[rows] = (mass[held.annotator[rows]] * chance).sum(1)
        return np.log(np.maximum(found, 1e-300))

    return FittedRival(2, log_prob, {"strength": mass @ beta})


def fit_mixed_rewards(choices: KnownChoices, setting: Setting, seed: int = 0) -> FittedRival:
    """One reward of embeddings, and lognormal strengths with which people follow it.

    The distribution of strengths is fitted to rewards of choices that the reward had not seen, in
    folds: rewards of choices that were fitted look as if everybody were as consistent.
    """
    features = choices.features
    ridge = ridges(features.shape[1], setting["ridge"])
    fold = deal_folds(choices.annotator, _REWARD_FOLDS, np.random.default_rng((seed, 73)))
    reward = np.empty(len(choices))
    for k in range(_REWARD_FOLDS):
        reward[fold == k] = features[fold == k] @ fit_logistic(features[fold != k], ridge)
    mixed = fit_mixed_strengths(replace(choices, margin=reward), "lognormal")
    theta = fit_logistic(features, ridge)

    def log_prob(held: KnownChoices) -> Float[np.ndarray, " choices"]:
        return mixed.log_prob(replace(held, margin=held.features @ theta))

    return FittedRival(len(theta) + 2, log_prob, mixed.people)


def _as_choices(choices: KnownChoices) -> Choices:
    """Choices of those who made any, for the likelihood of panels."""
    present, number = np.unique(choices.annotator, return_inverse=True)
    return Choices(choices.margin, number, tuple(map(str, present)))


def _strength_masses(
    known: Choices, num_annotators: int, best: Maximum, family: Family
) -> tuple[Float[np.ndarray, " nodes"], Float[np.ndarray, "annotators nodes"]]:
    """Strengths, and how likely each is for each person given their choices."""
    if best.cv < 1e-3:
        return np.array([best.mean]), np.ones((num_annotators, 1))
    # Nodes are dense where the distribution is, so that a narrow one has nodes too.
    beta = torch.from_numpy(best.mean * np.exp(_NODES * min(1.0, 3 * best.cv)))
    mean, cv = (torch.tensor(v, dtype=torch.float64) for v in (best.mean, best.cv))
    prior = (strength_log_density(beta, mean, cv, family) + beta.log()).numpy()
    log_mass = np.tile(prior, (num_annotators, 1))
    present = np.array([int(label) for label in known.labels])
    log_mass[present] += log_likelihood_at(beta, known).numpy()
    mass = np.exp(log_mass - logsumexp(log_mass, axis=1, keepdims=True))
    return beta.numpy(), mass
