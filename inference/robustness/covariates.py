"""Covariates beside the margin, and errors of the margins."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from mixdpo_pyro.inference.choices import Choices

__all__ = ["CovariateFit", "fit_covariate", "margin_reliability"]

# Covariates and errors of the margins


@dataclass(frozen=True)
class CovariateFit:
    r"""A covariate beside the margin, such as the difference in length.

    Attributes:
        coefficient: Gamma in :math:`\sigma(m\Delta + \gamma x)`, per unit of the covariate.
        strength: The m fitted with it.
        z: Coefficient over its standard error.
        adjusted: Margins with the covariate's effect folded in, :math:`\Delta + (\gamma/m) x`.
    """

    coefficient: float
    strength: float
    z: float
    adjusted: Float[np.ndarray, " pairs"]


def fit_covariate(choices: Choices, covariate: Float[np.ndarray, " pairs"]) -> CovariateFit:
    r"""Logistic regression of the choice on margin and covariate, both chosen minus rejected.

    Newton's method on :math:`\sum_i \log\sigma(m\Delta_i + \gamma x_i)`, with a penalty of
    1e-3 / 2 times the squared coefficients of standardised columns, so that it converges where
    choices are separated. Rows of choice sets count as pairs, which is consistent, and z allows
    for their dependence; rows are oriented by their outcome, and ties are dropped.

    Args:
        choices: The data.
        covariate: Difference of the covariate, chosen minus rejected, finite.

    Raises:
        ValueError: If the covariate has another shape, is not finite, is constant zero, or if the
            margins lose all predictive value beside it.
    """
    x = np.asarray(covariate, dtype=np.float64)
    if x.shape != choices.margin.shape or not np.isfinite(x).all() or not x.any():
        raise ValueError("Expected one finite covariate per pair, not all of them zero")
    scale = np.array([np.sqrt((v**2).mean()) for v in (choices.margin, x)])
    sign = np.ones(len(x)) if choices.outcomes is None else np.sign(choices.outcomes.sign)
    columns = sign * np.stack([choices.margin / scale[0], x / scale[1]])
    columns, choice = columns[:, sign != 0], choices.choice[sign != 0]
    coefficient = np.zeros(2)
    for _ in range(100):
        logit = coefficient @ columns
        gradient = columns @ expit(-logit) - 1e-3 * coefficient
        information = (columns * (expit(logit) * expit(-logit))) @ columns.T + 1e-3 * np.eye(2)
        move = np.linalg.solve(information, gradient)
        coefficient = coefficient + move * min(1.0, 2.0 / np.abs(move).max())
        if np.abs(move).max() < 1e-9:
            break
    covariance = np.linalg.inv(information)
    if choices.outcomes is not None and choices.outcomes.are_sets:
        scores = np.stack([np.bincount(choice, c * expit(-logit)) for c in columns])
        covariance = covariance @ (scores @ scores.T) @ covariance
    se = np.sqrt(covariance[1, 1])
    strength, gamma = coefficient / scale
    if strength <= 0:
        raise ValueError("Expected margins that predict choices beside the covariate; they do not")
    adjusted = choices.margin + gamma / strength * x
    return CovariateFit(float(gamma), float(strength), float(coefficient[1] / se), adjusted)


def margin_reliability(
    first: Float[np.ndarray, " pairs"], second: Float[np.ndarray, " pairs"]
) -> float:
    r"""Share of the variance of the first margins that is not noise.

    Two policies' margins for the same pairs are the truth plus independent errors; then
    :math:`\sum \Delta_1\Delta_2 / \sqrt{\sum\Delta_1^2 \sum\Delta_2^2}` estimates that share if
    both are equally good. It is about zero, not about the mean, since the orientation of a pair
    is arbitrary.
    """
    size = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / size) if size else 0.0
