"""The Pyro models of preference: the strength integrated out, and the strength as a latent.

Both take margins, never a language model, have one plate and are scaled to the whole data set
under minibatches (`max_plate_nesting=1`).
"""

from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from torch import Tensor

from mixdpo_pyro.models.estimators import Estimator, resolve_estimator
from mixdpo_pyro.models.families import (
    Family,
    check_family,
    cv_prior,
    mean_prior,
    strength_distribution,
)
from mixdpo_pyro.models.mixed_logit import mixed_logit_log_prob

__all__ = ["LatentStrengthModel", "MeanAnchor", "PreferenceModel"]

MeanAnchor: TypeAlias = Literal["prior", "fixed", "free"]


class PreferenceModel(PyroModule):
    r"""Observed choices with the strength of preference integrated out.

    .. math:: \log m \sim \mathrm{Normal}(\log \beta_0, 1/2), \quad cv \sim \mathrm{HalfNormal}(1),
              \quad P = \prod_i \mathbb{E}_{\beta \mid m, cv} \, \sigma(\beta \Delta_i)

    Sites: `mean` and `cv` (shape `()`), and `choice` inside the plate `pairs`, or `annotators`
    with ids. Latents may carry a leading particle axis, `(particles, 1)`. The family `"fixed"` has
    no latent sites and is DPO.

    Args:
        family: Distribution of the strength, see `mixed_logit_log_prob`.
        mean_anchor: `"prior"` as above; `"fixed"`: the mean is `beta`; `"free"`: neither `mean`
            nor `cv` has a prior, which is the paper.
        beta: Prior median of the mean, or its fixed value: DPO's usual beta, positive.
        estimator: How to integrate, see `mixed_logit_log_prob`.
        flip_probability: Probability in [0, 1/2) that a label was flipped.
        fixed_cv: The coefficient of variation, > 0, where it is known; default, it is latent.

    Raises:
        ValueError: If an argument is none of the above.

    References:
        | MixDPO (Imai et al., 2026), https://arxiv.org/abs/2601.06180

    Example:
        >>> model = PreferenceModel("gamma", mean_anchor="fixed", beta=0.1)
        >>> trace = pyro.poutine.trace(model).get_trace(torch.tensor([1.0, -2.0]), num_total=10)
        >>> trace.nodes["choice"]["scale"]
        5.0
    """

    def __init__(
        self,
        family: Family = "lognormal",
        *,
        mean_anchor: MeanAnchor = "prior",
        beta: float = 0.1,
        estimator: str | Estimator = "auto",
        flip_probability: float = 0.0,
        fixed_cv: float | None = None,
    ) -> None:
        """Check and keep the choices; the model has no parameters."""
        super().__init__()
        check_family(family)
        if mean_anchor not in get_args(MeanAnchor):
            anchors = ", ".join(get_args(MeanAnchor))
            raise ValueError(f"Expected mean_anchor to be one of {anchors}, got {mean_anchor!r}")
        if not beta > 0:
            raise ValueError(f"Expected 0 < beta, got {beta}")
        if not 0 <= flip_probability < 0.5:
            raise ValueError(f"Expected 0 <= flip_probability < 0.5, got {flip_probability}")
        if fixed_cv is not None and not fixed_cv > 0:
            raise ValueError(f"Expected 0 < fixed_cv, got {fixed_cv}")
        resolve_estimator(estimator, family, panel=False)
        self.family: Family = family
        self.mean_anchor: MeanAnchor = mean_anchor
        self.beta = beta
        self.estimator = estimator
        self.flip_probability = flip_probability
        self.fixed_cv = fixed_cv

    @property
    def latents(self) -> tuple[str, ...]:
        """Names of the sites that are sampled, `mean` before `cv`."""
        known = {"mean": self.mean_anchor == "fixed", "cv": self.fixed_cv is not None}
        return () if self.family == "fixed" else tuple(n for n in known if not known[n])

    @property
    def constants(self) -> dict[str, float]:
        """Values of `mean` and `cv` where they are not latent: beta, and 0 for plain DPO."""
        return {"mean": self.beta, "cv": 0.0 if self.family == "fixed" else self.fixed_cv or 0.0}

    def forward(
        self,
        margin: Float[Tensor, " pairs"],
        annotator: Int[Tensor, " pairs"] | None = None,
        num_total: int | None = None,
    ) -> Float[Tensor, "..."]:
        """Score the choices of a batch.

        Args:
            margin: Log-ratio margins in nats, chosen minus rejected.
            annotator: Ids of the annotators; the choices of one share the strength, and a batch
                must hold all of them.
            num_total: Number of pairs (with ids: of annotators) in the whole data set; default: in
                this batch.

        Returns:
            Log-probabilities in nats, one per pair or annotator, not scaled.
        """
        mean, cv = self.sample_parameters(margin)
        log_prob = self.log_prob(margin, mean, cv, annotator)
        with self.plate(log_prob.shape[-1], annotator, num_total):
            pyro.factor("choice", log_prob)
        return log_prob

    def sample_parameters(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        """Sample `mean` and `cv`, or return their constants, in the margin's dtype and device."""
        values = {name: margin.new_tensor(value) for name, value in self.constants.items()}
        priors = _priors(self.beta, margin.dtype, margin.device)
        for name in self.latents:
            # Masked: flat, but a guide that initialises can still draw from it.
            free = self.mean_anchor == "free"
            values[name] = pyro.sample(name, priors[name].mask(False) if free else priors[name])
        return values["mean"], values["cv"]

    def log_prior(self, latents: dict[str, Tensor]) -> Tensor:
        """Log density in nats of the sites `mean` and `cv`, summed; zero where they have no prior.

        Args:
            latents: Values of the sites that the model samples, of shape `()` or `(particles, 1)`.

        Returns:
            Shape `()` or `(particles,)`.
        """
        if self.mean_anchor == "free" or not latents:
            return torch.zeros(())
        first = next(iter(latents.values()))
        priors = _priors(self.beta, first.dtype, first.device)
        total = sum(priors[name].log_prob(value) for name, value in latents.items())
        return total.squeeze(-1) if total.dim() else total

    def log_prob(
        self,
        margin: Float[Tensor, " pairs"],
        mean: Tensor,
        cv: Tensor,
        annotator: Int[Tensor, " pairs"] | None = None,
    ) -> Float[Tensor, "..."]:
        """Log-probability in nats per pair (per annotator with ids) at given parameters."""
        return mixed_logit_log_prob(
            margin,
            mean,
            cv,
            self.family,
            self.estimator,
            annotator,
            flip_probability=self.flip_probability,
        )

    def plate(self, size: int, annotator: Tensor | None, num_total: int | None) -> pyro.plate:
        """The plate of `size` pairs or annotators out of `num_total`."""
        name = "pairs" if annotator is None else "annotators"
        total = size if num_total is None else num_total
        return pyro.plate(name, total, subsample=torch.arange(size), dim=-1)


@lru_cache
def _priors(
    beta: float, dtype: torch.dtype, device: torch.device
) -> dict[str, TorchDistributionMixin]:
    """Priors of `mean` and `cv`; kept, since they are asked for at every step."""
    median = torch.tensor(beta, dtype=dtype, device=device)
    return {"mean": mean_prior(median), "cv": cv_prior(torch.ones_like(median))}


class LatentStrengthModel(PreferenceModel):
    """The same joint distribution with the strength of every pair, or annotator, as a latent site.

    Sites: `mean`, `cv`, then `strength` inside the plate `pairs` (or `annotators`), then `choice`
    per pair. Integrating `strength` gives `PreferenceModel`; an unobserved `choice` is simulated.
    The estimator is not used. The family `"fixed"` has no site `strength`.

    Example:
        >>> model = LatentStrengthModel("gamma", mean_anchor="fixed")
        >>> model(torch.zeros(5), choice=None).shape  # five simulated choices
        torch.Size([5])
    """

    def forward(
        self,
        margin: Float[Tensor, " pairs"],
        annotator: Int[Tensor, " pairs"] | None = None,
        num_total: int | None = None,
        choice: Float[Tensor, " pairs"] | Literal["observed"] | None = "observed",
    ) -> Float[Tensor, "..."]:
        """Score or simulate choices.

        Args:
            margin: Log-ratio margins in nats of alternative 1 over alternative 0.
            annotator: Ids of the annotators.
            num_total: As for `PreferenceModel`.
            choice: 1 or 0 per pair; `"observed"`: all 1, margins being chosen minus rejected; None
                simulates.

        Returns:
            The choices.
        """
        observed = torch.ones_like(margin) if isinstance(choice, str) else choice
        mean, cv = self.sample_parameters(margin)
        ids, group = (margin, None) if annotator is None else annotator.unique(return_inverse=True)
        strength = mean
        with self.plate(len(ids), annotator, num_total) as units:
            if self.family != "fixed":
                strength = pyro.sample("strength", strength_distribution(mean, cv, self.family))
            if group is None:
                return self._choose(strength * margin, observed)
        if self.family != "fixed":
            strength = strength[..., group]
        scale = 1.0 if num_total is None else num_total / len(units)
        with pyro.poutine.scale(scale=scale), pyro.plate("pairs", len(margin), dim=-1):
            return self._choose(strength * margin, observed)

    def _choose(self, utility: Tensor, observed: Tensor | None) -> Tensor:
        if self.flip_probability == 0.0:
            # An infinite logit would score inf - inf.
            largest = torch.finfo(utility.dtype).max
            logits = utility.clamp(-largest, largest)
            return pyro.sample("choice", dist.Bernoulli(logits=logits), obs=observed)
        kept = utility.sigmoid()
        noisy = self.flip_probability + (1 - 2 * self.flip_probability) * kept
        return pyro.sample("choice", dist.Bernoulli(noisy), obs=observed)
