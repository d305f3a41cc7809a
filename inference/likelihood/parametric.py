"""Tables of panels as polynomials in the observation model's parameters: many from a few."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from mixdpo_pyro.inference.choices import Choices, with_parameters, without_ids
from mixdpo_pyro.inference.likelihood.panels import PanelTable, panel_sizes, tabulate
from mixdpo_pyro.models import Family

__all__ = ["ParametricTable"]

_DEGREES = {1: 5, 2: 4}
"""Degree by number of parameters; 3 for more, so that tables are 6, 15, 20, 35, ..."""

_MARGIN = 1.3
"""Information that grids allow for, over that at the centre: thresholds move it."""


@dataclass(frozen=True)
class ParametricTable:
    r"""Tables of panels at any parameters u in a box, by polynomial interpolation.

    Log-likelihoods are smooth in thresholds (analytic within :math:`\pi` of the real line of
    cut points), so that in a box of a few posterior deviations a polynomial of low degree has all
    of them, and the choices need not be read again.

    Attributes:
        choices: The choices, with units of their own where annotators do not repeat.
        family: Family of the strength.
        centre: Centre of the box.
        half_width: Its half width in each parameter.
        sizes: Pairs that say as much as each unit's choices can, which set the grids.
        tables: Tables at the nodes, all on the grids of the centre.
    """

    choices: Choices
    family: Family
    centre: Float[np.ndarray, " parameters"]
    half_width: Float[np.ndarray, " parameters"]
    sizes: Float[np.ndarray, " units"]
    tables: tuple[PanelTable, ...]

    @classmethod
    def around(
        cls,
        choices: Choices,
        family: Family,
        centre: Float[np.ndarray, " parameters"],
        half_width: Float[np.ndarray, " parameters"],
    ) -> "ParametricTable":
        """Tabulate the choices at the nodes of the box."""
        units = choices if choices.has_panels else without_ids(choices)
        sizes = _MARGIN * panel_sizes(with_parameters(units, centre))
        tables = tuple(
            tabulate(with_parameters(units, centre + half_width * node), family, sizes=sizes)
            for node in _nodes(len(centre))
        )
        return cls(units, family, centre, half_width, sizes, tables)

    def at(self, vector: Float[np.ndarray, " parameters"]) -> PanelTable:
        """The table at some parameters; outside the box it is made anew."""
        place = (vector - self.centre) / self.half_width
        if np.abs(place).max() > 1:
            return tabulate(with_parameters(self.choices, vector), self.family, sizes=self.sizes)
        weight = _monomials(place[None]) @ np.linalg.inv(_monomials(_nodes(len(vector))))
        weights = torch.from_numpy(weight[0])
        first = self.tables[0]
        grids = tuple(
            replace(
                grid,
                log_likelihood=sum(
                    w * table.grids[k].log_likelihood
                    for w, table in zip(weights, self.tables, strict=True)
                ),
            )
            for k, grid in enumerate(first.grids)
        )
        return PanelTable(grids, first.members)


def _powers(num_parameters: int) -> list[tuple[int, ...]]:
    """Exponents of the monomials up to the degree."""
    degree = _DEGREES.get(num_parameters, 3)
    every = itertools.product(range(degree + 1), repeat=num_parameters)
    return [powers for powers in every if sum(powers) <= degree]


def _nodes(num_parameters: int) -> Float[np.ndarray, "nodes parameters"]:
    """As many points of the box as monomials: those of Chebyshev, thinned to a simplex."""
    degree = _DEGREES.get(num_parameters, 3)
    points = [-math.cos(math.pi * k / degree) for k in range(degree + 1)]
    # Alternating from the middle outwards, low powers stand near the centre.
    order = sorted(points, key=abs)
    return np.array([[order[k] for k in powers] for powers in _powers(num_parameters)])


def _monomials(
    point: Float[np.ndarray, "points parameters"],
) -> Float[np.ndarray, "points monomials"]:
    powers = np.array(_powers(point.shape[1]))
    return (point[:, None, :] ** powers).prod(-1)
