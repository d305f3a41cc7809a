r"""The mixed-logit likelihood of a choice: one entry point over families, estimators and panels.

.. math:: \log \mathbb{E}_{\beta \sim p(\beta \mid m, cv)} \sigma(\beta \Delta)
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixdpo_pyro.models.draws import draw_strengths, draws_log_prob
from mixdpo_pyro.models.lerch import gamma_log_prob
from mixdpo_pyro.models.quadrature import (
    pair_log_prob,
    panel_log_prob,
    segment_sum,
    choice_log_prob,
)
from mixdpo_pyro.models.strength import Family, check_family

__all__ = ["Draws", "Estimator", "Quadrature", "Series", "mixed_logit_log_prob"]


@dataclass(frozen=True)
class Series:
    """The closed form of the Gamma pair (accelerated series)."""


@dataclass(frozen=True)
class Quadrature:
    """Deterministic quadrature.

    Attributes:
        num_nodes: Number of nodes; 32 reach 1e-8 nats for a log strength of scale up to 1.5, 64 up to 3.
    """

    num_nodes: int = 64

    def __post_init__(self) -> None:
        """Check the number of nodes."""
        if self.num_nodes < 2:
            raise ValueError(f"Expected 2 <= num_nodes, got {self.num_nodes}")


@dataclass(frozen=True)
class Draws:
    """The paper's K reparameterised draws.

    Attributes:
        num_draws: Number of draws K.
        kind: `"plain"`, `"antithetic"` or `"sobol"` (the last two not for the Gamma family).
        shared: One set of draws for all pairs instead of a fresh one per pair.
        seed: Seed of a private generator, restarted at every call (common random numbers); None draws from torch's
            global generator, which `pyro.set_rng_seed` seeds.
    """

    num_draws: int = 16
    kind: Literal["plain", "antithetic", "sobol"] = "plain"
    shared: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if self.num_draws < 1:
            raise ValueError(f"Expected 1 <= num_draws, got {self.num_draws}")
        if self.kind not in ("plain", "antithetic", "sobol"):
            raise ValueError(
                f"Expected kind to be one of plain, antithetic, sobol, got {self.kind!r}"
            )


Estimator: TypeAlias = Series | Quadrature | Draws
_NAMED = {"series": Series(), "quadrature": Quadrature(), "draws": Draws()}


def mixed_logit_log_prob(
    margin: Float[Tensor, "*batch"],
    mean: Float[Tensor, "*#batch"] | float,
    cv: Float[Tensor, "*#batch"] | float,
    family: Family = "gamma",
    estimator: str | Estimator = "auto",
    annotator: Int[Tensor, " pairs"] | None = None,
    *,
    flip_probability: float = 0.0,
) -> Float[Tensor, "*batch"]:
    """Log-probability of the observed choices in nats, the strength integrated out."""
    dtype = margin.dtype if margin.dtype in (torch.float32, torch.float64) else torch.float32
    margin = margin.double()
    mean = torch.as_tensor(mean, dtype=torch.float64, device=margin.device)
    cv = torch.as_tensor(cv, dtype=torch.float64, device=margin.device)
    check_family(family)
    chosen = resolve_estimator(estimator, family, annotator is not None)
    if annotator is not None:
        value = _panel(margin, mean, cv, family, chosen, annotator, flip_probability)
    else:
        value = _pair(margin, mean, cv, family, chosen)
        if flip_probability:
            value = torch.logaddexp(
                math.log1p(-flip_probability) + value,
                math.log(flip_probability) + _pair(-margin, mean, cv, family, chosen),
            )
    return value.to(dtype)


def resolve_estimator(estimator: str | Estimator, family: Family, panel: bool) -> Estimator:
    """The estimator with its options that a name stands for, checked against the family."""
    if isinstance(estimator, str):
        if estimator != "auto" and estimator not in _NAMED:
            raise ValueError(
                f"Expected estimator to be one of auto, series, quadrature, draws, got {estimator!r}"
            )
        if estimator == "auto":
            estimator = "series" if family in ("gamma", "fixed") and not panel else "quadrature"
        estimator = _NAMED[estimator]
    if isinstance(estimator, Series) and (panel or family in ("lognormal", "normal")):
        what = f"{family} panel" if panel else f"{family} pair"
        raise ValueError(f"Expected a gamma pair for the series, got a {what}")
    if isinstance(estimator, Draws) and family == "gamma" and estimator.kind != "plain":
        raise ValueError(f"Expected plain draws for the gamma family, got {estimator.kind!r}")
    return estimator


def _pair(
    margin: Tensor, mean: Tensor, cv: Tensor, family: Family, estimator: Estimator
) -> Tensor:
    if family == "fixed":
        return logsigmoid(mean * margin)
    if isinstance(estimator, Series):
        return gamma_log_prob(margin, mean, cv)
    if isinstance(estimator, Quadrature):
        return pair_log_prob(margin, mean, cv, family, estimator.num_nodes)
    shape = torch.broadcast_shapes(
        mean.shape, cv.shape, (1,) if estimator.shared else margin.shape
    )
    beta = draw_strengths(
        mean, cv, family, estimator.num_draws, shape, estimator.kind, estimator.seed
    )
    return draws_log_prob(margin, beta)


def _panel(
    margin: Tensor,
    mean: Tensor,
    cv: Tensor,
    family: Family,
    estimator: Estimator,
    annotator: Tensor,
    flip: float,
) -> Tensor:
    ids, index = annotator.unique(return_inverse=True)
    if family == "fixed":
        return segment_sum(choice_log_prob(mean * margin, flip), index, len(ids))
    if isinstance(estimator, Quadrature):
        return panel_log_prob(margin, index, len(ids), mean, cv, family, estimator.num_nodes, flip)
    assert isinstance(estimator, Draws)
    shape = torch.broadcast_shapes(mean.shape, cv.shape, (1,) if estimator.shared else (len(ids),))
    beta = draw_strengths(
        mean, cv, family, estimator.num_draws, shape, estimator.kind, estimator.seed
    )
    return draws_log_prob(margin, beta.expand(*beta.shape[:-1], len(ids)), index, len(ids), flip)
