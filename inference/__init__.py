"""How we learn it: from margins to a posterior (Pyro and ArviZ)."""

from mixdpo_pyro.inference.calibration.sbc import SBCResult, calibrate, plot_calibration
from mixdpo_pyro.inference.calibration.simulation import (
    Design,
    SimulatedChoices,
    simulate,
    simulate_choices,
)
from mixdpo_pyro.inference.choices import Choices, read_choices
from mixdpo_pyro.inference.diagnosis import Diagnosis, diagnose_choices
from mixdpo_pyro.inference.export import to_arviz, to_datatree, to_inference_data
from mixdpo_pyro.inference.fitting import Fit, fit
from mixdpo_pyro.inference.loo import LeaveOneOut, compare_loo, leave_one_out
from mixdpo_pyro.inference.methods.bounds import BoundedModel, LocalGuide
from mixdpo_pyro.inference.methods.guides import build_strength_guide
from mixdpo_pyro.inference.methods.log_joint import Maximum
from mixdpo_pyro.inference.methods.maximum_likelihood import JointFit, fit_joint
from mixdpo_pyro.inference.methods.nuts import NUTSRun, run_nuts
from mixdpo_pyro.inference.methods.objectives import StrengthObjective
from mixdpo_pyro.inference.methods.svi import SVIProgress, SVIState, run_svi
from mixdpo_pyro.inference.people.crossed import sample_differences
from mixdpo_pyro.inference.people.reliability import Reliability, estimate_reliability
from mixdpo_pyro.inference.people.strength_effects import StrengthEffects, fit_strength_effects
from mixdpo_pyro.inference.posterior import Posterior, save_arviz
from mixdpo_pyro.inference.predictive import (
    choice_probabilities,
    draw_margin_errors,
    mean_choice_probability,
    replicate_choices,
    replicate_outcomes,
    sample_new_strengths,
)
from mixdpo_pyro.inference.robustness.checks import RobustnessCheck
from mixdpo_pyro.inference.robustness.distributions.nonparametric import (
    NonparametricStrength,
    nonparametric_strength,
)
from mixdpo_pyro.inference.robustness.label_noise import profile_label_noise
from mixdpo_pyro.inference.robustness.permutation import permute_annotators
from mixdpo_pyro.inference.verdict import Verdict, assess_heterogeneity

__all__ = [
    "BoundedModel",
    "Choices",
    "Design",
    "Diagnosis",
    "Fit",
    "JointFit",
    "LeaveOneOut",
    "LocalGuide",
    "Maximum",
    "NUTSRun",
    "NonparametricStrength",
    "Posterior",
    "Reliability",
    "RobustnessCheck",
    "SBCResult",
    "SVIProgress",
    "SVIState",
    "SimulatedChoices",
    "StrengthEffects",
    "StrengthObjective",
    "Verdict",
    "assess_heterogeneity",
    "build_strength_guide",
    "calibrate",
    "choice_probabilities",
    "compare_loo",
    "diagnose_choices",
    "draw_margin_errors",
    "estimate_reliability",
    "fit",
    "fit_joint",
    "fit_strength_effects",
    "leave_one_out",
    "mean_choice_probability",
    "nonparametric_strength",
    "permute_annotators",
    "plot_calibration",
    "profile_label_noise",
    "read_choices",
    "replicate_choices",
    "replicate_outcomes",
    "run_nuts",
    "run_svi",
    "sample_differences",
    "sample_new_strengths",
    "save_arviz",
    "simulate",
    "simulate_choices",
    "to_arviz",
    "to_datatree",
    "to_inference_data",
]
