r"""The likelihood of choices that are not plain pairs as a loss: sets, rankings, ties and grades.

What an observation model of :mod:`mixdpo_pyro.models.observation` says of the margins, with the
strength integrated out. Its thresholds are learned with the strength.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixdpo_pyro.inference import StrengthObjective
from mixdpo_pyro.inference.methods.guides import StrengthGuide
from mixdpo_pyro.inference.outcomes import name_parameters
from mixdpo_pyro.models import PreferenceModel
from mixdpo_pyro.models.devices import on_cpu
from mixdpo_pyro.models.observation import (
    Davidson,
    Graded,
    Lapse,
    Observation,
    Ranking,
    RaoKupper,
    observed_log_prob,
)

__all__ = ["PAIRS", "Done", "ObservedObjective", "build_observation", "signs"]


class Done(NamedTuple):
    """What was done with the pairs of a batch.

    Attributes:
        choice: Number of each row's choice where rows are those of sets: the chosen response over
            another one.
        code: Sets: rank of the rejected response, 2, 3, ..., or 0 where it has none. Judgements:
            the outcome, from 0 (strongest for the second response) on. None: the first was chosen.
    """

    choice: Int[Tensor, " rows"] | None = None
    code: Int[Tensor, " rows"] | None = None

    def num_choices(self, rows: int) -> int:
        """Number of choices in a batch of so many rows."""
        return rows if self.choice is None else len(self.choice.unique())


PAIRS = Done()
"""Every row is a choice from two responses, and the first one was chosen."""


def signs(code: Int[Tensor, " rows"], num_outcomes: int) -> Float[Tensor, " rows"]:
    """1 where the first response was judged the better one, -1 the second, 0 neither."""
    return (2 * code - (num_outcomes - 1)).sign().float()


def build_observation(kind: str, num_outcomes: int) -> Observation | None:
    """The observation model of a kind of choice, its thresholds at the medians of their priors.

    Args:
        kind: `pairs`, `sets`, `rao-kupper`, `davidson` or `grades`.
        num_outcomes: Number of outcomes of a judgement; an odd number has ties among them.

    Returns:
        The model; None for pairs.
    """
    if kind == "grades":
        has_ties = bool(num_outcomes % 2)
        steps = torch.arange(1, (num_outcomes - 1) // 2 + 1, dtype=torch.float64)
        return Graded(steps, has_ties)
    known = {"sets": Ranking(), "rao-kupper": RaoKupper(1.0), "davidson": Davidson(1.0)}
    return known.get(kind)


class ObservedObjective(StrengthObjective):
    r"""Negative evidence lower bound per choice, or per annotator with ids.

    .. math:: -\frac1C \sum_c \log \mathbb{E}_{\beta \mid m, cv}\, P_\tau(y_c \mid \beta)
              + \frac1N \Big( \mathrm{KL}(q \,\|\, p) + \tfrac12 |u - u_0|^2 \Big)

    over the C choices of a batch, with the thresholds :math:`\tau` a point u on the real line
    under a Normal prior around :math:`u_0`, as in
    :class:`~mixdpo_pyro.models.observed_choices.ObservationModel`. Batches in which every set has
    two responses take the path of pairs: their loss is that of :class:`StrengthObjective` exactly.

    Args:
        model: Preference model; its label noise :math:`\epsilon` is a lapse of rate
            :math:`2 \epsilon`.
        guide: Its guide.
        observation: What annotators do, thresholds at the medians of their priors.
    """

    prior: Tensor

    def __init__(
        self, model: PreferenceModel, guide: StrengthGuide, observation: Observation
    ) -> None:
        """Make the thresholds from those of the observation model."""
        super().__init__(model, guide)
        self._observation = observation
        prior = observation.unconstrained().float()
        self.register_buffer("prior", prior, persistent=False)
        self.thresholds = nn.Parameter(prior.clone()) if len(prior) else None

    @property
    def observation(self) -> Observation:
        """The observation model at the thresholds as they stand, on the CPU."""
        if self.thresholds is None:
            return self._observation
        return self._observation.constrained(self.thresholds.cpu())

    def named_thresholds(self) -> dict[str, float]:
        """Thresholds by name: `threshold`, `nu`, or `cut_point_1`, ..."""
        if self.thresholds is None:
            return {}
        vector = self.thresholds.detach().cpu().double().numpy()[None]
        ((name, value),) = name_parameters(self._observation, vector).items()
        if value.ndim == 1:
            return {name: float(value[0])}
        return {f"cut_point_{k}": float(v) for k, v in enumerate(value[0], 1)}

    def terms(
        self,
        margin: Float[Tensor, " rows"],
        annotator: Int[Tensor, " rows"] | None = None,
        num_total: int | None = None,
        weight: Float[Tensor, " rows"] | None = None,
        done: Done = PAIRS,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Mean negative log-likelihood, and divergence from the priors per choice, in nats.

        Args:
            margin: Margins of the first over the second response, in nats.
            annotator: Annotator ids per row; choices of one annotator then share their strength.
            num_total: Choices (or annotators, with ids) in the whole dataset; default, this batch.
            weight: Weights of the pairs; only where there are no sets and no outcomes.
            done: What was done.
        """
        if self._are_pairs(done):
            return super().terms(margin, annotator, num_total, weight)
        latents, log_guide = self.guide.rsample(self.num_particles)
        values = {**self._constants(), **latents}
        log_prob = self._log_prob(margin, values, done, annotator)
        num_total = log_prob.shape[-1] if num_total is None else num_total
        divergence = (log_guide - self.model.log_prior(latents)).mean()
        if self.thresholds is not None:
            divergence = divergence + (self.thresholds - self.prior).square().sum() / 2
        return -log_prob.mean(), divergence / num_total

    def log_prob(
        self, margin: Float[Tensor, " rows"], done: Done = PAIRS
    ) -> Float[Tensor, " choices"]:
        """Log-probability in nats of each choice at the location, every choice by itself."""
        if self._are_pairs(done):
            return super().log_prob(margin)
        with torch.no_grad():
            return self._log_prob(margin, self.location(), done, None)

    def _are_pairs(self, done: Done) -> bool:
        """Whether every choice of a batch is one from two responses, without ties or grades."""
        if self._observation.takes_sets:
            return done.choice is None or len(done.choice.unique()) == len(done.choice)
        return done.code is None

    def _log_prob(
        self,
        margin: Tensor,
        values: dict[str, Tensor],
        done: Done,
        annotator: Tensor | None,
    ) -> Tensor:
        observation, model = self.observation, self.model
        if model.flip_probability:
            observation = Lapse(observation, 2 * model.flip_probability)
        outcome, choice_set = done.code, None
        if done.choice is not None:
            margin, outcome, choice_set, annotator = _responses(margin, done, annotator)
        return on_cpu(observed_log_prob)(
            observation,
            margin,
            values["mean"],
            values["cv"] if model.family != "fixed" else 1.0,
            model.family,
            model.estimator,
            outcome=outcome,
            choice_set=choice_set,
            annotator=annotator,
        )


def _responses(
    margin: Tensor, done: Done, annotator: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Utilities, ranks, sets and annotators of all responses; that of the chosen one is zero."""
    assert done.choice is not None
    sets, place = done.choice.unique(return_inverse=True)
    code = torch.zeros_like(done.choice) if done.code is None else done.code
    if annotator is not None:
        own = torch.empty_like(sets).scatter(0, place, annotator)
        annotator = torch.cat([annotator, own])
    return (
        torch.cat([-margin, margin.new_zeros(len(sets))]),
        torch.cat([code, torch.ones_like(sets)]),
        torch.cat([done.choice, sets]),
        annotator,
    )
