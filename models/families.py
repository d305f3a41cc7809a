r"""Families of preference strength, all written by their mean and coefficient of variation.

Every family tends to the constant strength of DPO as the coefficient of variation (cv, standard
deviation over mean) tends to zero at fixed mean. Source: mixed logit (Train, *Discrete Choice
Methods with Simulation*, 2009).
"""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

__all__ = [
    "FAMILIES",
    "Family",
    "check_family",
    "check_parameters",
    "cv_prior",
    "gamma_parameters",
    "lognormal_parameters",
    "mean_prior",
    "normal_parameters",
    "strength_distribution",
    "strength_log_density",
]

Family: TypeAlias = Literal["gamma", "lognormal", "normal", "fixed"]

FAMILIES: tuple[Family, ...] = get_args(Family)


def gamma_parameters(
    mean: Float[Tensor, "*#batch"], cv: Float[Tensor, "*#batch"]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Concentration and rate of a Gamma strength with this mean and cv.

    .. math:: a = cv^{-2}, \qquad r = a / m

    Args:
        mean: Mean strength :math:`m > 0`, any shape.
        cv: Coefficient of variation, positive, broadcastable with `mean`.

    Returns:
        Concentration :math:`a` and rate :math:`r`.

    Example:
        >>> gamma_parameters(torch.tensor(0.1), torch.tensor(0.5))
        (tensor(4.), tensor(40.))
    """
    concentration = cv.square().reciprocal()
    return concentration, concentration / mean


def lognormal_parameters(
    mean: Float[Tensor, "*#batch"], cv: Float[Tensor, "*#batch"]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Location and scale of the log of a LogNormal strength with this mean and cv.

    .. math:: \sigma^2 = \log(1 + cv^2), \qquad \mu = \log m - \sigma^2 / 2

    Args:
        mean: Mean strength :math:`m > 0`, any shape.
        cv: Coefficient of variation, positive, broadcastable with `mean`.

    Returns:
        Location :math:`\mu` and scale :math:`\sigma`.

    Example:
        >>> lognormal_parameters(torch.tensor(1.0), torch.tensor(1.0))
        (tensor(-0.3466), tensor(0.8326))
    """
    variance = cv.square().log1p()
    # Where cv^2 may underflow the scale is cv to every digit, and its derivative must not be 0/0.
    small = cv < 1e-12
    scale = torch.where(small, cv, variance.masked_fill(small, 1.0).sqrt())
    return mean.log() - variance / 2, scale


def normal_parameters(
    mean: Float[Tensor, "*#batch"], cv: Float[Tensor, "*#batch"]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    r"""Location and scale of a Normal strength with this mean and cv: :math:`(m, m \cdot cv)`.

    Args:
        mean: Mean strength :math:`m > 0`, any shape. Single strengths may be negative.
        cv: Coefficient of variation, positive, broadcastable with `mean`.

    Returns:
        Location and scale.

    Example:
        >>> normal_parameters(torch.tensor(0.5), torch.tensor(2.0))
        (tensor(0.5000), tensor(1.))
    """
    return mean, mean * cv


def strength_distribution(
    mean: Float[Tensor, "*#batch"], cv: Float[Tensor, "*#batch"], family: Family = "lognormal"
) -> TorchDistributionMixin:
    """The strength, as a Pyro distribution.

    Args:
        mean: Mean strength, positive, any shape.
        cv: Coefficient of variation, positive, broadcastable with `mean`; not used by `"fixed"`.
        family: One of `FAMILIES`.

    Returns:
        A distribution whose batch shape is the broadcast shape of `mean` and `cv`.

    Raises:
        ValueError: If `family` is not one of `FAMILIES`.

    Example:
        >>> strength_distribution(torch.tensor(0.1), torch.tensor(0.5), "gamma").mean
        tensor(0.1000)
    """
    check_family(family)
    mean, cv = torch.broadcast_tensors(mean, cv)
    if family == "fixed":
        return dist.Delta(mean)
    known: dict[
        str, tuple[Callable[..., TorchDistributionMixin], Callable[..., tuple[Tensor, Tensor]]]
    ] = {
        "gamma": (dist.Gamma, gamma_parameters),
        "lognormal": (dist.LogNormal, lognormal_parameters),
        "normal": (dist.Normal, normal_parameters),
    }
    distribution, parameters = known[family]
    return distribution(*parameters(mean, cv))


def strength_log_density(
    strength: Float[Tensor, "*#batch"],
    mean: Float[Tensor, "*#batch"],
    cv: Float[Tensor, "*#batch"],
    family: Family,
) -> Float[Tensor, "..."]:
    """Log density of :func:`strength_distribution`, without building it: several times as fast.

    Args:
        strength: Where, positive but for `"normal"`.
        mean: Mean strength, positive.
        cv: Coefficient of variation, positive.
        family: `"gamma"`, `"lognormal"` or `"normal"`; not checked.

    Example:
        >>> one = torch.tensor(1.0)
        >>> strength_log_density(one, one, one, "gamma")
        tensor(-1.)
    """
    if family == "gamma":
        shape, rate = gamma_parameters(mean, cv)
        power = torch.xlogy(shape, rate) + torch.xlogy(shape - 1, strength)
        return power - rate * strength - torch.lgamma(shape)
    value, jacobian = strength, torch.zeros_like(strength)
    location, scale = normal_parameters(mean, cv)
    if family == "lognormal":
        value = jacobian = strength.log()
        location, scale = lognormal_parameters(mean, cv)
    square = ((value - location) / scale).square()
    return -square / 2 - scale.log() - math.log(2 * math.pi) / 2 - jacobian


def mean_prior(beta: float | Tensor = 0.1, scale: float = 0.5) -> dist.LogNormal:
    r"""Prior of the mean strength: :math:`\log m \sim \mathrm{Normal}(\log \beta, 0.5)`.

    Args:
        beta: Prior median, DPO's usual beta; positive.
        scale: Prior standard deviation of the log mean; positive.

    Returns:
        A LogNormal distribution of the mean.

    Raises:
        ValueError: If `beta` is not positive.

    Example:
        >>> mean_prior(0.1).icdf(torch.tensor(0.5))
        tensor(0.1000)
    """
    if not beta > 0:
        raise ValueError(f"Expected 0 < beta, got {beta}")
    return dist.LogNormal(torch.as_tensor(beta).log(), scale)


def cv_prior(scale: float | Tensor = 1.0) -> dist.HalfNormal:
    """Prior of the coefficient of variation: HalfNormal, its mode at DPO.

    Args:
        scale: Scale of the half-normal; positive.

    Returns:
        A HalfNormal distribution of the cv.

    Example:
        >>> cv_prior().mean
        tensor(0.7979)
    """
    return dist.HalfNormal(scale)


def check_family(family: str) -> None:
    """Raise a `ValueError` unless `family` is one of `FAMILIES`.

    Example:
        >>> check_family("gamma")
    """
    if family not in FAMILIES:
        raise ValueError(f"Expected family to be one of {', '.join(FAMILIES)}, got {family!r}")


def check_parameters(
    like: Tensor, mean: Tensor | float, cv: Tensor | float, family: Family
) -> tuple[Tensor, Tensor]:
    """Mean and cv as float64 tensors on the device of `like`, checked.

    Raises:
        ValueError: If `mean`, or `cv` where the family has one, is not positive and finite.
    """
    parameters = []
    for name, value in (("mean", mean), ("cv", cv)):
        if not isinstance(value, Tensor):
            value = torch.tensor(value, dtype=torch.float64)
        tensor = value.to(like.device, torch.float64)
        valid = (tensor > 0) & tensor.isfinite()
        if not (name == "cv" and family == "fixed") and not bool(valid.all()):
            wrong = tensor[~valid].flatten()[0].item()
            raise ValueError(f"Expected {name} to be positive and finite, got {wrong}")
        parameters.append(tensor)
    return parameters[0], parameters[1]
