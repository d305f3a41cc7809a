"""The scale of the margins: the one strength that fits everybody, and what margins say at all."""

import numpy as np
import torch
from scipy.special import ndtr

from mixdpo_pyro.inference.choices import Choices, typical_size
from mixdpo_pyro.inference.likelihood.pairs import compress

__all__ = ["anchor_strength", "margin_evidence"]

# The scale of the margins


def anchor_strength(choices: Choices) -> float:
    r"""One strength for everybody, in units of the margins: where the mean's prior is put.

    The maximum over m of :math:`\sum_i \log\sigma(m\Delta_i)` with a weak prior,
    :math:`\log m \sim \mathrm{Normal}(-\log \text{median}|\Delta|, 2)`, so that it exists where
    every choice agrees with its margin. Rows of a choice set count as pairs, which is consistent,
    the odds of two responses being those of a pair; ties are dropped.
    """
    typical = typical_size(choices.margin)
    compressed = compress(_as_pairs(choices), "fixed")
    grid = np.linspace(-10, 10, 801)
    with torch.no_grad():
        mean = torch.from_numpy(np.exp(grid) / typical)
        value = compressed(mean, torch.ones_like(mean)).numpy() - 0.5 * (grid / 2) ** 2
    return float(np.exp(grid[np.argmax(value)]) / typical)


def margin_evidence(choices: Choices) -> float:
    r"""P-value against "the margins say nothing about the choices", one-sided.

    Wilcoxon's signed-rank test for clusters (Rosner, Glynn and Lee, Biometrics 59, 2003):

    .. math:: z = \frac{\sum_g T_g}{\sqrt{\sum_g T_g^2}}, \qquad
              T_g = \sum_{i \in g} \operatorname{sign}(\Delta_i) \, R_i

    with :math:`R_i` the rank of :math:`|\Delta_i|`, ties sharing their mean rank. If the margins
    say nothing, a choice agrees with its margin as often as not, whatever its size, and z
    is standard normal where people are many. The groups are people, whose choices need not be
    independent, or single pairs without ids. A rank bounds what one margin can do: the largest of
    n weighs no more than any other large one, of either sign and whatever its size. Each row of a
    set of K has the weight 1 / (K - 1), a tie has 0, and a grade its share of the highest grade.
    """
    from scipy.stats import rankdata  # training does without its 22 MB

    margin, outcomes = choices.margin, choices.outcomes
    score = np.sign(margin) * rankdata(np.abs(margin))
    if outcomes is not None:
        score *= outcomes.sign / (outcomes.sizes - 1)[outcomes.choice]
    group = choices.choice if choices.annotator is None else choices.annotator
    total = np.bincount(group, score)
    spread = np.sqrt((total**2).sum()) or 1.0  # 0 where every total is
    return float(ndtr(-total.sum() / spread))


def _as_pairs(choices: Choices) -> np.ndarray:
    """Margins of the better over the worse response, row by row."""
    if choices.outcomes is None:
        return choices.margin
    sign = np.sign(choices.outcomes.sign)
    return (sign * choices.margin)[sign != 0]
