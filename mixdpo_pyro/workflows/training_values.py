"""Values of a training that are refused before torch is imported: they need no library to judge.

The rules of the configuration classes of TRL and transformers stand behind seconds of imports;
here they stand without them.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from mixdpo_pyro.config_fields import check_positive, check_range, check_seed
from mixdpo_pyro.data.choice_kinds import NO_SETS
from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.training.batches.columns import ChoiceColumns, check_choices
from mixdpo_pyro.training.losses.accepted import check_losses, check_strength

__all__ = ["check_training_values"]

_NEEDED = {
    "model_name_or_path": "the policy's name or path",
    "output_dir": "the folder for the results",
}

_WHOLE = (
    "reader", "max_pairs", "group_by_pair", "precompute_ref_log_probs", "rank_column",
    "outcome_column", "grade_column",
)  # fmt: skip
"""Keys that need all training pairs at once."""

_POSITIVE = (
    "learning_rate", "num_train_epochs", "logging_steps", "save_steps", "eval_steps", "beta",
    "strength_learning_rate", "strength_initial_cv", "num_draws", "torch_empty_cache_steps",
)  # fmt: skip

_LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1, "precompute_ref_batch_size": 1, "num_draws": 1,
    "dataset_num_proc": 1, "dataloader_num_workers": 0, "max_length": 2, "lora_r": 1,
    "warmup_steps": 0, "weight_decay": 0, "max_grad_norm": 0, "annotator_block_size": 1,
    "strength_warmup_steps": 0, "bootstrap_samples": 2,
}  # fmt: skip
"""Key -> the least value that does not ruin a run."""

_STEPS = ("logging_steps", "eval_steps", "save_steps")

_PRECISIONS = (("fp16", "bf16"), ("fp16_full_eval", "bf16_full_eval"))


def check_training_values(values: Mapping[str, Any]) -> None:
    """Refuse what would end in an error later, in infinite weights, or in no training.

    Args:
        values: Key -> value, of those that were given.

    Raises:
        ConfigError: Naming the key.
    """
    for key, what in _NEEDED.items():
        if not values.get(key):
            raise ConfigError(f"{key}: {what} is missing")
    _check_source(values)
    for key in _POSITIVE:
        check_positive(key, values.get(key))
    for key, least in _LEAST.items():
        check_range(key, values.get(key), least)
    if values.get("max_steps", -1) != -1:
        check_range("max_steps", values["max_steps"], 1)
    check_seed(values.get("seed", 0))
    _check_strength_and_losses(values)
    _check_steps(values)
    _check_together(values)


def _check_source(values: Mapping[str, Any]) -> None:
    """One dataset or a mixture; and of a stream, what needs all of it."""
    if not values.get("dataset_name") and not values.get("datasets"):
        raise ConfigError("dataset_name: the file or name of the pairs is missing")
    is_streamed = values.get("dataset_streaming") or values.get("streaming")
    if values.get("datasets"):
        for key in ("dataset_name", "dataset_config", "reader", "dataset_test_split"):
            if values.get(key):
                raise ConfigError(f"{key}: not together with datasets, a mixture")
    if not is_streamed:
        if values.get("test_pairs"):
            raise ConfigError("test_pairs: is for dataset_streaming; otherwise use test_fraction")
        return
    keys = [key for key in _WHOLE if values.get(key)]
    keys += ["choice_set_column"] * (values.get("choice_set_column") not in (None, NO_SETS))
    keys += ["test_split_by"] * (values.get("test_split_by") == "annotator")
    if keys:
        raise ConfigError(f"{keys[0]}: needs the whole dataset, so not with dataset_streaming")
    if values.get("max_steps", -1) == -1:
        raise ConfigError("max_steps: missing, and a stream has no length (dataset_streaming)")
    if bool(values.get("dataset_test_split")) == bool(values.get("test_pairs")):
        raise ConfigError(
            "dataset_streaming: a random part cannot be held out of a stream; give either "
            "dataset_test_split, or test_pairs, which holds out the first pairs"
        )


def _check_strength_and_losses(values: Mapping[str, Any]) -> None:
    """The rules of `MixDPOConfig`, with its defaults for what was not given."""
    family, baseline = values.get("family") or "lognormal", values.get("baseline")
    check_strength(
        family,
        values.get("estimator", "auto"),
        baseline,
        values.get("flip_probability", 0.0),
    )
    losses = SimpleNamespace(
        loss_type=values.get("loss_type") or ["sigmoid"],
        loss_weights=values.get("loss_weights"),
        label_smoothing=values.get("label_smoothing", 0),
        f_divergence_type=values.get("f_divergence_type", "reverse_kl"),
        use_weighting=values.get("use_weighting", False),
        ld_alpha=values.get("ld_alpha"),
    )
    shares = values.get("annotator_column") is not None and family != "fixed"
    check_losses(losses, shares, baseline is not None)
    sets = values.get("choice_set_column")
    columns = ChoiceColumns(
        choice_set=None if sets == NO_SETS else sets,
        rank=values.get("rank_column"),
        outcome=values.get("outcome_column"),
        grade=values.get("grade_column"),
        ties=values.get("ties", "rao-kupper"),
    )
    check_choices(losses, columns, values.get("estimator", "auto"), baseline)


def _check_steps(values: Mapping[str, Any]) -> None:
    """A number of steps is whole; below 1 it is a share of them."""
    for key in _STEPS:
        value = values.get(key)
        if value is not None and value > 1 and value != int(value):
            raise ConfigError(f"{key}: expected a whole number or a share below 1, got {value}")


def _check_together(values: Mapping[str, Any]) -> None:
    """Options of transformers that exclude or need each other."""
    for both in _PRECISIONS:
        if all(values.get(key) for key in both):
            raise ConfigError(f"{both[0]}: not together with {both[1]}")
    evaluates, saves = values.get("eval_strategy", "no"), values.get("save_strategy", "steps")
    if values.get("load_best_model_at_end") and saves not in ("best", evaluates):
        raise ConfigError(
            "load_best_model_at_end: expected save_strategy 'best' or the same as eval_strategy, "
            f"got '{saves}' and '{evaluates}'"
        )
    schedule = values.get("lr_scheduler_type")
    if schedule in ("reduce_lr_on_plateau", "greedy") and evaluates == "no":
        raise ConfigError(f"lr_scheduler_type: '{schedule}' needs an eval_strategy, got 'no'")
    if values.get("dataloader_prefetch_factor") and not values.get("dataloader_num_workers"):
        raise ConfigError("dataloader_prefetch_factor: needs dataloader_num_workers of 1 or more")
