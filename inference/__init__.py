"""How we learn it: from margins to a posterior (Pyro and ArviZ)."""

from mixdpo_pyro.inference.guides import build_strength_guide
from mixdpo_pyro.inference.objectives import StrengthObjective

__all__ = ["StrengthObjective", "build_strength_guide"]
