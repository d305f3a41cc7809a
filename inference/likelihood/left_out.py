"""The likelihood of single choices given the other choices of the same annotator."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixdpo_pyro.inference.choices import Choices, select_choices
from mixdpo_pyro.inference.likelihood.panels import log_likelihood_at, tabulate
from mixdpo_pyro.models import Family

__all__ = ["log_prob_given_others"]


def log_prob_given_others(
    choices: Choices,
    choice: Int[np.ndarray, " choices"],
    mean: Float[Tensor, " points"],
    cv: Float[Tensor, " points"],
    family: Family,
    flip_probability: float = 0.0,
) -> Float[Tensor, "choices points"]:
    r"""Log-probability of some choices, each given all others of its annotator, in nats.

    .. math:: \log p(y_i \mid y_{g \setminus i}, m, cv) =
              \log p(y_g \mid m, cv) - \log p(y_{g \setminus i} \mid m, cv)

    This is what a leave-one-out of single choices weighs draws of (m, cv) by: the posterior
    without choice i is proportional to the whole one over it.

    Args:
        choices: All choices, with annotator ids.
        choice: Numbers of those that are asked for, in ascending order.
        mean: Mean strengths.
        cv: Their coefficients of variation.
        family: Family of the strength.
        flip_probability: Probability that a label was flipped.

    Raises:
        ValueError: If there are no ids.
    """
    if choices.annotator is None:
        raise ValueError("Expected choices with annotator ids")
    if family == "fixed":
        return log_likelihood_at(mean, _one_by_one(choices, choice), flip_probability)
    owner = torch.from_numpy(choices.by_choice(choices.annotator)[choice])
    table = tabulate(choices, family, flip_probability)
    value = torch.empty(len(choice), len(mean), dtype=torch.float64)
    for grid, member in zip(table.grids, table.members, strict=True):
        rows = torch.isin(owner, member).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        alone = _one_by_one(choices, choice[rows.numpy()])
        own = log_likelihood_at(grid.strength, alone, flip_probability)
        whole = grid.log_likelihood[torch.searchsorted(member, owner[rows])]
        with_it, without_it = (
            replace(grid, log_likelihood=table_of).per_annotator(mean, cv)
            for table_of in (whole, whole - own)
        )
        value[rows] = with_it - without_it
    return value


def _one_by_one(choices: Choices, choice: Int[np.ndarray, " choices"]) -> Choices:
    """Some choices, each as if it were another annotator's."""
    alone = select_choices(choices, choice)
    return replace(alone, annotator=alone.choice, labels=tuple(map(str, range(len(choice)))))
