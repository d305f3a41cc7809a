"""How we learn it: from margins to a posterior (Pyro and ArviZ)."""

from mixdpo_pyro.inference.choices import Choices, read_choices
from mixdpo_pyro.inference.criticism import Verdict, assess_heterogeneity
from mixdpo_pyro.inference.fit import Fit, fit
from mixdpo_pyro.inference.guides import build_strength_guide
from mixdpo_pyro.inference.laplace import Maximum
from mixdpo_pyro.inference.objectives import StrengthObjective

__all__ = [
    "Choices",
    "Fit",
    "Maximum",
    "StrengthObjective",
    "Verdict",
    "assess_heterogeneity",
    "build_strength_guide",
    "fit",
    "read_choices",
]
