"""Objectives that learn the strength, alone or jointly with whatever produced the margins."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixdpo_pyro.inference.methods.guides import StrengthGuide
from mixdpo_pyro.models import PreferenceModel
from mixdpo_pyro.models.devices import on_cpu

__all__ = ["Objective", "StrengthObjective"]


class Objective(torch.nn.Module, ABC):
    """A loss on margins that knows where it puts the strength.

    The trainer and :func:`run_svi` take any of these: a subclass says what the loss is, and, where
    the strength is learned, where it stands.
    """

    @abstractmethod
    def forward(
        self,
        margin: Float[Tensor, " batch"],
        annotator: Int[Tensor, " batch"] | None = None,
        num_total: int | None = None,
    ) -> Float[Tensor, ""]:
        """Loss of a batch of margins in nats per pair, or per annotator with ids."""

    def terms(
        self,
        margin: Float[Tensor, " batch"],
        annotator: Int[Tensor, " batch"] | None = None,
        num_total: int | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """What the loss is the sum of: misfit of the batch, and divergence from the prior."""
        loss = self(margin, annotator, num_total)
        return loss, torch.zeros_like(loss)

    @abstractmethod
    def location(self) -> dict[str, Tensor]:
        """Where `mean` and `cv` stand, shape `()` each."""

    @abstractmethod
    def log_prob(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Log-probability in nats of each choice at the location, every pair by itself."""

    @torch.no_grad()
    def draw(self, num_samples: int, seed: int = 0) -> dict[str, Float[Tensor, " samples"]]:
        """Draws of `mean` and `cv`; the location, repeated, where there is no distribution."""
        return {name: value.expand(num_samples) for name, value in self.location().items()}


class StrengthObjective(Objective):
    r"""Negative evidence lower bound per pair, strengths integrated out.

    .. math:: \frac{1}{N} \Big( \mathbb{E}_q \big[ -\tfrac{N}{B} \sum_i
              \log \mathbb{E}_{\beta \mid m, cv}\, \sigma(\beta \Delta_i) \big]
              + \mathrm{KL}(q \,\|\, p) \Big)

    in nats, so that it compares with the loss of DPO. It is differentiable in the margins, hence
    in the policy, and in the guide. The loss is that of `pyro.infer.Trace_ELBO` for this model and
    guide, without its traces, which take longer than the likelihood of a training batch. That
    likelihood is computed on the CPU: margins of a batch are few numbers, which take less time
    there than to start as many operations on a GPU, and not every GPU has float64.
    `parameters()` holds all parameters of model and guide; the global parameter store of Pyro
    stays empty, so that objectives coexist in one process.

    Args:
        model: Preference model.
        guide: Its guide, see :func:`build_strength_guide`.
        num_particles: Draws from the guide per evaluation.
    """

    def __init__(
        self, model: PreferenceModel, guide: StrengthGuide, num_particles: int = 1
    ) -> None:
        """Keep model and guide; no parameters are made."""
        super().__init__()
        self.model = model
        self.guide = guide
        self.num_particles = num_particles

    def forward(
        self,
        margin: Float[Tensor, " batch"],
        annotator: Int[Tensor, " batch"] | None = None,
        num_total: int | None = None,
    ) -> Float[Tensor, ""]:
        """Loss of a batch of margins.

        Args:
            margin: Log-ratio margins in nats, chosen minus rejected.
            annotator: Annotator ids; pairs of one annotator then share their strength.
            num_total: Pairs (or annotators, with ids) in the whole dataset; default, this batch.
        """
        misfit, divergence = self.terms(margin, annotator, num_total)
        return misfit + divergence

    def terms(
        self,
        margin: Float[Tensor, " batch"],
        annotator: Int[Tensor, " batch"] | None = None,
        num_total: int | None = None,
        weight: Float[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        r"""Mean negative log-likelihood and :math:`\mathrm{KL}(q \,\|\, p) / N`, at equal draws.

        Both in nats per pair, or per annotator with ids; the divergence is zero where the guide is
        a point.

        Args:
            margin: As for `forward`.
            annotator: As for `forward`.
            num_total: As for `forward`.
            weight: Weights of the pairs in the likelihood; without ids only.
        """
        latents, log_guide = self.guide.rsample(self.num_particles)
        log_prob = on_cpu(self.model.log_prob)(
            margin, annotator=annotator, **{**self._constants(), **latents}
        )
        num_total = log_prob.shape[-1] if num_total is None else num_total
        divergence = (log_guide - self.model.log_prior(latents)).mean() / num_total
        return -(log_prob if weight is None else weight * log_prob).mean(), divergence

    @torch.no_grad()
    def location(self) -> dict[str, Tensor]:
        """`mean` and `cv` at the guide's median (the point, where it is one), shape `()`."""
        return {**self._constants(), **self.guide.median()}

    def log_prob(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Log-probability in nats of each choice at the location, every pair by itself."""
        return on_cpu(self.model.log_prob)(margin, **self.location())

    @torch.no_grad()
    def draw(self, num_samples: int, seed: int = 0) -> dict[str, Float[Tensor, " samples"]]:
        """Draws of `mean` and `cv` from the guide; the global generator is left as it was."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            draws = self.guide.draw(num_samples)
        return {name: v.expand(num_samples) for name, v in {**self._constants(), **draws}.items()}

    def _constants(self) -> dict[str, Tensor]:
        """Values of what is not latent, and of the rest, which the guide replaces."""
        values = self.model.constants.items()
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values}
