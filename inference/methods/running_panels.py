r"""Whole panels while the margins move: what all choices of an annotator say, at every step.

A batch holds few choices of an annotator. Were their strength inferred from these alone, most of
what is known of it would be thrown away. Here each annotator has a table of log-likelihoods over
the strength, which a batch brings up to date: an exact local posterior in place of a guide.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mixdpo_pyro.inference.likelihood.observed import LARGEST_INFORMATION
from mixdpo_pyro.inference.likelihood.panels import PanelGrid, strength_grid
from mixdpo_pyro.inference.methods.guides import StrengthGuide
from mixdpo_pyro.inference.methods.laplace import explore
from mixdpo_pyro.inference.methods.log_joint import LogJoint
from mixdpo_pyro.inference.methods.objectives import StrengthObjective
from mixdpo_pyro.models import PreferenceModel
from mixdpo_pyro.models.quadrature import choice_log_prob

__all__ = ["PanelObjective", "RunningPanels"]

_FINEST, _COARSEST = 0.02, 0.1
"""Grid steps of the log strength, for many and for few choices."""

_BELOW, _ABOVE = 2.0, 7.0
"""E-folds between the grid's origin and the anchor of the mean, and from there to its end."""

_FIRST_Z = -4.0
"""The grid begins at exp(-60) of the anchor: a gamma of cv 2 has mass 1e-7 below."""

_RECENT = 512
"""First margins whose slope is the scale of those that come now."""

_SLOPES = (1e-3, 1e3)
"""In units of the mean's anchor; margins that say nothing get the smallest."""

_LARGEST_SCALE = 3.0
"""Of the log mean of strengths whose margins have slope one; the grid reaches e-folds farther."""

_NUM_PARTICLES = 4
"""Draws from the guide in a step, which cost little beside the tables."""

_NEWTON_STEPS = 12
"""Enough from one end of the slopes to the other; one or two from batch to batch."""

_SETTLING_STEPS = 100
"""With a rate of 0.05 that falls to zero, log cv can move by 2.5."""

_MOST_ANNOTATORS = 1024
"""Annotators who teach mean and cv in one step; of more, a random part."""


