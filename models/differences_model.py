"""The Pyro model of everything that people may differ in: strength, taste, care, margins' errors.

Annotators and pairs are crossed: every person has latents, every pair has one, and a choice knows
both.
"""

import math
from collections.abc import Collection
from typing import Literal, get_args

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.nn import PyroModule
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixdpo_pyro.models.families import cv_prior, mean_prior

__all__ = ["DifferencesModel", "Part"]

Part = Literal["strength", "taste", "care", "error"]

_ERROR_SCALE = 0.7
"""Prior scale of the errors' standard deviation over that of the margins."""

_LAPSE_PRIOR = (1.0, 9.0)
"""Beta prior of the mean lapse rate: a tenth."""

_LAPSE_SIZE = (math.log(2.0), 1.0)
"""LogNormal prior of a + b of the rates' Beta distribution: from two classes of people to one."""


class DifferencesModel(PyroModule):
    r"""Choices of people who differ in strength, taste and care, by margins that have errors.

    .. math:: P(y_{gp} = 1) = (1 - \epsilon_g)\,
              \sigma\big(\beta_g (\Delta_p + \omega e_p) + \theta_g^\top a_p\big)
              + \epsilon_g / 2

    Sites, standard normal where a scale multiplies them (non-centred):

    - `mean`: :math:`\log m \sim \mathrm{Normal}(\log\beta_0, 1/2)`;
    - strength: `cv` (half normal) and, per annotator, `strength_z`;
      :math:`\log\beta_g = \log m - s^2/2 + s z_g` with :math:`s^2 = \log(1 + cv^2)`;
    - taste: `taste_mean` (normal) and `taste_sd` (half normal) of each attribute and, per
      annotator, `taste_z`; :math:`\theta_g = \mu + T z_g`;
    - care: `lapse_mean` (Beta(1, 9)), `lapse_size` (LogNormal(log 2, 1)) and, per annotator,
      `lapse_rate`; :math:`\epsilon_g \sim \mathrm{Beta}(\mu n, (1 - \mu) n)`;
    - error: `error_ratio` (half normal, 0.7) and, per pair, `error_z`; :math:`\omega` is that
      ratio times the root mean square of the margins;
    - `choice`, per choice: 1 where the first response was chosen.

    A part that is switched off has no sites, and is 0 (of the strength: cv is). `strength` and
    `taste` are deterministic sites besides. One level of plates, so that
    vectorised particles and automatic guides work.

    Args:
        parts: What people and margins may differ in.
        beta: Prior median of the mean strength.

    Raises:
        ValueError: If a part is unknown, or beta is not positive.

    Example:
        >>> model = DifferencesModel({"strength"})
        >>> model(torch.ones(4), torch.tensor([0, 0, 1, 1]), choice=None).shape  # simulated
        torch.Size([4])
    """

    def __init__(
        self, parts: Collection[Part] = ("strength", "taste", "care", "error"), beta: float = 1.0
    ) -> None:
        """Check and keep the choices; the model has no parameters."""
        super().__init__()
        for part in parts:
            if part not in get_args(Part):
                known = ", ".join(get_args(Part))
                raise ValueError(f"Expected parts among {known}, got {part!r}")
        if not beta > 0:
            raise ValueError(f"Expected 0 < beta, got {beta}")
        self.parts = frozenset(parts)
        self.beta = beta

    def forward(
        self,
        margin: Float[Tensor, " choices"],
        annotator: Int[Tensor, " choices"],
        pair: Int[Tensor, " choices"] | None = None,
        attribute: Float[Tensor, "choices attributes"] | None = None,
        choice: Float[Tensor, " choices"] | None = None,
    ) -> Float[Tensor, "..."]:
        """Score or simulate choices.

        Args:
            margin: Margins in nats of the first over the second response of the pair, the same
                orientation for all who judge it.
            annotator: Index of the annotator of each choice.
            pair: Index of the pair of each choice; default, every choice has its own.
            attribute: Attributes, first minus second response, in units of their spread.
            choice: 1 where the first response was chosen, 0 where the second; None simulates.

        Returns:
            The choices.

        Raises:
            ValueError: If tastes are a part and there are no attributes.
        """
        pair = torch.arange(len(margin)) if pair is None else pair
        mean = pyro.sample("mean", mean_prior(margin.new_tensor(self.beta)))
        people = pyro.plate("annotators", int(annotator.max()) + 1, dim=-1)
        strength = mean
        if "strength" in self.parts:
            strength = self._sample_strength(mean, margin.new_ones(()), people)[..., annotator]
        logit = strength * (margin + self._sample_error(margin, pair))
        if "taste" in self.parts:
            if attribute is None:
                raise ValueError("Expected attributes, which tastes are of")
            taste = self._sample_taste(attribute, people)
            logit = logit + (taste[..., annotator, :] * attribute).sum(-1)
        rate = None
        if "care" in self.parts:
            rate = self._sample_lapses(margin, people)[..., annotator]
        with pyro.plate("choices", len(margin), dim=-1):
            return pyro.sample("choice", dist.Bernoulli(logits=_lapsing(logit, rate)), obs=choice)

    def _sample_strength(self, mean: Tensor, one: Tensor, people: pyro.plate) -> Tensor:
        cv = pyro.sample("cv", cv_prior(one))
        spread = cv.square().log1p().sqrt()
        with people:
            z = pyro.sample("strength_z", dist.Normal(0 * one, one))
            log_strength = mean.log() - spread.square() / 2 + spread * z
            return pyro.deterministic("strength", log_strength.exp())

    def _sample_error(self, margin: Tensor, pair: Tensor) -> Tensor:
        if "error" not in self.parts:
            return torch.zeros_like(margin)
        ratio = pyro.sample("error_ratio", dist.HalfNormal(margin.new_tensor(_ERROR_SCALE)))
        with pyro.plate("pairs", int(pair.max()) + 1, dim=-1):
            z = pyro.sample("error_z", dist.Normal(margin.new_zeros(()), 1.0))
        size = margin.square().mean().sqrt()
        return (ratio * size * z)[..., pair]

    def _sample_taste(self, attribute: Tensor, people: pyro.plate) -> Tensor:
        zero = attribute.new_zeros(attribute.shape[-1])
        mean = pyro.sample("taste_mean", dist.Normal(zero, 1.0).to_event(1))
        sd = pyro.sample("taste_sd", dist.HalfNormal(zero + 1.0).to_event(1))
        with people:
            z = pyro.sample("taste_z", dist.Normal(zero, 1.0).to_event(1))
            return pyro.deterministic("taste", mean + sd * z, event_dim=1)

    def _sample_lapses(self, margin: Tensor, people: pyro.plate) -> Tensor:
        first, second = (margin.new_tensor(x) for x in _LAPSE_PRIOR)
        mean = pyro.sample("lapse_mean", dist.Beta(first, second))
        centre, scale = (margin.new_tensor(x) for x in _LAPSE_SIZE)
        size = pyro.sample("lapse_size", dist.LogNormal(centre, scale))
        with people:
            return pyro.sample("lapse_rate", dist.Beta(mean * size, (1 - mean) * size))


def _lapsing(logit: Tensor, rate: Tensor | None) -> Tensor:
    """The logit of a choice that is made at random at a rate, without loss of digits."""
    if rate is None:
        return logit
    tiny = torch.finfo(rate.dtype).tiny
    kept, half = torch.log1p(-rate), (rate / 2).clamp(min=tiny).log()
    first, second = (torch.logaddexp(kept + logsigmoid(x), half) for x in (logit, -logit))
    return first - second
