"""What we believe: the preference likelihood with a random strength (torch and Pyro only)."""

from mixdpo_pyro.models.differences_model import DifferencesModel
from mixdpo_pyro.models.distributions import GammaLogit, LogNormalLogit, MixedLogit, NormalLogit
from mixdpo_pyro.models.estimators import Draws, Estimator, Quadrature, Series
from mixdpo_pyro.models.families import (
    FAMILIES,
    Family,
    cv_prior,
    gamma_parameters,
    lognormal_parameters,
    mean_prior,
    normal_parameters,
    strength_distribution,
)
from mixdpo_pyro.models.gamma.lerch import lerch_phi_minus_one
from mixdpo_pyro.models.gamma.series import gamma_log_prob
from mixdpo_pyro.models.individual_strength import ConditionalStrength, conditional_strength
from mixdpo_pyro.models.mixed_logit import mixed_logit_log_prob
from mixdpo_pyro.models.observation import (
    BestOf,
    BestWorst,
    Davidson,
    Graded,
    Lapse,
    Observation,
    Pair,
    Ranking,
    RaoKupper,
    observed_log_prob,
)
from mixdpo_pyro.models.observed_choices import MixedObservation, ObservationModel
from mixdpo_pyro.models.pyro_models import LatentStrengthModel, PreferenceModel

__all__ = [
    "FAMILIES",
    "BestOf",
    "BestWorst",
    "ConditionalStrength",
    "Davidson",
    "DifferencesModel",
    "Draws",
    "Estimator",
    "Family",
    "GammaLogit",
    "Graded",
    "Lapse",
    "LatentStrengthModel",
    "LogNormalLogit",
    "MixedLogit",
    "MixedObservation",
    "NormalLogit",
    "Observation",
    "ObservationModel",
    "Pair",
    "PreferenceModel",
    "Quadrature",
    "Ranking",
    "RaoKupper",
    "Series",
    "conditional_strength",
    "cv_prior",
    "gamma_log_prob",
    "gamma_parameters",
    "lerch_phi_minus_one",
    "lognormal_parameters",
    "mean_prior",
    "mixed_logit_log_prob",
    "normal_parameters",
    "observed_log_prob",
    "strength_distribution",
]
