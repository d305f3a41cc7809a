"""The likelihood of choices that are not plain pairs, at given strengths."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixdpo_pyro.inference.choices import Choices, with_observation
from mixdpo_pyro.inference.likelihood.interpolation import CHUNK, MEAN_RANGE
from mixdpo_pyro.inference.outcomes import Outcomes
from mixdpo_pyro.models import Family
from mixdpo_pyro.models.observation import Lapse, Observation, Terms, observed_log_prob

__all__ = [
    "LARGEST_INFORMATION",
    "OneStrength",
    "information_bound",
    "marginal_log_prob",
    "observed_log_likelihood",
    "with_lapses",
]

LARGEST_INFORMATION = 0.44
r"""Largest :math:`x^2 \sigma(x) \sigma(-x)`: information of a pair about the log strength."""

_UTILITIES = torch.logspace(-2, 2.5, 400, dtype=torch.float64)
"""Utilities among which the information of a judgement is largest."""

_STEP = 1e-3
"""Step of differences in the log strength."""


def with_lapses(choices: Choices, flip_probability: float) -> Choices:
    """The same choices, a label being flipped, or an outcome careless, with some probability.

    A pair that is careless at a rate of twice the flip probability is flipped with it.
    """
    if choices.outcomes is None or flip_probability == 0:
        return choices
    return with_observation(choices, Lapse(choices.outcomes.observation, 2 * flip_probability))


def observed_log_likelihood(
    beta: Float[Tensor, " strengths"], choices: Choices, unit: np.ndarray
) -> Float[Tensor, "units strengths"]:
    """Log-likelihood of every unit's choices at each strength, which may be negative.

    Args:
        beta: Strengths.
        choices: Choices with outcomes.
        unit: Unit of each row: an annotator, or the choice itself.
    """
    assert choices.outcomes is not None
    unit_of_choice = torch.from_numpy(choices.by_choice(unit))
    value = torch.zeros(len(beta), int(unit.max()) + 1, dtype=torch.float64)
    for sign in (1, -1):
        same_sign = (sign * beta > 0).nonzero()[:, 0]
        if len(same_sign) == 0:
            continue
        terms = choices.outcomes.terms(sign * choices.margin)
        size = max(1, CHUNK // max(1, int(terms.sizes().sum())))
        for chunk in same_sign.split(size):
            log_prob = terms.log_prob(sign * beta[chunk, None])
            value[chunk] = value[chunk].index_add(1, unit_of_choice, log_prob)
    return value.T.contiguous()


def marginal_log_prob(
    outcomes: Outcomes,
    margin: Float[Tensor, " rows"],
    mean: Tensor,
    cv: Tensor,
    family: Family,
    parameters: Float[Tensor, " parameters"],
    annotator: Int[Tensor, " rows"] | None = None,
) -> Float[Tensor, " units"]:
    """Log-probability of each choice, or of all choices of each annotator, by quadrature.

    Differentiable twice in margins, mean, cv and parameters: for modules that make the margins.

    Args:
        outcomes: What was done.
        margin: Margins.
        mean: Mean strength.
        cv: Its coefficient of variation.
        family: Its family, of positive strengths.
        parameters: Parameters of the observation model on the real line.
        annotator: Annotator of each row, or None.
    """
    observation, code = outcomes.observation, torch.from_numpy(outcomes.code)
    observation = observation.constrained(parameters) if len(parameters) else observation
    if not outcomes.are_sets:
        return observed_log_prob(
            observation, margin, mean, cv, family, outcome=code, annotator=annotator
        )
    value, rank, choice = outcomes.utilities(margin)
    if annotator is not None:
        first = np.unique(outcomes.choice, return_index=True)[1]
        annotator = annotator[torch.from_numpy(first)][choice]
    return observed_log_prob(
        observation, value, mean, cv, family, outcome=rank, choice_set=choice, annotator=annotator
    )


def information_bound(choices: Choices) -> Float[np.ndarray, " rows"]:
    """Most that each row can say about the log strength, in units of what a pair can."""
    outcomes = choices.outcomes
    assert outcomes is not None
    if outcomes.are_sets:
        gaps = outcomes.terms(choices.margin).sizes().numpy() - 1
        return (gaps / np.bincount(outcomes.choice))[outcomes.choice]
    return np.full(choices.num_pairs, _judgement_information(outcomes.observation))


def _judgement_information(observation: Observation) -> float:
    """Largest information of a judgement about the log strength over that of a pair."""
    probability = observation.probabilities(_UTILITIES)
    above, below = (observation.probabilities(_UTILITIES * np.exp(h)) for h in (_STEP, -_STEP))
    slope = (above - below) / (2 * _STEP)
    information = torch.where(probability > 1e-12, slope.square() / probability, 0.0).sum(-1)
    return max(1.0, float(information.max()) / LARGEST_INFORMATION)


@dataclass(frozen=True)
class OneStrength:
    """The likelihood of choices with one strength for everybody.

    Attributes:
        terms: The choices.
    """

    terms: Terms

    @classmethod
    def of(cls, choices: Choices) -> "OneStrength":
        """The likelihood of choices with outcomes."""
        assert choices.outcomes is not None
        return cls(choices.outcomes.terms(choices.margin))

    def __call__(
        self, mean: Float[Tensor, "*#points"], cv: Float[Tensor, "*#points"]
    ) -> Float[Tensor, "*points"]:
        """Log-likelihood of all choices at each mean, in nats; cv is not used."""
        mean = torch.broadcast_tensors(mean, cv)[0].clamp(*MEAN_RANGE)
        size = max(1, CHUNK // max(1, int(self.terms.sizes().sum())))
        parts = [
            self.terms.log_prob(part[:, None]).sum(-1) for part in mean.reshape(-1).split(size)
        ]
        return torch.cat(parts).view(mean.shape)
