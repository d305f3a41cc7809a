"""Direct preference optimization with a distribution of preference strengths.

Names resolve on first use (PEP 562), so that `import mixdpo_pyro` loads neither torch nor trl.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixdpo_pyro.data.loading import load_preferences
    from mixdpo_pyro.data.simulation import simulate_preferences
    from mixdpo_pyro.errors import MixDPOError
    from mixdpo_pyro.inference import assess_heterogeneity, fit
    from mixdpo_pyro.models import PreferenceModel, mixed_logit_log_prob
    from mixdpo_pyro.training.config import MixDPOConfig
    from mixdpo_pyro.training.learned_strength import Strength
    from mixdpo_pyro.training.trainer import MixDPOTrainer

__all__ = [
    "MixDPOConfig",
    "MixDPOError",
    "MixDPOTrainer",
    "PreferenceModel",
    "Strength",
    "assess_heterogeneity",
    "fit",
    "load_preferences",
    "mixed_logit_log_prob",
    "simulate_preferences",
]

_MODULES = {
    "MixDPOConfig": "training.trainer",
    "MixDPOError": "errors",
    "MixDPOTrainer": "training.trainer",
    "PreferenceModel": "models",
    "Strength": "training.learned_strength",
    "assess_heterogeneity": "inference",
    "fit": "inference",
    "load_preferences": "data.loading",
    "mixed_logit_log_prob": "models",
    "simulate_preferences": "data.simulation",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
