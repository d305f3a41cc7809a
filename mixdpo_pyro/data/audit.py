"""Look at preference pairs before anything is trained on them: what is wrong, and what is odd.

Nothing is repaired. Values that cannot be used make the data unfit to train on; what is odd
(contradictions, truncation, a preference for long responses) is counted for a person to judge.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from mixdpo_pyro.data.choice_kinds import (
    CHOICE_SET,
    GRADE,
    RANK,
    choice_columns_of,
    read_choice_values,
    signs_of_choices,
)
from mixdpo_pyro.data.choice_sets import ChoiceSets, fault_of_sets, settle_sets
from mixdpo_pyro.data.config import DoctorConfig
from mixdpo_pyro.data.loading import named_columns, read_source
from mixdpo_pyro.data.messages import text_of
from mixdpo_pyro.data.problems import Problem
from mixdpo_pyro.data.splitting import keys_of_pairs, prompt_groups, split_prompts
from mixdpo_pyro.data.validation import (
    ROW_COLUMN,
    TEXT_COLUMNS,
    PreferenceData,
    check_columns,
    drop_useless,
    find_problems,
)
from mixdpo_pyro.errors import DataError

__all__ = [
    "AnnotatorCounts",
    "BadValues",
    "ChoiceCounts",
    "Examination",
    "Example",
    "LengthBalance",
    "Repeats",
    "Truncation",
    "count_noun",
    "examine",
    "measure_lengths",
]

_SHOWN_PROBLEMS = 5

_SHOWN_ANNOTATORS = 5

_SCORE_COLUMNS = ("score_chosen", "score_rejected")


@dataclass(frozen=True)
class BadValues:
    """Values of one field that cannot be used.

    Attributes:
        field: Column or field.
        expected: What has to be there.
        count: Number of such values.
        first: The first few, row and value.
    """

    field: str
    expected: str
    count: int
    first: list[str]


@dataclass(frozen=True)
class Repeats:
    """Pairs that were judged more than once. A pair is a prompt and two responses in any order.

    Attributes:
        different: Number of different pairs.
        judged_again: Different pairs with more than one row.
        duplicates: Rows equal to an earlier one: prompt, choice and, where known, annotator.
        contradictory: Different pairs chosen both ways.
        within_annotators: Pairs that one annotator chose both ways, counted for each annotator;
            None without ids.
        between_annotators: Different pairs that two annotators chose in opposite ways; None
            without ids.
    """

    different: int
    judged_again: int
    duplicates: int
    contradictory: int
    within_annotators: int | None
    between_annotators: int | None


@dataclass(frozen=True)
class LengthBalance:
    """Is the chosen response the longer one?

    Attributes:
        unit: `tokens` or `characters`.
        share_longer: Share of pairs whose chosen response is longer, among those that differ.
        low: Lower end of its 95% interval, see :func:`measure_lengths`.
        high: Upper end.
        median_log_ratio: Median of log(length of chosen / length of rejected).
        equal: Number of pairs of equal length, not counted in the share.
    """

    unit: str
    share_longer: float
    low: float
    high: float
    median_log_ratio: float
    equal: int

    @property
    def is_uneven(self) -> bool:
        """Whether one half lies outside the interval."""
        return not self.low <= 0.5 <= self.high


@dataclass(frozen=True)
class Truncation:
    """What `max_length` does to the pairs.

    Attributes:
        max_length: The limit in tokens.
        longest: Tokens of the longest sequence.
        fully: Pairs whose prompt alone fills the limit; training leaves them out.
        partially: Other pairs of which a response is cut.
        made_equal: Pairs whose responses are the same once they are cut; they teach nothing.
        merged: Pairs whose last prompt token merges with what follows, so that the responses
            begin before the prompt ends.
    """

    max_length: int
    longest: int
    fully: int
    partially: int
    made_equal: int
    merged: int


@dataclass(frozen=True)
class AnnotatorCounts:
    """How many pairs the annotators judged.

    Attributes:
        column: The column of the ids.
        number: Number of annotators.
        quantiles: Pairs of an annotator: least, 25%, median, 75%, most.
        once: Annotators with a single pair.
        most: The busiest annotators and their pairs.
    """

    column: str
    number: int
    quantiles: list[float]
    once: int
    most: dict[str, int]


@dataclass(frozen=True)
class ChoiceCounts:
    """What people did: pairs, choices among several, rankings, ties and grades.

    Attributes:
        origin: How it is known which rows are one choice, see
            :class:`~mixdpo_pyro.data.choice_sets.ChoiceSets`.
        column: The column that says it, or None.
        pairs: Choices between two responses.
        sets: Number of responses, 3 or more -> choices among so many.
        rankings: How many of the choices are rankings.
        ties: Pairs that were judged a tie.
        tie_share: Their share of all pairs; None where nothing says what is one.
        grades: Grade -> number of pairs, where there are grades.
        note: What was done without being asked for, in a sentence.
    """

    origin: str
    column: str | None
    pairs: int
    sets: dict[int, int]
    rankings: int
    ties: int
    tie_share: float | None
    grades: dict[int, int] | None
    note: str | None


@dataclass(frozen=True)
class Example:
    """A pair as training sees it: the prompt ends where the responses begin."""

    row: int
    annotator: str | None
    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        source: File or hub name.
        reader: The reader, if any.
        columns: Columns of the pairs.
        num_rows: Rows read (pairs, with a reader).
        num_usable: Rows without a bad value, with two different responses.
        bad_values: What makes the data unfit.
        dropped: Reason -> number, of what a reader and training drop.
        ties: Judgements without a preference: those that a reader dropped, and pairs with equal
            `score_chosen` and `score_rejected`.
        has_prompt_column: False where the prompt is the shared beginning of the responses.
        is_conversational: Messages, not text.
        looks_like_hh: Whole dialogues in the form of HH-RLHF; their shared beginning may end
            inside a response.
        num_prompts: Different prompts, which are held out as a whole.
        repeated_prompts: Pairs of texts whose responses both begin with their prompt.
        joined_parts: Texts whose messages came in parts, which are read as one text.
        without_prompt: Pairs with an empty prompt.
        ends_in_space: Of these, pairs where TRL takes the chosen response for the prompt, because
            it ends in a space.
        repeats: Pairs that were judged more than once.
        lengths: Balance of lengths.
        truncation: Effect of `max_length`; None without a model.
        annotators: Pairs of the annotators; None without ids.
        choices: What was done: pairs, larger sets, ties, grades.
        examples: A few pairs.
    """

    source: str
    reader: str | None
    columns: list[str]
    num_rows: int
    num_usable: int
    bad_values: list[BadValues] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    ties: int = 0
    has_prompt_column: bool = True
    is_conversational: bool = False
    looks_like_hh: bool = False
    num_prompts: int = 0
    repeated_prompts: int = 0
    joined_parts: int = 0
    without_prompt: int = 0
    ends_in_space: int = 0
    repeats: Repeats | None = None
    lengths: LengthBalance | None = None
    truncation: Truncation | None = None
    annotators: AnnotatorCounts | None = None
    choices: ChoiceCounts | None = None
    examples: list[Example] = field(default_factory=list)

    @property
    def obstacles(self) -> list[str]:
        """Why one cannot train on these pairs; empty if one can."""
        found = []
        number_bad = sum(values.count for values in self.bad_values)
        if number_bad:
            found.append(f"{count_noun(number_bad, 'value')} cannot be used")
        if self.num_usable == 0:
            found.append("no usable pair is left")
        elif self.num_prompts == 1:
            found.append("all rows share one prompt, so none can be held out")
        if self.ends_in_space:
            responses = count_noun(self.ends_in_space, "chosen response")
            found.append(f"TRL takes {responses} for the prompt")
        if self.truncation is not None and 0 < self.num_usable == self.truncation.fully:
            found.append(f"every prompt fills the {self.truncation.max_length} tokens")
        return found

    @property
    def is_ready(self) -> bool:
        """Whether one can train on these pairs."""
        return not self.obstacles

    def to_dict(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        return {"ready_to_train": self.is_ready, "obstacles": self.obstacles, **asdict(self)}


def examine(name: str, config: DoctorConfig | None = None) -> Examination:
    """Read preference pairs and count everything that is wrong or odd about them.

    Args:
        name: File, saved dataset folder or hub name, see
            :func:`~mixdpo_pyro.data.loading.load_preferences`.
        config: Columns, reader, model and limits.

    Raises:
        ConfigError: If the reader or the model's tokenizer cannot be had.
        DataError: If the source cannot be read at all, or lacks a column.
    """
    config = config or DoctorConfig()
    source = read_source(
        name,
        config.split,
        config.dataset_config,
        config.reader,
        named_columns(config),
        config.annotator,
    )
    column, pairs, problems = source.annotator_column, source.pairs, []
    done: tuple[str, ...] = ()
    sets = None
    if len(pairs) or not source.problems:
        check_columns(pairs, name, column)
        pairs, sets = settle_sets(pairs, name, column, config.choice_set)
        done = choice_columns_of(pairs.column_names, sets.has_ranks)
        problems = list(find_problems(pairs, name, column, done))
        if sets.has_ranks and not problems:
            problems = list(filter(None, [fault_of_sets(pairs, column)]))
    clean = _without_rows(pairs, {problem.row for problem in problems})
    if config.pseudonymise is not None:
        clean = PreferenceData(clean, name, {}, column).pseudonymised(config.pseudonymise).pairs
        problems = [replace(p, got="an id") if p.field == column else p for p in problems]
    lost = {problem.row for problem in source.problems} if config.reader is None else set()
    facts: dict[str, Any] = {
        "source": name,
        "reader": config.reader,
        "columns": [c for c in source.pairs.column_names if c != ROW_COLUMN],
        "num_rows": len(source.pairs) + len(lost),
        "bad_values": _group_problems([*source.problems, *problems]),
    }
    if len(clean) == 0:
        return Examination(num_usable=0, dropped=source.dropped, **facts)
    usable, useless = drop_useless(clean)
    facts |= {
        "num_usable": len(usable),
        "dropped": dict(Counter(source.dropped) + Counter(useless)),
        "ties": source.dropped.get("ties", 0) + _count_equal_scores(clean),
        "has_prompt_column": "prompt" in clean.column_names,
        "is_conversational": isinstance(clean[0]["chosen"], list),
        "looks_like_hh": _looks_like_hh(clean),
        "joined_parts": source.joined,
        "annotators": _count_annotators(clean, column),
    }
    if sets is not None and len(usable):
        facts["choices"] = _count_choices(usable, sets, done)
    return Examination(**facts, **(_look_at(usable, column, done, config) if len(usable) else {}))


def measure_lengths(
    chosen: Sequence[int], rejected: Sequence[int], keys: Sequence[str], unit: str
) -> LengthBalance | None:
    r"""Balance of lengths, or None where all are equal.

    The interval of the share :math:`p` is Wilson's (1927) with the effective number of pairs
    :math:`p(1-p)/s^2`, where :math:`s` is the standard error that is robust to rows about the same
    two responses. It is Wilson's own where every pair has one row.

    Args:
        chosen: Lengths of the chosen responses, at least 1.
        rejected: Lengths of the rejected ones.
        keys: Rows with one key are about the same two responses.
        unit: What is counted.
    """
    table = pd.DataFrame({"chosen": chosen, "rejected": rejected, "key": keys})
    median = float(np.median(np.log(table["chosen"] / table["rejected"])))
    unequal = table[table["chosen"] != table["rejected"]]
    if unequal.empty:
        return None
    is_longer = (unequal["chosen"] > unequal["rejected"]).astype(float)
    share = float(is_longer.mean())
    residuals = (is_longer - share).groupby(unequal["key"]).sum()
    variance = float((residuals**2).sum()) / len(unequal) ** 2
    number = share * (1 - share) / variance if variance > 0 else float(len(residuals))
    low, high = _wilson_interval(share, min(number, len(unequal)))
    return LengthBalance(unit, share, low, high, median, len(table) - len(unequal))


def _without_rows(pairs: Dataset, rows: set[int]) -> Dataset:
    if not rows:
        return pairs
    return pairs.select(np.flatnonzero(~np.isin(pairs[ROW_COLUMN][:], list(rows))))


def _group_problems(problems: Iterable[Problem]) -> list[BadValues]:
    groups: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[problem.field, problem.expected].append(problem)
    return [
        BadValues(
            name, expected, len(group), [f"row {p.row}: {p.got}" for p in group[:_SHOWN_PROBLEMS]]
        )
        for (name, expected), group in groups.items()
    ]


def _count_equal_scores(pairs: Dataset) -> int:
    if not set(_SCORE_COLUMNS) <= set(pairs.column_names):
        return 0
    scores = zip(*(pairs[name] for name in _SCORE_COLUMNS), strict=True)
    return sum(one is not None and one == other for one, other in scores)


def _count_annotators(pairs: Dataset, column: str | None) -> AnnotatorCounts | None:
    if column is None:
        return None
    counts = Counter(_id_texts(pairs, column))
    numbers = np.array(list(counts.values()))
    return AnnotatorCounts(
        column=column,
        number=len(counts),
        quantiles=np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1]).tolist(),
        once=int((numbers == 1).sum()),
        most=dict(counts.most_common(_SHOWN_ANNOTATORS)),
    )


