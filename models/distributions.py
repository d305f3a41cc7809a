"""The mixed logit as Pyro distributions of a choice, for `pyro.sample` in any model."""

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from mixdpo_pyro.models.estimators import Estimator, resolve_estimator
from mixdpo_pyro.models.families import Family, check_family
from mixdpo_pyro.models.mixed_logit import mixed_logit_log_prob

__all__ = ["GammaLogit", "LogNormalLogit", "MixedLogit", "NormalLogit"]


class MixedLogit(TorchDistribution):
    r"""A choice, 1 or 0, whose strength of preference is random and integrated out.

    .. math:: P(1) = \mathbb{E}_{\beta \sim p(\beta \mid m, cv)} \, \sigma(\beta \Delta)

    Args:
        margin: Log-ratio margin :math:`\Delta` in nats of alternative 1 over alternative 0.
        mean: Mean strength, positive.
        cv: Coefficient of variation of the strength, positive.
        family: Family of the strength, see `mixed_logit_log_prob`.
        estimator: How to integrate, see `mixed_logit_log_prob`.
        flip_probability: Probability in [0, 1/2) that the label was flipped.

    Raises:
        ValueError: If a parameter is outside its constraint, or family and estimator do not fit.

    Example:
        >>> choice = MixedLogit(torch.tensor([0.0, 10.0]), torch.tensor(0.1), torch.tensor(0.5))
        >>> choice.mean
        tensor([0.5000, 0.7202])
        >>> choice.log_prob(torch.ones(2))
        tensor([-0.6931, -0.3283])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "margin": constraints.real,
        "strength_mean": constraints.positive,
        "strength_cv": constraints.positive,
    }
    support = constraints.boolean
    has_enumerate_support = True

    def __init__(
        self,
        margin: Tensor,
        mean: Tensor | float,
        cv: Tensor | float,
        family: Family = "lognormal",
        estimator: str | Estimator = "auto",
        flip_probability: float = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        """Broadcast and keep the parameters."""
        check_family(family)
        self.family: Family = family
        self.estimator = resolve_estimator(estimator, family, panel=False)
        self.flip_probability = flip_probability
        mean, cv = (
            torch.as_tensor(v, dtype=margin.dtype, device=margin.device) for v in (mean, cv)
        )
        self.margin, self.strength_mean, self.strength_cv = torch.broadcast_tensors(
            margin, mean, cv
        )
        super().__init__(self.margin.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MixedLogit":
        """The same distribution with its parameters expanded to `batch_shape`."""
        # Subclasses share this method though their constructors differ: make the instance bare.
        new = self.__new__(type(self)) if _instance is None else _instance
        new.family, new.estimator = self.family, self.estimator
        new.flip_probability = self.flip_probability
        for name in self.arg_constraints:
            setattr(new, name, getattr(self, name).expand(batch_shape))
        TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats of a choice: `value` 1 or 0."""
        if self._validate_args:
            self._validate_sample(value)
        return mixed_logit_log_prob(
            torch.where(value > 0.5, self.margin, -self.margin),
            self.strength_mean,
            self.strength_cv,
            self.family,
            self.estimator,
            flip_probability=self.flip_probability,
        )

    @property
    def mean(self) -> Tensor:
        """Probability of choice 1."""
        return self.log_prob(torch.ones_like(self.margin)).exp()

    @property
    def variance(self) -> Tensor:
        """Variance of the choice."""
        return self.mean * self.log_prob(torch.zeros_like(self.margin)).exp()

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw choices from torch's global generator."""
        return torch.bernoulli(self.mean.expand(self._extended_shape(sample_shape)))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Both choices on a new first axis."""
        values = torch.arange(2, dtype=self.margin.dtype, device=self.margin.device)
        values = values.view(-1, *[1] * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values


class GammaLogit(MixedLogit):
    """A choice with a Gamma strength, in closed form; see `MixedLogit`.

    Example:
        >>> GammaLogit(torch.tensor([10.0]), 0.1, 0.5).mean
        tensor([0.7201])
    """

    def __init__(
        self, margin: Tensor, mean: Tensor | float, cv: Tensor | float, **kwargs: Any
    ) -> None:
        """Fix the family; `kwargs` are those of `MixedLogit`."""
        super().__init__(margin, mean, cv, "gamma", **kwargs)


class LogNormalLogit(MixedLogit):
    """A choice with a LogNormal strength, by quadrature; see `MixedLogit`.

    Example:
        >>> LogNormalLogit(torch.tensor([10.0]), 0.1, 0.5).mean
        tensor([0.7202])
    """

    def __init__(
        self, margin: Tensor, mean: Tensor | float, cv: Tensor | float, **kwargs: Any
    ) -> None:
        """Fix the family; `kwargs` are those of `MixedLogit`."""
        super().__init__(margin, mean, cv, "lognormal", **kwargs)


class NormalLogit(MixedLogit):
    """A choice with a Normal strength, possibly negative, by quadrature; see `MixedLogit`.

    Example:
        >>> NormalLogit(torch.tensor([10.0]), 0.1, 0.5).mean
        tensor([0.7206])
    """

    def __init__(
        self, margin: Tensor, mean: Tensor | float, cv: Tensor | float, **kwargs: Any
    ) -> None:
        """Fix the family; `kwargs` are those of `MixedLogit`."""
        super().__init__(margin, mean, cv, "normal", **kwargs)
