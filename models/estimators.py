"""Ways to evaluate the mixed-logit likelihood, each a small value that prints as what it is."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from mixdpo_pyro.models.families import Family

__all__ = ["DrawKind", "Draws", "Estimator", "Quadrature", "Series", "resolve_estimator"]

DrawKind: TypeAlias = Literal["plain", "antithetic", "sobol"]


@dataclass(frozen=True)
class Series:
    """The closed form of a Gamma pair, see `gamma_log_prob`."""


@dataclass(frozen=True)
class Quadrature:
    """Deterministic quadrature over the strength, see `quadrature_log_prob`.

    Attributes:
        num_nodes: Number of nodes; None takes enough for errors below 1e-8 nats, see
            `default_num_nodes`.
    """

    num_nodes: int | None = None

    def __post_init__(self) -> None:
        """Check the number of nodes."""
        if self.num_nodes is not None and self.num_nodes < 2:
            raise ValueError(f"Expected 2 <= num_nodes, got {self.num_nodes}")


@dataclass(frozen=True)
class Draws:
    """The paper's K reparameterised draws of the strength, see `draws_log_prob`.

    Attributes:
        num_draws: Number of draws K.
        kind: `"plain"`, `"antithetic"` (pairs z and -z) or `"sobol"` (randomly shifted); a Gamma
            strength has plain draws only.
        shared: One set of draws for all pairs (annotators) instead of a fresh one for each.
        seed: Seed of a generator made anew at every call, so that equal calls give equal draws;
            None takes torch's global generator, which `pyro.set_rng_seed` seeds.
    """

    num_draws: int = 16
    kind: DrawKind = "plain"
    shared: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if self.num_draws < 1:
            raise ValueError(f"Expected 1 <= num_draws, got {self.num_draws}")
        if self.kind not in get_args(DrawKind):
            kinds = ", ".join(get_args(DrawKind))
            raise ValueError(f"Expected kind to be one of {kinds}, got {self.kind!r}")


Estimator: TypeAlias = Series | Quadrature | Draws

_NAMED: dict[str, Estimator] = {"series": Series(), "quadrature": Quadrature(), "draws": Draws()}


def resolve_estimator(estimator: str | Estimator, family: Family, panel: bool) -> Estimator:
    """The estimator that a name stands for, checked against the family.

    Args:
        estimator: `"auto"`, `"series"`, `"quadrature"`, `"draws"`, or an instance. `"auto"` is the
            series for a Gamma pair and quadrature elsewhere; the fixed family needs neither.
        family: Family of the strength.
        panel: Whether choices share their annotator's strength.

    Returns:
        The estimator with its options.

    Raises:
        ValueError: If the name is unknown or the combination makes no sense.

    Example:
        >>> resolve_estimator("auto", "lognormal", panel=False)
        Quadrature(num_nodes=None)
    """
    if isinstance(estimator, str):
        if estimator == "auto":
            estimator = "series" if family == "gamma" and not panel else "quadrature"
        if estimator not in _NAMED:
            names = ", ".join(["auto", *_NAMED])
            raise ValueError(f"Expected estimator to be one of {names}, got {estimator!r}")
        estimator = _NAMED[estimator]
    if isinstance(estimator, Series) and (panel or family in ("lognormal", "normal")):
        unit = "panel" if panel else "pair"
        raise ValueError(f"Expected a gamma pair for the series, got a {family} {unit}")
    if isinstance(estimator, Draws) and family == "gamma" and estimator.kind != "plain":
        raise ValueError(f"Expected plain draws of a gamma strength, got {estimator.kind!r}")
    return estimator