def _id_texts(pairs: Dataset, column: str) -> list[str]:
    from mixdpo_pyro.inference.choices import read_ids  # loads torch

    return read_ids(pairs[column][:]).tolist()


def _read_done(pairs: Dataset, done: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Checked values of the columns that say what was done."""
    return {
        name: read_choice_values(name, pairs[name][:], lambda _, words: DataError(words))
        for name in done
    }


def _count_choices(pairs: Dataset, sets: ChoiceSets, done: tuple[str, ...]) -> ChoiceCounts:
    values = _read_done(pairs, done)
    choice = pd.Series(values.get(CHOICE_SET, np.arange(len(pairs))))
    size = choice.value_counts() + 1
    counts = {int(k): int(n) for k, n in size.value_counts().sort_index().items()}
    ranks = values.get(RANK, np.full(len(pairs), np.nan))
    sign = signs_of_choices(values)
    grade, number = np.unique(values.get(GRADE, []), return_counts=True)
    grades = dict(zip(grade.astype(int).tolist(), number.tolist(), strict=True))
    ties = 0 if sign is None else int((sign == 0).sum())
    return ChoiceCounts(
        origin=sets.origin,
        column=sets.column,
        pairs=counts.pop(2, 0),
        sets=counts,
        rankings=int(choice[np.isfinite(ranks)].nunique()),
        ties=ties,
        tie_share=None if sign is None else ties / len(pairs),
        grades=grades if GRADE in values else None,
        note=sets.describe(),
    )


def _look_at(
    pairs: Dataset, column: str | None, done: tuple[str, ...], config: DoctorConfig
) -> dict[str, Any]:
    """What only usable pairs can tell."""
    texts = split_prompts(pairs)
    keys = keys_of_pairs(texts["prompt"], texts["chosen"], texts["rejected"])
    annotators = None if column is None else _id_texts(pairs, column)
    is_empty = [not prompt for prompt in texts["prompt"]]
    is_misread = [
        _is_misread(value) for value in ([] if "prompt" in pairs.column_names else pairs["chosen"])
    ]
    tokens = None if config.model is None else _tokenize(pairs, config.model)
    if tokens is None:
        unit, sizes = "characters", _character_lengths(texts)
        truncation = None
    else:
        unit, sizes = "tokens", [[len(ids) for ids in tokens[n]] for n in TEXT_COLUMNS[1:]]
        truncation = _measure_truncation(tokens, config.max_length)
    sign = signs_of_choices(_read_done(pairs, done))
    sign = np.ones(len(pairs), dtype=np.int64) if sign is None else sign
    return {
        "num_prompts": int(prompt_groups(pairs).max()) + 1,
        "repeated_prompts": _count_repeated_prompts(texts),
        "without_prompt": sum(is_empty),
        "ends_in_space": sum(map(all, zip(is_empty, is_misread, strict=False))),
        "repeats": _count_repeats(keys, texts, annotators, sign),
        "lengths": _measure_preferred(sizes, sign, keys, unit),
        "truncation": truncation,
        "examples": _choose_examples(pairs, texts, tokens, annotators, config),
    }


def _count_repeated_prompts(texts: dict[str, list]) -> int:
    return sum(
        isinstance(prompt, str) and prompt != "" and all(r.startswith(prompt) for r in responses)
        for prompt, *responses in zip(*(texts[name] for name in TEXT_COLUMNS), strict=True)
    )


def _looks_like_hh(pairs: Dataset) -> bool:
    first = pairs[0]["chosen"]
    has_prompt = "prompt" in pairs.column_names
    return isinstance(first, str) and first.startswith("\n\nHuman:") and not has_prompt


def _is_misread(chosen: str | list) -> bool:
    return isinstance(chosen, str) and chosen.endswith(" ")


def _character_lengths(texts: dict[str, list]) -> list[list[int]]:
    return [[max(len(text_of(value)), 1) for value in texts[name]] for name in TEXT_COLUMNS[1:]]


def _tokenize(pairs: Dataset, model: str) -> dict[str, list[list[int]]]:
    from mixdpo_pyro.data.tokenization import count_merged_prompts, load_tokenizer, tokenize_pairs

    wanted = (*TEXT_COLUMNS, "tools", "chat_template_kwargs")
    columns = [c for c in wanted if c in pairs.column_names]
    tokenizer = load_tokenizer(model)
    tokenized = tokenize_pairs(pairs.select_columns(columns), tokenizer)
    found = {name: tokenized[f"{name}_ids"][:] for name in TEXT_COLUMNS}
    merged = count_merged_prompts(tokenized, tokenized, tokenizer)
    return {**found, "decode": tokenizer.decode, "merged": merged}


def _measure_truncation(tokens: dict[str, Any], max_length: int) -> Truncation:
    longest = fully = partially = made_equal = 0
    for prompt, chosen, rejected in zip(*(tokens[n] for n in TEXT_COLUMNS), strict=True):
        length = len(prompt) + max(len(chosen), len(rejected))
        room = max_length - len(prompt)
        longest = max(longest, length)
        if room <= 0:
            fully += 1
        elif length > max_length:
            partially += 1
            made_equal += chosen[:room] == rejected[:room]
    return Truncation(max_length, longest, fully, partially, made_equal, tokens["merged"])


def _measure_preferred(
    sizes: list[list[int]], sign: np.ndarray, keys: list[str], unit: str
) -> LengthBalance | None:
    """Balance of lengths of what was preferred; ties prefer nothing."""
    is_loss, is_no_tie = sign < 0, sign != 0
    if not is_no_tie.any():
        return None
    chosen, rejected = np.array(sizes)
    preferred = np.where(is_loss, rejected, chosen)[is_no_tie].tolist()
    other = np.where(is_loss, chosen, rejected)[is_no_tie].tolist()
    return measure_lengths(preferred, other, np.array(keys)[is_no_tie].tolist(), unit)


def _count_repeats(
    keys: list[str], texts: dict[str, list], annotators: list[str] | None, sign: np.ndarray
) -> Repeats:
    """Repeats of judgements; a tie agrees with either choice."""
    is_first = [
        None if s == 0 else (text_of(chosen) <= text_of(rejected)) == (s > 0)
        for chosen, rejected, s in zip(texts["chosen"], texts["rejected"], sign, strict=True)
    ]
    table = pd.DataFrame({"key": keys, "is_first": is_first, "annotator": annotators or ""})
    by_key = table.groupby("key")
    both_ways = by_key["is_first"].nunique() == 2
    within = between = None
    if annotators is not None:
        within = int((table.groupby(["key", "annotator"])["is_first"].nunique() == 2).sum())
        disputed = table[table["key"].map(both_ways)]
        between = int((disputed.groupby("key")["annotator"].nunique() > 1).sum())
    return Repeats(
        different=len(both_ways),
        judged_again=int((by_key.size() > 1).sum()),
        duplicates=int(table.duplicated().sum()),
        contradictory=int(both_ways.sum()),
        within_annotators=within,
        between_annotators=between,
    )


def _wilson_interval(share: float, number: float) -> tuple[float, float]:
    quantile = 1.959963984540054  # of the standard normal distribution at 97.5%
    weight = quantile**2 / number
    middle = (share + weight / 2) / (1 + weight)
    half = quantile * math.sqrt(share * (1 - share) / number + weight / (4 * number))
    half /= 1 + weight
    return middle - half, middle + half


def _choose_examples(
    pairs: Dataset,
    texts: dict[str, list],
    tokens: dict[str, Any] | None,
    annotators: list[str] | None,
    config: DoctorConfig,
) -> list[Example]:
    """Random pairs, decoded from the tokens where there are any."""
    order = np.random.default_rng(config.seed).permutation(len(pairs))[: config.examples]

    def show(name: str, index: int) -> str:
        if tokens is None:
            return _as_text(texts[name][index])
        return tokens["decode"](tokens[name][index])

    return [
        Example(
            pairs[index][ROW_COLUMN],
            None if annotators is None else annotators[index],
            *(show(name, index) for name in TEXT_COLUMNS),
        )
        for index in sorted(order.tolist())
    ]


def _as_text(value: str | list) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(f"{message['role']}: {text_of([message])}" for message in value)


def count_noun(number: int, noun: str) -> str:
    """A number with its noun, in the plural where it is not 1."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
