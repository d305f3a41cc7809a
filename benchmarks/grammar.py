"""A log-linear policy in the demo's grammar, whose rewards, KL and win rates are sums.

The policy has a weight for each of sixteen options of four slots; the reference is uniform.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import expit, xlogy

__all__ = [
    "KL", "OPTIONS", "SLOTS", "WORLDS", "World", "at_equal_divergence", "distribution",
    "divergence", "draw_world", "fit_weights", "win_rate",
]  # fmt: skip

SLOTS, OPTIONS, KL = 4, 16, 2.0
WORTH = np.repeat([1.5, 0.5, -0.5, -1.5], OPTIONS // 4)
PEOPLE, CHOICES, HELD_OUT = 150, 20, 40
WORLDS = ("none", "strong", "imbalanced", "noise", "opposed")


@dataclass(frozen=True)
class World:
    """Choices, and what is true of the people who made them.

    Attributes:
        difference: One-hot options, chosen minus rejected, of each choice.
        annotator: Who chose.
        strength: True strength of each person.
        taste: Sign of each slot's worth, a row per person.
        group: Group of each person: quarters by strength, or what they want.
        held_out: The same differences of choices that no policy is trained on, with as many of
            each person.
    """

    difference: torch.Tensor
    annotator: np.ndarray
    strength: np.ndarray
    taste: np.ndarray
    group: np.ndarray
    held_out: torch.Tensor

    @property
    def held_out_annotator(self) -> np.ndarray:
        """Who made the held-out choices."""
        return np.repeat(np.arange(PEOPLE), HELD_OUT)


def draw_world(name: str, seed: int) -> World:
    """Draw choices.

    Args:
        name: People are alike (`none`), differ a lot (`strong`), those who hardly care answer most
            (`imbalanced`), a fifth of the choices is turned round (`noise`), or 30% want the
            opposite in two slots of four (`opposed`).
        seed: Seed of all streams.
    """
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(7)]
    cv = 1.5 if name in ("strong", "imbalanced") else 0.0
    scale = np.sqrt(np.log1p(cv**2))
    strength = np.exp(scale * streams[0].normal(size=PEOPLE) - scale**2 / 2)
    taste = np.ones((PEOPLE, SLOTS))
    group = np.argsort(np.argsort(strength)) * 4 // PEOPLE
    if name == "opposed":
        group = (streams[4].permutation(PEOPLE) < 0.3 * PEOPLE).astype(int)
        taste[group == 1, :2] = -1
    number = np.full(PEOPLE, CHOICES)
    if name == "imbalanced":
        number = np.where(strength < np.median(strength), 35, 5)
    annotator = np.repeat(np.arange(PEOPLE), number)
    flip = 0.2 if name == "noise" else 0.0
    difference = _choose(strength, taste, annotator, flip, streams[1:3])
    held_out = _choose(strength, taste, np.repeat(np.arange(PEOPLE), HELD_OUT), 0.0, streams[5:7])
    order = streams[3].permutation(len(annotator))
    return World(difference[order], annotator[order], strength, taste, group, held_out)


def _choose(
    strength: np.ndarray,
    taste: np.ndarray,
    annotator: np.ndarray,
    flip: float,
    streams: list[np.random.Generator],
) -> torch.Tensor:
    options = streams[0].integers(OPTIONS, size=(len(annotator), 2, SLOTS))
    reward = (WORTH[options] * taste[annotator][:, None]).sum(2)
    utility = strength[annotator] * (reward[:, 0] - reward[:, 1]) / 2
    is_first = streams[1].random(len(annotator)) < flip + (1 - 2 * flip) * expit(utility)
    one_hot = np.eye(OPTIONS)[options].reshape(len(annotator), 2, -1)
    sign = np.where(is_first, 1, -1)[:, None]
    return torch.from_numpy((one_hot[:, 0] - one_hot[:, 1]) * sign)


def distribution(weights: np.ndarray) -> np.ndarray:
    """Probabilities of the options of each slot."""
    return torch.from_numpy(weights).reshape(SLOTS, OPTIONS).softmax(1).numpy()


def divergence(weights: np.ndarray) -> float:
    """KL to the uniform reference, in nats."""
    p = distribution(weights)
    return float(xlogy(p, p * OPTIONS).sum())


def at_equal_divergence(weights: np.ndarray) -> np.ndarray:
    """The multiple of these weights whose policy has the KL at which policies are compared.

    It interpolates between the logits of reference and policy.
    """
    factor = brentq(lambda f: divergence(f * weights) - KL, 1e-3, 1e3)
    return factor * weights


def win_rate(weights: np.ndarray, other: np.ndarray, taste: np.ndarray | None = None) -> float:
    """In percent, ties as one half, judged by a person with this sign of each slot's worth."""
    taste = np.ones(SLOTS) if taste is None else taste
    rewards = [_reward_distribution(distribution(each), taste) for each in (weights, other)]
    joint = np.outer(*rewards)
    return 100 * float(np.triu(joint, 1).sum() + np.trace(joint) / 2)


def _reward_distribution(policy: np.ndarray, taste: np.ndarray) -> np.ndarray:
    """Probability of each total reward, falling from 6 to -6."""
    total = np.ones(1)
    for slot, sign in zip(policy, taste, strict=True):
        levels = slot.reshape(4, -1).sum(1)
        total = np.convolve(total, levels if sign > 0 else levels[::-1])
    return total


def fit_weights(loss: Any, *extra: torch.Tensor) -> np.ndarray:
    """Weights that minimise a smooth loss, by L-BFGS."""
    weights = torch.zeros(SLOTS * OPTIONS, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, *extra], max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = loss(weights) + 1e-4 * weights.square().sum()
        value.backward()
        return value

    optimiser.step(closure)
    return weights.detach().numpy()
