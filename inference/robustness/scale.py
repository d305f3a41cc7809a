"""The scale of the margins: the one strength that fits everybody, and what margins say at all."""

import numpy as np
import torch
from scipy.special import ndtr

from mixdpo_pyro.inference.choices import Choices
from mixdpo_pyro.inference.likelihood.pairs import compress

__all__ = ["anchor_strength", "margin_evidence"]

# The scale of the margins


def anchor_strength(choices: Choices) -> float:
    r"""One strength for everybody, in units of the margins: where the mean's prior is put.

    The maximum over m of :math:`\sum_i \log\sigma(m\Delta_i)` with a weak prior,
    :math:`\log m \sim \mathrm{Normal}(-\log \text{median}|\Delta|, 2)`, so that it exists where
    every choice agrees with its margin.
    """
    size = np.abs(choices.margin)
    typical = float(np.median(size) or size.mean())
    compressed = compress(choices.margin, "fixed")
    grid = np.linspace(-10, 10, 801)
    with torch.no_grad():
        mean = torch.from_numpy(np.exp(grid) / typical)
        value = compressed(mean, torch.ones_like(mean)).numpy() - 0.5 * (grid / 2) ** 2
    return float(np.exp(grid[np.argmax(value)]) / typical)


def margin_evidence(choices: Choices) -> float:
    r"""P-value against "the margins say nothing about the choices", one-sided.

    The score test of m = 0 in :math:`\sigma(m\Delta)`:
    :math:`z = \sum_i \Delta_i / \sqrt{\sum_i \Delta_i^2}`; with ids the variance is summed over
    people, whose choices need not be independent.
    """
    margin = choices.margin
    total = margin if choices.annotator is None else np.bincount(choices.annotator, margin)
    return float(ndtr(-total.sum() / np.sqrt((total**2).sum())))
