"""What the pairs of a run say was done, named to the trainer."""

from dataclasses import replace

from mixdpo_pyro.data.choice_kinds import CHOICE_SET, GRADE, NO_SETS, OUTCOME, RANK
from mixdpo_pyro.data.choice_sets import with_sets
from mixdpo_pyro.data.validation import ROW_COLUMN, PreferenceData
from mixdpo_pyro.training.batches.columns import check_choices
from mixdpo_pyro.training.config import MixDPOConfig

__all__ = ["asked_sets", "name_choice_columns", "with_same_sets"]


def asked_sets(training: MixDPOConfig) -> str | None:
    """The column of choice sets that was asked for; `none` beside named outcomes or grades."""
    if training.choice_set_column is None and training.choice_columns().judgement is not None:
        return NO_SETS
    return training.choice_set_column


def name_choice_columns(training: MixDPOConfig, data: PreferenceData) -> None:
    """Name to the trainer what the training data say was done, beside what was asked for.

    Sets of one row each are plain pairs. Grades go before outcomes.

    Raises:
        ConfigError: If a loss was asked for that is none of these choices.
    """
    known = data.choice_columns
    has_sets = CHOICE_SET in known and len(set(data.pairs[CHOICE_SET])) < len(data.pairs)
    training.choice_set_column = CHOICE_SET if has_sets else None
    if training.choice_columns().judgement is None:
        training.grade_column = GRADE if GRADE in known else None
        training.outcome_column = OUTCOME if OUTCOME in known and GRADE not in known else None
    if has_sets and training.rank_column is None:
        training.rank_column = RANK if RANK in known else None
    check_choices(training, training.choice_columns(), training.estimator, training.baseline)


def with_same_sets(training: MixDPOConfig, data: PreferenceData) -> PreferenceData:
    """Held-out pairs with a choice set each, where only the training pairs have sets."""
    if training.choice_set_column is None or CHOICE_SET in data.pairs.column_names:
        return data
    rows = [str(row) for row in data.pairs[ROW_COLUMN]]
    return replace(data, pairs=with_sets(data.pairs, rows))
