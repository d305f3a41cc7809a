"""Observation models: what an annotator did, given utilities of responses and a strength."""

from mixdpo_pyro.models.observation.base import Observation, Terms
from mixdpo_pyro.models.observation.choice_sets import BestOf, BestWorst, Ranking
from mixdpo_pyro.models.observation.judgements import Davidson, Graded, Pair, RaoKupper
from mixdpo_pyro.models.observation.lapse import Lapse
from mixdpo_pyro.models.observation.mixture import observed_log_prob

__all__ = [
    "BestOf",
    "BestWorst",
    "Davidson",
    "Graded",
    "Lapse",
    "Observation",
    "Pair",
    "Ranking",
    "RaoKupper",
    "Terms",
    "observed_log_prob",
]
