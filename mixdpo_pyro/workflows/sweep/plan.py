"""What a sweep asks for: arms, betas and seeds, and the training options of each run."""

from dataclasses import dataclass
from typing import Any

from mixdpo_pyro.config_fields import SCHEDULER, check_range, explained, option

__all__ = ["CONTROLS", "PlannedRun", "SweepConfig", "SweepPlan"]

CONTROLS: dict[str, dict[str, Any]] = {
    "dpo": {"family": "fixed"},
    "fixed_cv": {"family": "lognormal", "learn_cv": False, "strength_initial_cv": 0.5},
    "rdpo": {"family": "fixed", "baseline": "robust", "flip_probability": 0.1},
    "cdpo": {"family": "fixed", "baseline": "conservative", "flip_probability": 0.1},
    "beta_dpo": {"family": "fixed", "baseline": "beta-dpo"},
    "lognormal": {"family": "lognormal"},
    "gamma": {"family": "gamma"},
}
"""Arms that a sweep knows by their names, with their training options."""


@explained
@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Train arms at betas and seeds; the same call goes on where an earlier one ended."""

    output_dir: str = option("Folder for all runs of the sweep.", short="-o")
    jobs: int | None = option("Runs at a time. Default: one for each GPU, or one.", None)
    scheduler: str | None = option(SCHEDULER, None)
    dry_run: bool = option("List the runs and what is done of them; train nothing.", False)

    def __post_init__(self) -> None:
        check_range("jobs", self.jobs, 1)


@dataclass(frozen=True)
class PlannedRun:
    """One run.

    Attributes:
        arm: Name of its arm.
        beta: DPO's beta.
        seed: Seed of the training.
        values: Keys of `mixdpo train`, but for the folder.
    """

    arm: str
    beta: float
    seed: int
    values: dict[str, Any]

    @property
    def name(self) -> str:
        """Its folder below `runs/`."""
        return f"{self.arm}/beta-{self.beta:.12g}/seed-{self.seed}"


@dataclass(frozen=True)
class SweepPlan:
    """All runs, and how each is launched.

    Attributes:
        source: The file that asks for them.
        runs: The runs, seed by seed, so that every arm has a result early.
        devices: Devices of each run; several are launched by accelerate.
        accelerate: Options of `accelerate launch`; None for a run on one device without it.
    """

    source: str
    runs: list[PlannedRun]
    devices: int = 1
    accelerate: list[str] | None = None
