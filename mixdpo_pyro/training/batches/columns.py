"""Which columns say what was done, and what does not go together with them.

Neither torch nor TRL is imported: a wrong value is refused before they are.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from mixdpo_pyro.data.validation import TEXT_COLUMNS
from mixdpo_pyro.errors import ConfigError

__all__ = ["ChoiceColumns", "TieModel", "check_choices"]

TieModel: TypeAlias = Literal["rao-kupper", "davidson", "drop"]


@dataclass(frozen=True)
class ChoiceColumns:
    """The columns that say what was done, and the model of ties; None where there is none."""

    choice_set: str | None = None
    rank: str | None = None
    outcome: str | None = None
    grade: str | None = None
    ties: TieModel = "rao-kupper"

    @property
    def names(self) -> tuple[str | None, ...]:
        """The columns."""
        return self.choice_set, self.rank, self.outcome, self.grade

    @property
    def judgement(self) -> str | None:
        """The column of outcomes or grades."""
        return self.outcome or self.grade

    @property
    def are_given(self) -> bool:
        """Whether choices are other than plain pairs."""
        return self.choice_set is not None or self.judgement is not None


def check_choices(
    config: Any, columns: ChoiceColumns, estimator: str, baseline: str | None
) -> None:
    """Refuse columns that contradict each other, and losses that are of pairs only.

    Args:
        config: What was asked for.
        columns: The columns that say what was done.
        estimator: Name of the estimator.
        baseline: Another paper's loss, or None.

    Raises:
        ConfigError: Naming the option, and why its value has no place here.
    """
    if columns.ties not in get_args(TieModel):
        names = ", ".join(get_args(TieModel))
        raise ConfigError(f"ties: expected one of {names}, got {columns.ties!r}")
    _check_columns(columns)
    if not columns.are_given:
        return
    judged = columns.judgement is not None
    are_pairs = columns.outcome is not None and columns.ties == "drop"
    conflicts = {
        f"baseline: not '{baseline}'": (baseline and not are_pairs, "that is a loss of pairs"),
        "use_weighting: not": (config.use_weighting and not are_pairs, "its weights are of pairs"),
        "estimator: not 'series'": (
            estimator == "series" and not are_pairs, "which is the series of pairs"
        ),
        "loss_type: not 'sft'": (
            judged and "sft" in config.loss_type, "the first response need not be the better one"
        ),
        "ld_alpha: not": (
            not judged and config.ld_alpha is not None,
            "it gives a response another score beside each other one",
        ),
    }  # fmt: skip
    for words, (is_given, why) in conflicts.items():
        if is_given:
            named = "outcomes or grades" if judged else "choice_set_column"
            raise ConfigError(f"{words} with {named}; {why}")


def _check_columns(columns: ChoiceColumns) -> None:
    if columns.rank is not None and columns.choice_set is None:
        raise ConfigError("rank_column: needs a choice_set_column; a rank is one within a set")
    if columns.rank is not None and columns.judgement is not None:
        raise ConfigError("rank_column: not with outcomes or grades, which judge pairs")
    if columns.outcome is not None and columns.grade is not None:
        raise ConfigError("grade_column: not with outcome_column; one says what was done")
    seen: dict[str, str] = {}
    for name in ("choice_set", "rank", "outcome", "grade"):
        column = getattr(columns, name)
        if column is None:
            continue
        if column in TEXT_COLUMNS:
            raise ConfigError(f"{name}_column: '{column}' holds the texts")
        if column in seen:
            raise ConfigError(f"{name}_column: '{column}' is the {seen[column]}_column too")
        seen[column] = name
