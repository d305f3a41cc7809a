"""The learned strength as one object: configuration, objective, distribution and files."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from scipy.special import gammaincinv, ndtri
from torch import Tensor

from mixdpo_pyro.errors import ConfigError, OutputError
from mixdpo_pyro.inference import StrengthObjective, build_strength_guide
from mixdpo_pyro.inference.methods.objectives import Objective
from mixdpo_pyro.inference.methods.running_panels import PanelObjective
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.io import write_json, written_whole
from mixdpo_pyro.models import Draws, PreferenceModel
from mixdpo_pyro.models.pyro_models import MeanAnchor
from mixdpo_pyro.training.losses.accepted import check_strength
from mixdpo_pyro.training.losses.baselines import BaselineName, build_baseline
from mixdpo_pyro.training.losses.observed import ObservedObjective, build_observation

__all__ = [
    "PANELS_FILE",
    "STRENGTH_FILE",
    "TENSORS_FILE",
    "EstimatorName",
    "Family",
    "Strength",
    "StrengthConfig",
    "strength_quantile",
]  # fmt: skip

Family = Literal["lognormal", "gamma", "fixed"]

EstimatorName = Literal["auto", "draws", "quadrature", "series"]

STRENGTH_FILE = "strength.json"

TENSORS_FILE = "strength.safetensors"

PANELS_FILE = "panels.safetensors"
"""In checkpoints only: what is known of each annotator belongs to a run, not to a policy."""

_OF_PANELS = "log_scale"
"""The parameter that is kept with the panels."""


@dataclass(frozen=True)
class StrengthConfig:
    """What is assumed of the strength; see :class:`~mixdpo_pyro.training.config.MixDPOConfig`.

    `observation` and `num_outcomes` are what the training data's choices are, see
    :class:`~mixdpo_pyro.training.batches.choices.ChoiceKind`.

    Raises:
        ConfigError: If a value is outside its domain, or the estimator does not fit the family.
    """

    family: Family = "lognormal"
    mean_anchor: MeanAnchor = "fixed"
    beta: float = 0.1
    estimator: EstimatorName = "auto"
    num_draws: int = 16
    initial_cv: float = 0.5
    learn_cv: bool = True
    flip_probability: float = 0.0
    baseline: BaselineName | None = None
    observation: str = "pairs"
    num_outcomes: int = 2

    def __post_init__(self) -> None:
        for name, kind in {
            "family": Family,
            "mean_anchor": MeanAnchor,
            "estimator": EstimatorName,
            "baseline": BaselineName,
        }.items():
            value, choices = getattr(self, name), get_args(kind)
            if value not in choices and not (name == "baseline" and value is None):
                raise ConfigError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        for name in ("beta", "num_draws", "initial_cv"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name}: expected a finite number > 0, got {value}")
        check_strength(self.family, self.estimator, self.baseline, self.flip_probability)

    def build(self) -> Objective:
        """Preference model, guide and their objective."""
        if self.baseline is not None:
            return build_baseline(self.baseline, self.beta, self.flip_probability)
        estimator: str | Draws = self.estimator
        if self.family == "fixed":
            estimator = "auto"  # nothing is left to estimate
        elif self.estimator == "draws":
            estimator = Draws(num_draws=self.num_draws)
        model = PreferenceModel(
            self.family,
            mean_anchor=self.mean_anchor,
            beta=self.beta,
            estimator=estimator,
            flip_probability=self.flip_probability,
            fixed_cv=None if self.learn_cv else self.initial_cv,
        )
        guide = build_strength_guide(model, self.initial_cv)
        observation = build_observation(self.observation, self.num_outcomes)
        if observation is None:
            return StrengthObjective(model, guide)
        return ObservedObjective(model, guide, observation)


class Strength:
    """The strength of preference as it is learned, saved and loaded.

    Attributes:
        config: What is assumed of it.
        objective: The loss that learns it, a `torch.nn.Module`.
    """

    def __init__(self, config: StrengthConfig) -> None:
        self.config = config
        self.objective = config.build()

    def keep_panels(self, annotator: Int[np.ndarray, " pairs"]) -> None:
        """Infer each annotator's strength from all their choices, and not from a batch's.

        Args:
            annotator: Number of each training pair's annotator.
        """
        assert isinstance(self.objective, StrengthObjective)
        self.objective = PanelObjective(self.objective.model, self.objective.guide, annotator)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Strength":
        """Load the strength that was saved beside a policy or in a checkpoint.

        Raises:
            OutputError: If a file is missing or damaged.
        """
        strength = cls(_read_config(Path(folder) / STRENGTH_FILE))
        strength.load(folder)
        return strength

    def load(self, folder: str | Path) -> None:
        """Load the learned parameters from `folder` into this strength.

        Raises:
            OutputError: If the file is missing, damaged, not finite, or of another configuration.
        """
        saved = _read_config(Path(folder) / STRENGTH_FILE)
        if saved != self.config:
            raise OutputError(f"{folder}: holds {saved}, expected {self.config}")
        path = Path(folder) / TENSORS_FILE
        try:
            tensors = load_file(path)
            for name, value in tensors.items():
                if not value.isfinite().all():
                    raise OutputError(f"{path}: tensor '{name}' is not finite: {value.tolist()}")
            kept = {k: v for k, v in self.objective.state_dict().items() if k == _OF_PANELS}
            self.objective.load_state_dict(tensors | kept)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise OutputError(f"{path}: cannot be read as a saved strength ({error})") from error

    def save(self, folder: str | Path) -> None:
        """Write `strength.safetensors` and `strength.json` into `folder`."""
        tensors = {k: v for k, v in self.objective.state_dict().items() if k != _OF_PANELS}
        _save_tensors(tensors, Path(folder) / TENSORS_FILE)
        write_json(
            {"config": asdict(self.config), "learned": self.summary() | self.thresholds()},
            Path(folder) / STRENGTH_FILE,
        )

    def save_panels(self, folder: str | Path) -> None:
        """Write `panels.safetensors` into `folder`, where panels are kept."""
        if isinstance(self.objective, PanelObjective):
            tensors = self.objective.panels.state_dict()
            if self.objective.log_scale is not None:
                tensors[_OF_PANELS] = self.objective.log_scale
            _save_tensors(tensors, Path(folder) / PANELS_FILE)

    def load_panels(self, folder: str | Path) -> None:
        """Load `panels.safetensors` from `folder`, where panels are kept.

        Raises:
            OutputError: If the file is missing, damaged, or of other training pairs.
        """
        if not isinstance(self.objective, PanelObjective):
            return
        path = Path(folder) / PANELS_FILE
        try:
            tensors = load_file(path)
            self.objective.panels.load_state_dict(tensors)
            if self.objective.log_scale is not None:
                self.objective.log_scale.data.copy_(tensors[_OF_PANELS])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise OutputError(f"{path}: cannot be read as saved panels ({error})") from error

    def summary(self) -> dict[str, float]:
        """Mean, cv and the 5% and 95% quantiles of beta, at the guide's median."""
        location = {name: value.item() for name, value in self.objective.location().items()}
        quantiles = {
            name: strength_quantile(probability, family=self.config.family, **location)
            for name, probability in {"q05": 0.05, "q95": 0.95}.items()
        }
        return {**location, **quantiles}

    def thresholds(self) -> dict[str, float]:
        """Thresholds of ties or grades: `threshold`, `nu`, or `cut_point_1`, ...; else empty."""
        if not isinstance(self.objective, ObservedObjective):
            return {}
        return self.objective.named_thresholds()

    def draw(self, num_samples: int = 1000, seed: int = 0) -> dict[str, Tensor]:
        """Draws of `mean` and `cv` from the guide, shape `(num_samples,)` each."""
        return self.objective.draw(num_samples, seed)

    def posterior(self, num_samples: int = 1000, seed: int = 0) -> Posterior:
        """What training learned, as a posterior; conditional on the policy.

        Where panels are kept, `diagnostics` has `exact_cv_mean` and `exact_cv_sd`: the exact
        posterior of the same margins, by which the guide can be judged.
        """
        draws, diagnostics = self.draw(num_samples, seed), {}
        if isinstance(self.objective, PanelObjective) and (exact := self.objective.exact_cv()):
            diagnostics = dict(zip(("exact_cv_mean", "exact_cv_sd"), exact, strict=True))
        return Posterior(
            mean=draws["mean"].cpu().double().numpy(),
            cv=draws["cv"].cpu().double().numpy(),
            family=self.config.family,
            mean_anchor=self.config.mean_anchor,
            beta=self.config.beta,
            flip_probability=self.config.flip_probability,
            observation=self.config.observation,
            parameters=self._repeated_thresholds(num_samples),
            method="training",
            seed=seed,
            diagnostics=diagnostics,
        )

    def _repeated_thresholds(self, num_samples: int) -> dict[str, np.ndarray]:
        values = list(self.thresholds().values())
        if not values:
            return {}
        is_graded = self.config.observation == "grades"
        name = "cut_points" if is_graded else next(iter(self.thresholds()))
        repeated = np.tile(np.array(values), (num_samples, 1))
        return {name: repeated if is_graded else repeated[:, 0]}

    def __repr__(self) -> str:
        found = {name: f"{value:.3g}" for name, value in self.summary().items()}
        words = f"mean {found['mean']}, cv {found['cv']}, 90% of strengths"
        words += f" {found['q05']} to {found['q95']}"
        words += "".join(f", {name} {value:.3g}" for name, value in self.thresholds().items())
        return f"Strength({self.config.family}: {words})"


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    with written_whole(path) as temporary:
        temporary.write_bytes(
            save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        )


def _read_config(path: Path) -> StrengthConfig:
    try:
        return StrengthConfig(**json.loads(path.read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path}: cannot be read as a saved strength ({error})") from error


def strength_quantile(probability: float, mean: float, cv: float, family: str) -> float:
    r"""Quantile of the strength :math:`\beta` of the distribution with this mean and cv."""
    if family == "fixed" or cv == 0:
        return mean
    if family == "gamma":
        return mean * cv**2 * float(gammaincinv(cv**-2, probability))
    sigma = math.sqrt(math.log1p(cv**2))
    return mean * math.exp(sigma * float(ndtri(probability)) - sigma**2 / 2)
