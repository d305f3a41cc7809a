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
    every choice agrees with its margin.
    """
    typical = typical_size(choices.margin)
    compressed = compress(choices.margin, "fixed")
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
    n weighs no more than any other large one, of either sign and whatever its size.
    """
    from scipy.stats import rankdata  # training does without its 22 MB

    margin = choices.margin
    score = np.sign(margin) * rankdata(np.abs(margin))
    total = score if choices.annotator is None else np.bincount(choices.annotator, score)
    spread = np.sqrt((total**2).sum()) or 1.0  # 0 where every total is
    return float(ndtr(-total.sum() / spread))
