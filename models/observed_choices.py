"""Observation models as a Pyro distribution and a Pyro model, the strength integrated out."""

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from mixdpo_pyro.models.estimators import Estimator
from mixdpo_pyro.models.families import Family, strength_distribution
from mixdpo_pyro.models.observation import Observation, observed_log_prob
from mixdpo_pyro.models.observation.base import dense_rows
from mixdpo_pyro.models.pyro_models import PreferenceModel

__all__ = ["MixedObservation", "ObservationModel"]


class MixedObservation(TorchDistribution):
    r"""What was done with a choice, its strength of preference random and integrated out.

    .. math:: P(y) = \mathbb{E}_{\beta \sim p(\beta \mid m, cv)} \, P(y \mid \beta, v)

    A value is an outcome per margin (event shape `()`), or for models that take sets the ranks of
    the K responses (event shape `(K,)`).

    Args:
        observation: What annotators do.
        margin: Margins `(...)`, or utilities `(..., K)` where the model `takes_sets`, in nats.
        mean: Mean strength, positive.
        cv: Coefficient of variation, positive.
        family: `"gamma"`, `"lognormal"` or `"fixed"`.
        estimator: How to integrate, see `observed_log_prob`.

    Raises:
        ValueError: If a parameter is outside its constraint.

    Example:
        >>> from mixdpo_pyro.models.observation import BestOf
        >>> choice = MixedObservation(BestOf(), torch.tensor([3.0, 0.0, 0.0]), 1.0, 0.5)
        >>> choice.log_prob(torch.tensor([1, 0, 0]))
        tensor(-0.1568)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "margin": constraints.real,
        "strength_mean": constraints.positive,
        "strength_cv": constraints.positive,
    }
    has_enumerate_support = True

    def __init__(
        self,
        observation: Observation,
        margin: Tensor,
        mean: Tensor | float,
        cv: Tensor | float,
        family: Family = "lognormal",
        estimator: str | Estimator = "auto",
        validate_args: bool | None = None,
    ) -> None:
        """Broadcast and keep the parameters."""
        self.observation, self.estimator = observation, estimator
        self.family: Family = family
        event = margin.shape[-1:] if observation.takes_sets else torch.Size()
        batch = margin.shape[: margin.dim() - len(event)]
        mean, cv = (
            torch.as_tensor(v, dtype=margin.dtype, device=margin.device) for v in (mean, cv)
        )
        shape = torch.broadcast_shapes(batch, mean.shape, cv.shape)
        self.margin = margin.expand(*shape, *event)
        self.strength_mean, self.strength_cv = mean.expand(shape), cv.expand(shape)
        super().__init__(shape, event, validate_args=False)
        self._validate_args = torch.distributions.Distribution._validate_args
        if validate_args is not None:
            self._validate_args = validate_args
        if self._validate_args:
            self._check_parameters()

    def _check_parameters(self) -> None:
        for name, constraint in self.arg_constraints.items():
            if not bool(constraint.check(getattr(self, name)).all()):
                raise ValueError(f"Expected {name} to be {constraint}, got {getattr(self, name)}")

    @property
    def support(self) -> constraints.Constraint:
        """Integers from the least outcome to the greatest one."""
        values = self.observation.support(self.margin.shape[-1] if self.event_shape else 2)
        within = constraints.integer_interval(int(values.min()), int(values.max()))
        return constraints.independent(within, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MixedObservation":
        """The same distribution with its parameters expanded to `batch_shape`."""
        return MixedObservation(
            self.observation,
            self.margin.expand(*batch_shape, *self.event_shape),
            self.strength_mean.expand(batch_shape),
            self.strength_cv.expand(batch_shape),
            self.family,
            self.estimator,
            validate_args=self._validate_args,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability in nats of an outcome per choice."""
        event = len(self.event_shape)
        batch = value.shape[: value.dim() - event]
        shape = torch.broadcast_shapes(batch, self.batch_shape)
        full = (*shape, *self.event_shape)
        margin, outcome, rows = dense_rows(
            self.observation, self.margin.expand(full), value.expand(full)
        )
        log_prob = observed_log_prob(
            self.observation,
            margin,
            self.strength_mean.expand(shape).reshape(-1),
            self.strength_cv.expand(shape).reshape(-1),
            self.family,
            self.estimator,
            outcome=outcome,
            choice_set=rows,
        )
        return log_prob.view(shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw a strength and an outcome of each choice from torch's global generator."""
        shape = self._extended_shape(sample_shape)
        strength = strength_distribution(self.strength_mean, self.strength_cv, self.family)
        margin, _, rows = dense_rows(self.observation, self.margin.expand(shape), None)
        beta = strength.sample(sample_shape).reshape(-1)
        return self.observation.sample(margin, beta, rows).view(shape)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Every outcome on a new first axis."""
        values = self.observation.support(self.margin.shape[-1] if self.event_shape else 2)
        values = values.view(-1, *[1] * len(self.batch_shape), *self.event_shape)
        values = values.to(self.margin.device)
        full = (-1, *self.batch_shape, *self.event_shape)
        return values.expand(full) if expand else values


class ObservationModel(PreferenceModel):
    r"""Observed choices of any kind with the strength of preference integrated out.

    Sites: `mean` and `cv` as in `PreferenceModel`; `observation`, the model's own parameters on
    the real line (see `Observation.unconstrained`), unless they are `known` or it has none; and
    `choice` inside the plate `choices`, or `annotators` with ids.

    .. math:: \text{observation} \sim \mathrm{Normal}(\text{unconstrained parameters given}, 1)

    Args:
        observation: What annotators did; its parameters are the prior medians, or known.
        known: Whether its parameters are known.
        options: Those of `PreferenceModel`.

    Example:
        >>> from mixdpo_pyro.models.observation import RaoKupper
        >>> model = ObservationModel(RaoKupper(0.5))
        >>> data = {"outcome": torch.tensor([2, 1])}
        >>> trace = pyro.poutine.trace(model).get_trace(torch.tensor([1.0, 0.2]), **data)
        >>> sorted(name for name in trace.stochastic_nodes if name != "choices")
        ['cv', 'mean', 'observation']
    """

    def __init__(self, observation: Observation, *, known: bool = False, **options: Any) -> None:
        """Check and keep the choices."""
        super().__init__(**options)
        if self.flip_probability:
            raise ValueError("Expected Lapse for careless choices, got a flip_probability")
        self.observation = observation
        self.known = known or len(observation.unconstrained()) == 0

    def sample_observation(self) -> Observation:
        """The observation model with its parameters sampled, or as it was given."""
        if self.known:
            return self.observation
        location = self.observation.unconstrained().detach()
        prior = dist.Normal(location, torch.ones_like(location)).to_event(1)
        return self.observation.constrained(pyro.sample("observation", prior))

    def forward(
        self,
        margin: Float[Tensor, " rows"],
        annotator: Int[Tensor, " rows"] | None = None,
        num_total: int | None = None,
        *,
        outcome: Int[Tensor, " rows"] | None = None,
        choice_set: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "..."]:
        """Score the choices of a batch.

        Args:
            margin: Margins, or utilities of the responses where the model `takes_sets`.
            annotator: Ids of the annotators, per row; a batch must hold all their choices.
            num_total: Number of choices (with ids: of annotators) in the whole data set.
            outcome: What was done, per row.
            choice_set: Ids of the sets, per row.

        Returns:
            Log-probabilities in nats, one per choice or annotator, not scaled.
        """
        mean, cv = self.sample_parameters(margin)
        log_prob = observed_log_prob(
            self.sample_observation(),
            margin,
            mean,
            cv if self.family != "fixed" else 1.0,
            self.family,
            self.estimator,
            outcome=outcome,
            choice_set=choice_set,
            annotator=annotator,
        )
        size = log_prob.shape[-1]
        name = "choices" if annotator is None else "annotators"
        with pyro.plate(name, num_total or size, subsample=torch.arange(size), dim=-1):
            pyro.factor("choice", log_prob)
        return log_prob
