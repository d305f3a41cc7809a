"""What stands beside the mixed likelihood, and why other losses and options do not.

Neither torch nor TRL is imported: a wrong value is refused before they are.
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from mixdpo_pyro.errors import ConfigError

if TYPE_CHECKING:
    from trl import DPOConfig

__all__ = ["check_losses", "check_strength"]

_FUSED_HEAD = (1, 16)

_ONE_RESPONSE = "it scores each response by itself, and a strength weighs differences"

_NO_PROBABILITY = "it is not the log-probability of a choice, so no strengths average it"

_SORTED = "it sorts the margins of a batch, which then belong to no pair and no annotator"

_REFUSED = {
    "hinge": _NO_PROBABILITY,
    "ipo": _NO_PROBABILITY,
    "exo_pair": f"{_NO_PROBABILITY}; for label noise use flip_probability",
    "nca_pair": _ONE_RESPONSE,
    "robust": "use baseline 'robust' with family 'fixed', or flip_probability",
    "bco_pair": _ONE_RESPONSE,
    "sppo_hard": _ONE_RESPONSE,
    "aot": _SORTED,
    "aot_unpaired": _SORTED,
    "apo_zero": _ONE_RESPONSE,
    "apo_down": _ONE_RESPONSE,
    "discopop": _NO_PROBABILITY,
    "sigmoid_norm": "its margins are per token, those of strengths and reports per response",
}
"""Losses of trl.DPOTrainer that the mixed likelihood cannot stand for."""

_DEFAULTS = {
    "label_smoothing": (0, "flip_probability is its part of the likelihood"),
    "f_divergence_type": ("reverse_kl", "margins are differences of log-ratios, in nats"),
}


def check_strength(
    family: str, estimator: str, baseline: str | None, flip_probability: float
) -> None:
    """Refuse options of the strength that do not go together, and label noise beyond one half.

    Args:
        family: Distribution of the strength, or `fixed`.
        estimator: How the expectation over it is computed.
        baseline: Another paper's loss in place of the likelihood, or None.
        flip_probability: Probability that a label was flipped.

    Raises:
        ConfigError: Naming the option.
    """
    if not 0 <= flip_probability < 0.5:
        raise ConfigError(f"flip_probability: expected 0 <= value < 0.5, got {flip_probability}")
    if baseline is not None and family != "fixed":
        raise ConfigError(
            f"baseline: '{baseline}' has a strength that is not random, so it needs "
            f"family 'fixed', got '{family}'"
        )
    if baseline == "beta-dpo" and flip_probability > 0:
        raise ConfigError("flip_probability: 'beta-dpo' has no label noise; set it to 0")
    if estimator == "series" and family == "lognormal":
        raise ConfigError("estimator: 'series' is for family 'gamma', got family 'lognormal'")


def check_losses(config: "DPOConfig", shares_strengths: bool, has_baseline: bool) -> None:
    """The mixed likelihood takes the place of the sigmoid loss; `sft` may stand beside it.

    Args:
        config: What was asked for.
        shares_strengths: Whether pairs of one annotator share a strength.
        has_baseline: Whether another paper's loss takes the place of the likelihood.

    Raises:
        ConfigError: Naming the option, and why its value has no place here.
    """
    loss_type = config.loss_type
    types = [loss_type] if isinstance(loss_type, str) else loss_type
    _check_types(types)
    if config.loss_weights is not None and len(config.loss_weights) != len(types):
        raise ConfigError(
            f"loss_weights: expected one for each loss_type, got {len(config.loss_weights)} for "
            f"{len(types)}"
        )
    for weight in config.loss_weights or ():
        if not 0 < weight < float("inf"):
            raise ConfigError(f"loss_weights: expected finite numbers > 0, got {weight}")
    for name, (only, why) in _DEFAULTS.items():
        if (value := getattr(config, name)) != only:
            raise ConfigError(f"{name}: expected {only!r}, got {value!r}; {why}")
    if config.use_weighting:
        _check_weighting(types, shares_strengths, has_baseline)


def _check_types(loss_type: Sequence[str]) -> None:
    expected = "loss_type: expected 'sigmoid' once, alone or with 'sft'"
    for name in loss_type:
        if name not in ("sigmoid", "sft"):
            why = _REFUSED.get(name, "trl.DPOTrainer has no such loss")
            raise ConfigError(f"{expected}, got '{name}'; {why}")
    if loss_type.count("sigmoid") != 1 or loss_type.count("sft") > 1:
        raise ConfigError(f"{expected}, got {loss_type}")


def _check_weighting(loss_type: Sequence[str], shares_strengths: bool, has_baseline: bool) -> None:
    trl = version("trl")
    conflicts = {
        "loss_type 'sft'": ("sft" in loss_type, "that is a loss of tokens, not of pairs"),
        "annotator_column": (
            shares_strengths,
            "pairs that share a strength have one likelihood together",
        ),
        "baseline": (has_baseline, "other papers' losses take no weights"),
        f"trl {trl}": (
            tuple(map(int, trl.split(".")[:2])) < _FUSED_HEAD,
            "its weights are read from the fused head that trl has since 1.16",
        ),
    }
    for name, (is_given, why) in conflicts.items():
        if is_given:
            raise ConfigError(f"use_weighting: not with {name}; {why}")
