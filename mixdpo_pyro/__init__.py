"""Direct preference optimization with a distribution of preference strengths.

Names resolve on first use (PEP 562), so that `import mixdpo_pyro` loads neither torch nor trl.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mixdpo_pyro.errors import extra_named

if TYPE_CHECKING:
    from mixdpo_pyro.data.loading import load_preferences
    from mixdpo_pyro.data.simulation import simulate_preferences
    from mixdpo_pyro.errors import (
        ConfigError,
        DataError,
        MissingPackageError,
        MixDPOError,
        NonFiniteLossError,
        OutputError,
    )
    from mixdpo_pyro.inference import (
        Posterior,
        assess_heterogeneity,
        diagnose_choices,
        fit,
        fit_joint,
        save_arviz,
        to_arviz,
    )
    from mixdpo_pyro.models import (
        GammaLogit,
        LatentStrengthModel,
        LogNormalLogit,
        MixedLogit,
        NormalLogit,
        PreferenceModel,
        mixed_logit_log_prob,
    )
    from mixdpo_pyro.training.config import MixDPOConfig
    from mixdpo_pyro.training.learned_strength import Strength, StrengthConfig
    from mixdpo_pyro.training.strength.dpo_mixin import DPOStrengthMixin
    from mixdpo_pyro.training.strength.mixin import StrengthMixin
    from mixdpo_pyro.training.strength.parameters import strength_parameter_groups
    from mixdpo_pyro.training.trainer import MixDPOTrainer

__all__ = [
    "ConfigError", "DPOStrengthMixin", "DataError", "GammaLogit", "LatentStrengthModel",
    "LogNormalLogit", "MissingPackageError", "MixDPOConfig", "MixDPOError", "MixDPOTrainer",
    "MixedLogit", "NonFiniteLossError", "NormalLogit", "OutputError", "Posterior",
    "PreferenceModel", "Strength", "StrengthConfig", "StrengthMixin", "assess_heterogeneity",
    "diagnose_choices", "fit", "fit_joint", "load_preferences", "mixed_logit_log_prob",
    "save_arviz", "simulate_preferences", "strength_parameter_groups", "to_arviz",
]  # fmt: skip

_HOMES = {
    "data.loading": ("load_preferences",),
    "data.simulation": ("simulate_preferences",),
    "errors": (
        "ConfigError", "DataError", "MissingPackageError", "MixDPOError", "NonFiniteLossError",
        "OutputError",
    ),
    "inference": (
        "Posterior", "assess_heterogeneity", "diagnose_choices", "fit", "fit_joint", "save_arviz",
        "to_arviz",
    ),
    "models": (
        "GammaLogit", "LatentStrengthModel", "LogNormalLogit", "MixedLogit", "NormalLogit",
        "PreferenceModel", "mixed_logit_log_prob",
    ),
    "training.config": ("MixDPOConfig",),
    "training.learned_strength": ("Strength", "StrengthConfig"),
    "training.strength.dpo_mixin": ("DPOStrengthMixin",),
    "training.strength.mixin": ("StrengthMixin",),
    "training.strength.parameters": ("strength_parameter_groups",),
    "training.trainer": ("MixDPOTrainer",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mixdpo-pyro")
    for home, names in _HOMES.items():
        if name in names:
            with extra_named(f"{__name__}.{name}"):
                return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
