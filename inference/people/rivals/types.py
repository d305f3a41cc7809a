r"""Types of people: EM-DPO on margins and frozen embeddings.

.. math:: P = \sum_k \gamma_{gk}\, \sigma(x^\top\theta_k), \qquad
          \gamma_{gk} \propto \eta_k \prod_{i \in g} \sigma(x_i^\top\theta_k)

Reference: EM-DPO (Chidambaram, Seetharaman and Syrgkanis, arXiv:2405.15065), whose rewards are
language models. Types are numbered by their share, the largest first.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_expit, logsumexp

from mixdpo_pyro.inference.people.rivals.optimising import fit_logistic, ridges
from mixdpo_pyro.inference.people.rivals.records import FittedRival, KnownChoices, Setting

__all__ = ["agreement_directions", "cluster_memberships", "deal_folds", "fit_types"]

_STARTS, _ROUNDS = 2, 30

_STEPS = 1
"""Newton steps of each type in a round: memberships move more than the types' weights do."""

_STILL = 1e-3
"""Mean change of memberships below which EM stops."""

_SURE = 0.9
"""Membership in its cluster that a person starts with."""

_CLUSTER_STARTS, _CLUSTER_ROUNDS = 10, 50

_SMALLEST = 1e-4
"""Share that no type falls below, so that its logarithm is finite."""


def fit_types(choices: KnownChoices, setting: Setting, seed: int = 0) -> FittedRival:
    """Fit types by EM, from clusters of people whose choices agree.

    Each half of a person's choices is judged by types fitted to the other halves: judged by types
    that were fitted to them, choices keep every membership where it started.

    Args:
        choices: Choices.
        setting: `types`, their number, `ridge` on weights of embeddings, and `starts`.
        seed: Seed of halves and starts.
    """
    num_types = int(setting["types"])
    features = choices.features
    ridge = ridges(features.shape[1], setting.get("ridge", 0.0))
    rng = np.random.default_rng((seed, 61))
    half = deal_folds(choices.annotator, 2, rng)
    runs = [
        _run_em(choices, cluster_memberships(choices, ridge, num_types, rng, k), ridge, half)
        for k in range(int(setting.get("starts", _STARTS)))
    ]
    best = max(runs, key=lambda run: run.value)
    order = np.argsort(-best.share, kind="stable")
    member = best.member[:, order]
    theta = np.stack(
        [fit_logistic(features, ridge, member[choices.annotator, k]) for k in range(num_types)]
    )

    def log_prob(held: KnownChoices) -> Float[np.ndarray, " choices"]:
        with np.errstate(divide="ignore"):
            log_member = np.log(member[held.annotator])
        return logsumexp(log_member + log_expit(held.features @ theta.T), axis=1)

    people = {"type": 1 + member.argmax(1)}
    people |= {f"type_{k + 1}": member[:, k] for k in range(num_types)}
    return FittedRival(theta.size + num_types - 1, log_prob, people)


@dataclass(frozen=True)
class _Run:
    """Memberships at the end of EM, shares of types, and the log-likelihood of halves not seen."""

    member: Float[np.ndarray, "annotators types"]
    share: Float[np.ndarray, " types"]
    value: float


def _run_em(
    choices: KnownChoices,
    member: Float[np.ndarray, "annotators types"],
    ridge: Float[np.ndarray, " features"],
    half: Int[np.ndarray, " choices"],
) -> _Run:
    num_types, features = member.shape[1], choices.features
    theta = np.zeros((2, num_types, features.shape[1]))
    present = choices.count > 0
    share, value = member[present].mean(0), -np.inf
    for _ in range(_ROUNDS):
        by_type = np.empty((len(choices), num_types))
        for h in range(2):
            rows = half == h
            for k in range(num_types):
                weight = member[choices.annotator[rows], k]
                theta[h, k] = fit_logistic(features[rows], ridge, weight, theta[h, k], _STEPS)
            by_type[~rows] = log_expit(features[~rows] @ theta[h].T)
        joint = choices.sum_by_annotator(by_type) + np.log(share)
        evidence = logsumexp(joint, axis=1, keepdims=True)
        last, member = member, np.exp(joint - evidence)
        value = float(evidence[present].sum())
        share = np.maximum(member[present].mean(0), _SMALLEST)
        share /= share.sum()
        if np.abs(member - last)[present].mean() < _STILL:
            break
    return _Run(member, share, value)