class RunningPanels:
    r"""Every annotator's log-likelihood over the strength, as far as their choices were seen.

    .. math:: \ell_g(\beta) = \sum_{i \in g} \log \sigma(\beta \Delta_i)

    twice: of each pair's latest margin, and of its first one, to which the policy had not been
    fitted yet. A pair that was not seen says nothing. First margins are those of a policy that
    grows: where the mean is fixed each is taken in units of its time, multiplied by the slope of
    the choices on the first margins that came last. A policy that knows little errs much, and
    errors attenuate cv: of all first margins only the later half count.

    Args:
        annotator: Number of each pair's annotator, counted from 0.
        model: Preference model, of a positive family.

    Attributes:
        margin: Latest margin of each pair in nats; NaN where it was not seen.
        latest: Log-likelihoods of the latest margins, shape `(annotators, grid)`.
        first: The same of the later half of the first ones; strengths in units of the mean's
            anchor where the mean is fixed.
        first_margin: First margin of each pair, in those units; NaN where it was not seen.
        order: Pairs in the order in which they were first seen.
        num_first: How many pairs were seen, and how many of these count no more.
        slope: Slope of the last first margins, in units of the mean's anchor.
    """

    def __init__(self, annotator: Int[np.ndarray, " pairs"], model: PreferenceModel) -> None:
        self.annotator = torch.from_numpy(annotator.astype(np.int64))
        self._flip_probability = model.flip_probability
        most = int(np.bincount(annotator).max())
        step = 1 / math.sqrt(LARGEST_INFORMATION * most)
        step = min(max(step, _FINEST), _COARSEST)
        self._z = torch.arange(_FIRST_Z, _BELOW + _ABOVE, step, dtype=torch.float64)
        self._family, self._origin = model.family, math.log(model.beta) - _BELOW
        self._beta = strength_grid(self._z, self._origin, self._family)
        self.margin = torch.full((len(annotator),), math.nan)
        self.latest = torch.zeros(int(annotator.max()) + 1, len(self._z), dtype=torch.float64)
        self.first = torch.zeros_like(self.latest)
        self.first_margin = torch.full((len(annotator),), math.nan, dtype=torch.float64)
        self.order = torch.zeros(len(annotator), dtype=torch.int64)
        self.num_first = torch.zeros(2, dtype=torch.int64)
        self.has_own_scale = model.latents == ("cv",)
        self._anchor = model.beta
        self.recent = torch.zeros(_RECENT, dtype=torch.float64)
        self.slope = torch.ones((), dtype=torch.float64)

    @torch.no_grad()
    def update(self, pair: Int[Tensor, " batch"], margin: Float[Tensor, " batch"]) -> None:
        """Take in the margins of a batch; a pair that stands in it twice counts once."""
        unique, place = np.unique(pair.cpu().numpy(), return_index=True)
        pair, margin = torch.from_numpy(unique), margin.detach().float().cpu()[place]
        before, who = self.margin[pair], self.annotator[pair]
        is_new = before.isnan()
        change = self._log_prob(margin)
        if is_new.any():
            self._take_first(pair[is_new], margin[is_new])
        change[~is_new] -= self._log_prob(before[~is_new])
        self.latest.index_add_(0, who, change)
        self.margin[pair] = margin

    def grid(self, log_likelihood: Float[Tensor, "annotators grid"]) -> PanelGrid:
        """Rows of `latest` or `first` as a table that gives marginal likelihoods."""
        return PanelGrid(self._family, self._z, self._origin, log_likelihood)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        names = (
            "margin", "latest", "first", "first_margin", "order", "num_first", "recent", "slope"
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what a checkpoint kept.

        Raises:
            ValueError: If it is of other pairs or annotators.
        """
        for name, value in self.state_dict().items():
            found = state.get(name)
            if found is None or found.shape != value.shape:
                shape = None if found is None else tuple(found.shape)
                raise ValueError(f"'{name}': expected shape {tuple(value.shape)}, got {shape}")
            value.copy_(found)

    def _take_first(self, pair: Int[Tensor, " new"], margin: Float[Tensor, " new"]) -> None:
        """Take in pairs that were not seen before; what is older than half of them counts no more.

        Margins of one batch are of one policy: none of the newest batch is ever too old.
        """
        margin = margin.double()
        if self.has_own_scale:
            self.recent = torch.cat([self.recent, margin])[-_RECENT:]
            self.slope = _fit_slope(self.recent * self._anchor, self.slope)
            margin = margin * self.slope
        before, too_old = self.num_first.tolist()
        seen = before + len(pair)
        self.order[before:seen], self.first_margin[pair] = pair, margin
        self.num_first.copy_(torch.tensor([seen, min(seen // 2, before)]))
        self._add_first(pair, 1)
        self._add_first(self.order[too_old : self.num_first[1]], -1)

    def _add_first(self, pair: Int[Tensor, " pairs"], sign: int) -> None:
        log_prob = self._log_prob(self.first_margin[pair])
        self.first.index_add_(0, self.annotator[pair], sign * log_prob)

    def _log_prob(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, "batch grid"]:
        return choice_log_prob(margin.double()[:, None] * self._beta, self._flip_probability)


def _fit_slope(utility: Float[Tensor, " choices"], start: Tensor) -> Float[Tensor, ""]:
    """The positive slope at which choices agree best with utilities, by Newton's method."""
    slope = start.clamp(*_SLOPES)
    for _ in range(_NEWTON_STEPS):
        wrong = torch.sigmoid(-slope * utility)
        gradient = (utility * wrong).sum()
        curvature = (utility.square() * wrong * (1 - wrong)).sum()
        step = gradient / curvature.clamp(min=1e-12)
        slope = (slope + step.clamp(-slope / 2, slope)).clamp(*_SLOPES)
    return slope


class PanelObjective(StrengthObjective):
    r"""Negative evidence lower bound per choice, every annotator's whole panel behind each batch.

    .. math:: -\frac1B \sum_i \log \mathbb{E}_{\beta \mid y_{g,-i}}\, \sigma(\beta \Delta_i)

    is the misfit of a batch: each choice given all other choices of its annotator, as far as they
    were seen. Its gradient in the margins is that of the likelihood of whole panels, in whatever
    order pairs come. Mean and cv learn from the panels of the later half of first margins,

    .. math:: -\frac1N \sum_g \log p(y_g \mid s m, cv),

    since fitted margins agree with the choices that they were fitted to, whoever chose. These are
    margins of an unfinished policy, and their scale is not that of the mean's anchor: a mean that
    is fixed is multiplied by a free scale s there. Without it cv makes up for the wrong mean.

    Args:
        model: Preference model of a positive family.
        guide: Its guide.
        annotator: Number of each pair's annotator, counted from 0.
    """

    def __init__(
        self, model: PreferenceModel, guide: StrengthGuide, annotator: Int[np.ndarray, " pairs"]
    ) -> None:
        """Begin with panels in which nothing was seen."""
        super().__init__(model, guide, num_particles=_NUM_PARTICLES)
        self.panels = RunningPanels(annotator, model)
        self.log_scale = nn.Parameter(torch.zeros(())) if self.panels.has_own_scale else None

    def panel_terms(
        self, margin: Float[Tensor, " batch"], pair: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Misfit of a batch and divergence from the prior, in nats per choice, as `terms` gives.

        Call `panels.update` with the margins first. The value of the misfit is that of the batch;
        its gradient in mean and cv is that of all panels of first margins.

        Args:
            margin: Margins in nats, chosen minus rejected.
            pair: Number of each pair.
        """
        of_strength, divergence = self._strength_terms()
        misfit = self._misfit(margin, pair.cpu()) + (of_strength - of_strength.detach())
        return misfit.to(margin), divergence

    def settle(self, learning_rate: float, seed: int = 0) -> None:
        """Let mean and cv catch up with the panels as they stand.

        In training they follow panels that grow while their rate falls to zero: what came last has
        hardly been learned from. Draws are those of the seed, whatever torch's generator holds.
        """
        optimiser = torch.optim.Adam(self.parameters(), betas=(0.9, 0.98))
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            for step in range(_SETTLING_STEPS):
                optimiser.param_groups[0]["lr"] = learning_rate * (1 - step / _SETTLING_STEPS)
                optimiser.zero_grad()
                sum(self._strength_terms()).backward()  # type: ignore[union-attr]
                optimiser.step()
        optimiser.zero_grad()

    def _strength_terms(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Misfit of the panels of first margins and divergence from the prior, per choice."""
        latents, log_guide = self.guide.rsample(self.num_particles)
        divergence = (log_guide - self.model.log_prior(latents)).mean()
        of_strength = self._of_strength({**self._constants(), **latents})
        return of_strength, divergence / len(self.panels.annotator)

    @torch.no_grad()
    def exact_cv(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the exact posterior of cv, which the guide approximates.

        On a lattice, given the panels of first margins as they stand; a free scale has the prior
        that a mean would have, which thousands of choices drown. None where cv is not latent or
        the mean is free, so that the guide is a point.
        """
        if "cv" not in self.model.latents or self.model.mean_anchor == "free":
            return None
        log_joint = LogJoint(self.panels.grid(self.panels.first), "prior", self.model.beta)
        moments = explore(log_joint).moments()
        return moments.cv, moments.cv_scale

    def _misfit(self, margin: Tensor, pair: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        panels, place = self.panels, self.location()
        mean, cv = (place[name].cpu().double().reshape(1) for name in ("mean", "cv"))
        grid = panels.grid(panels.latest[panels.annotator[pair]])
        beta, log_weight = grid.posterior_nodes(mean, cv)
        own = choice_log_prob(margin.cpu().double()[:, None] * beta, self.model.flip_probability)
        others = (log_weight - own.detach()).log_softmax(1)
        return -(others + own).logsumexp(1).mean()

    def _of_strength(self, values: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Negative log-likelihood of the panels of first margins, per choice."""
        panels = self.panels
        first, num_annotators = panels.first, len(panels.first)
        if num_annotators > _MOST_ANNOTATORS:
            first = first[torch.randperm(num_annotators)[:_MOST_ANNOTATORS]]
        mean, cv = (values[name].cpu().double().reshape(-1) for name in ("mean", "cv"))
        if self.log_scale is not None:
            bound = _LARGEST_SCALE
            mean = mean * (bound * (self.log_scale.cpu().double() / bound).tanh()).exp()
        log_prob = panels.grid(first)(mean, cv).mean() * (num_annotators / len(first))
        return -log_prob / len(panels.annotator)
