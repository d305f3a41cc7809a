"""Options of `mixdpo winrate`."""

from dataclasses import dataclass
from typing import Literal

from mixdpo_pyro.config_fields import check_range, check_seed, explained, option
from mixdpo_pyro.errors import ConfigError

__all__ = ["LARGEST_WEIGHT", "WINRATE_FILE", "WinrateConfig"]

WINRATE_FILE = "winrate.json"
"""The file that makes a folder one of win rates."""


LARGEST_WEIGHT = 20.0
"""Far beyond the policy nothing is left of its language."""


@explained
@dataclass(frozen=True, kw_only=True)
class WinrateConfig:
    """Generate from finished runs, judge, and report win rates at equal KL to the reference."""

    prompts: str = option("Table with a column `prompt`: text, or messages.")
    judge: str = option(
        "`oracle` (simulated worlds), or a reward model: a folder or hub name of a sequence "
        "classifier with one label."
    )
    output_dir: str = option("Folder for completions, tables and report.", short="-o")
    reference: str | None = option(
        "Model that KL is measured to, and that is played against. Default, and `base`: what each "
        "run started from.",
        None,
    )
    max_prompts: int | None = option("Random subset of at most this many prompts.", None)
    num_completions: int = option("Completions of each prompt.", 1)
    max_new_tokens: int = option("Most tokens of a completion.", 128)
    temperature: float = option("Temperature of sampling; 0 takes the likeliest token.", 1.0)
    batch_size: int = option("Completions that are written at once.", 32)
    decoding_weights: list[float] = option(
        "Also decode between reference (0) and policy (1), or beyond: each run is a curve over "
        "KL, without further betas.",
        [1.0],
    )
    kl: float | None = option(
        "KL to the reference, in nats per response, at which arms are compared. Default: the "
        "largest that every arm with several betas reaches.",
        None,
    )
    dtype: Literal["float32", "bfloat16"] = option("Precision of the weights.", "float32")
    device: str = option("Device, or auto: an accelerator where there is one.", "auto")
    seed: int = option("Seed of completions and of the subset.", 0)
    resume: bool = option("Go on from what an interrupted call with the same inputs left.", False)
    overwrite: bool = option("Replace an earlier result in that folder.", False)

    def __post_init__(self) -> None:
        check_range("max_prompts", self.max_prompts, 2)
        for name in ("num_completions", "max_new_tokens", "batch_size"):
            check_range(name, getattr(self, name), 1)
        check_seed(self.seed)
        weights = self.decoding_weights
        if not weights or len(set(weights)) < len(weights):
            raise ConfigError(f"decoding_weights: expected different numbers, got {weights}")
        for weight in weights:
            if not 0 < weight <= LARGEST_WEIGHT:
                raise ConfigError(
                    f"decoding_weights: expected 0 < weight <= {LARGEST_WEIGHT:g}, got {weight}"
                )
        for name, value in {"temperature": self.temperature, "kl": self.kl}.items():
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"{name}: expected a finite number >= 0, got {value}")
