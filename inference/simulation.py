"""Simulated choices with known strengths."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from scipy.special import expit

from mixdpo_pyro.inference.predictive import sample_strengths
from mixdpo_pyro.models import Family

if TYPE_CHECKING:
    pass

__all__ = ["Design", "simulate_choices"]


@dataclass(frozen=True)
class Design:
    """The shape of simulated data.

    Attributes:
        num_annotators: Number of annotators.
        choices_each: Choices of each; 1 makes independent pairs.
        spread: Standard deviation of beta * margin between the two responses of a pair.
        beta: Median of the mean's prior.
    """

    num_annotators: int = 20
    choices_each: int = 10
    spread: float = 3.0
    beta: float = 0.1


def simulate_choices(
    mean: float, cv: float, family: Family, design: Design, rng: np.random.Generator
) -> tuple[
    Float[np.ndarray, " pairs"], Int[np.ndarray, " pairs"], Float[np.ndarray, " annotators"]
]:
    """Margins of the chosen over the rejected response, annotators, and their true strengths."""
    annotators = np.full(design.num_annotators, 1.0)
    strength = sample_strengths(family, mean * annotators, max(cv, 1e-6) * annotators, rng)
    annotator = np.repeat(np.arange(design.num_annotators), design.choices_each)
    difference = rng.normal(0, design.spread / design.beta, len(annotator))
    prefers_first = rng.random(len(annotator)) < expit(strength[annotator] * difference)
    return np.where(prefers_first, difference, -difference), annotator, strength