def deal_folds(
    annotator: Int[np.ndarray, " choices"], num_folds: int, rng: np.random.Generator
) -> Int[np.ndarray, " choices"]:
    """A fold of each choice: those of a person are dealt out in random order."""
    order = np.lexsort((rng.random(len(annotator)), annotator))
    person = annotator[order]
    first = np.flatnonzero(np.diff(person, prepend=-1))
    place = np.arange(len(person)) - np.repeat(first, np.diff(first, append=len(person)))
    start = rng.integers(num_folds, size=annotator.max(initial=0) + 1)
    fold = np.empty(len(annotator), dtype=int)
    fold[order] = (place + start[person]) % num_folds
    return fold


def agreement_directions(
    choices: KnownChoices, ridge: Float[np.ndarray, " features"]
) -> tuple[Float[np.ndarray, "features features"], Float[np.ndarray, "annotators features"]]:
    r"""Directions in which choices of one person agree with each other beyond one reward.

    With the slopes :math:`s_i = (1 - P_i) x_i` at the best one reward, the axes are those of
    :math:`\sum_g \sum_{i \ne j \in g} s_i s_j^\top`, whose expectation is zero where people are
    alike; the largest comes first. Also returned are the slopes of people, divided by the root of
    their number.
    """
    features = choices.features
    theta = fit_logistic(features, ridge)
    slope = features * np.exp(log_expit(-features @ theta))[:, None]
    person = choices.sum_by_annotator(slope)
    _, axes = np.linalg.eigh(person.T @ person - slope.T @ slope)
    return axes[:, ::-1], person / np.sqrt(np.maximum(choices.count, 1))[:, None]


def cluster_memberships(
    choices: KnownChoices,
    ridge: Float[np.ndarray, " features"],
    num_types: int,
    rng: np.random.Generator,
    start: int = 0,
) -> Float[np.ndarray, "annotators types"]:
    """Memberships to start from: clusters of people along the axes of agreement.

    Args:
        choices: Choices.
        ridge: Ridge of the one reward.
        num_types: Number of types.
        rng: Source of clusters.
        start: The first uses one axis fewer than types, each further one an axis more.
    """
    if num_types == 1:
        return np.ones((choices.num_annotators, 1))
    axes, person = agreement_directions(choices, ridge)
    place = person @ axes[:, : num_types - 1 + start]
    label = _cluster(place[choices.count > 0], num_types, rng)
    rest = (1 - _SURE) / (num_types - 1)
    member = np.full((choices.num_annotators, num_types), 1 / num_types)
    member[choices.count > 0] = rest + (_SURE - rest) * np.eye(num_types)[label]
    return member


def _cluster(
    place: Float[np.ndarray, "people axes"], number: int, rng: np.random.Generator
) -> Int[np.ndarray, " people"]:
    """Clusters by k-means, the best of several random starts."""
    best, least = np.zeros(len(place), dtype=int), np.inf
    for _ in range(_CLUSTER_STARTS):
        centre = place[rng.choice(len(place), number, replace=len(place) < number)]
        for _ in range(_CLUSTER_ROUNDS):
            distance = ((place[:, None] - centre) ** 2).sum(2)
            label, last = distance.argmin(1), centre.copy()
            for k in np.unique(label):
                centre[k] = place[label == k].mean(0)
            if np.array_equal(centre, last):
                break
        total = distance.min(1).sum()
        if total < least:
            best, least = label, total
    return best
