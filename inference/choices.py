"""The data of every fit: margins of the chosen over the rejected response, and who chose."""

import math
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from mixdpo_pyro.inference.outcomes import Outcomes, Ties, read_outcomes
from mixdpo_pyro.models.observation import Observation

__all__ = [
    "Choices",
    "agreement",
    "fault_of_id",
    "fault_of_margins",
    "id_text",
    "margin_array",
    "number_ids",
    "number_labels",
    "orient_at_random",
    "random_people",
    "random_subset",
    "read_choices",
    "read_ids",
    "select_annotators",
    "select_choices",
    "select_units",
    "typical_size",
    "with_margins",
    "with_observation",
    "with_parameters",
    "without_ids",
]

_ID_RULE = "an annotator id (text or a whole number)"

_MAX_ID_LENGTH = 1_000

_NUMBER = re.compile(r"-?[0-9]+")

_UNFIT = re.compile("[\0\ud800-\udfff]")
"""What files cannot hold: the null character, and half of a character (a lone surrogate)."""

_MAX_MARGIN = 1e20
"""Largest margin in nats; float32's lowest number and other placeholders lie beyond."""

_MAX_RATIO = 1e10
"""Largest margin in units of the median; from about 1e12 on a fit gives NaN."""


@dataclass(frozen=True, repr=False, eq=False)
class Choices:
    """Checked margins and annotators.

    Attributes:
        margin: Chosen minus rejected log-ratio in nats, float64, shape `(pairs,)`.
        annotator: Index of the annotator of each pair into `labels`, or None without ids.
        labels: Annotator ids as text, in the order of :func:`number_ids`; empty without ids.
        outcomes: What was done where choices are not plain pairs; rows are then those of sets (the
            chosen response over each other one), or pairs with ties or grades.
        pair: Number of what was judged, equal where several people judged the same, or None.
        responses: Numbers of the two responses of each row, or None.
        margin_error: Standard deviation of the errors of the margins of pairs, in nats, as
            assumed: a choice is made by the margin plus its error.
    """

    margin: Float[np.ndarray, " pairs"]
    annotator: Int[np.ndarray, " pairs"] | None = None
    labels: tuple[str, ...] = ()
    outcomes: Outcomes | None = None
    pair: Int[np.ndarray, " pairs"] | None = None
    responses: Int[np.ndarray, "pairs 2"] | None = None
    margin_error: float = 0.0

    def __repr__(self) -> str:
        annotators = f"{self.num_annotators:,} annotators" if self.labels else "no annotator ids"
        return f"Choices({self.describe()}, {annotators})"

    def describe(self) -> str:
        """What the choices are, such as "1,000 pairs"."""
        return f"{self.num_pairs:,} pairs" if self.outcomes is None else self.outcomes.describe()

    @property
    def num_pairs(self) -> int:
        """Number of rows: pairs of the chosen and another response."""
        return len(self.margin)

    @property
    def num_choices(self) -> int:
        """How many choices there are, pairs or sets."""
        return self.num_pairs if self.outcomes is None else self.outcomes.num_choices

    @property
    def num_annotators(self) -> int:
        """Number of annotators; 0 without ids."""
        return len(self.labels)

    @property
    def num_units(self) -> int:
        """Independent units: people where they chose repeatedly, otherwise choices."""
        return self.num_annotators if self.has_panels else self.num_choices

    @property
    def has_panels(self) -> bool:
        """Whether ids are given and somebody chose more than once."""
        return 0 < self.num_annotators < self.num_choices

    @property
    def choice(self) -> Int[np.ndarray, " pairs"]:
        """Number of the choice of each row."""
        return np.arange(self.num_pairs) if self.outcomes is None else self.outcomes.choice

    @property
    def unit(self) -> Int[np.ndarray, " pairs"]:
        """Number of the independent unit of each row, see `num_units`."""
        return self.annotator if self.has_panels else self.choice  # type: ignore[return-value]

    def by_choice(self, value: Any) -> np.ndarray:
        """Values of the choices, from values of rows that are equal within each of them."""
        value = np.asarray(value)
        return value if self.outcomes is None else value[np.unique(self.choice, True)[1]]

    @property
    def agrees(self) -> Float[np.ndarray, " choices"]:
        """Whether choices agree with their margins: 1 or 0, and in between what says neither.

        Of a set, whether the response with the largest utility was chosen, ties shared; of a
        judgement, one half for a tie, and for a grade how far it goes.
        """
        if self.outcomes is None:
            return agreement(self.margin)
        if not self.outcomes.are_sets:
            return (1 + np.sign(self.margin) * self.outcomes.sign) / 2
        lowest = np.full(self.num_choices, np.inf)
        np.minimum.at(lowest, self.choice, self.margin)
        shared = np.bincount(self.choice, self.margin == 0, self.num_choices)
        return np.where(lowest < 0, 0.0, 1 / (1 + shared))


def with_margins(choices: Choices, margin: Float[np.ndarray, " pairs"]) -> Choices:
    """The same choices with other margins; rows whose margin is NaN are dropped.

    A set loses the responses of these rows, which leaves the odds of the others as they were.
    """
    is_kept = ~np.isnan(margin)
    changed = replace(choices, margin=margin)
    return changed if is_kept.all() else _take_rows(changed, is_kept)


def with_observation(choices: Choices, observation: Observation) -> Choices:
    """The same choices under another observation model."""
    assert choices.outcomes is not None
    return replace(choices, outcomes=replace(choices.outcomes, observation=observation))


def with_parameters(choices: Choices, vector: Float[np.ndarray, " parameters"]) -> Choices:
    """The same choices, the parameters of their observation model put there on the real line."""
    assert choices.outcomes is not None
    point = torch.tensor(vector)  # a copy: numpy hands out read-only views
    return with_observation(choices, choices.outcomes.observation.constrained(point))


def agreement(margin: Float[np.ndarray, "*batch"]) -> Float[np.ndarray, "*batch"]:
    """Whether choices agree with their margins: 1 or 0, and one half for a margin of zero."""
    return (margin > 0) + 0.5 * (margin == 0)


def orient_at_random(
    margin: Float[np.ndarray, " pairs"], rng: np.random.Generator
) -> tuple[Float[np.ndarray, " pairs"], np.ndarray]:
    """Call either response the first, at random.

    Args:
        margin: Margins of the chosen over the rejected response.
        rng: Source of the orientation.

    Returns:
        Margins of the first over the second response, and whether the first was chosen.
    """
    is_first = rng.random(len(margin)) < 0.5
    return np.where(is_first, margin, -margin), is_first


def random_subset(size: int, limit: int, rng: np.random.Generator) -> Int[np.ndarray, " kept"]:
    """All numbers below `size`, or `limit` of them drawn at random, in ascending order."""
    if size <= limit:
        return np.arange(size)
    return np.sort(rng.choice(size, limit, replace=False))


def read_choices(
    margin: Any,
    annotator: Any = None,
    *,
    choice_set: Any = None,
    rank: Any = None,
    outcome: Any = None,
    ties: Ties = "rao-kupper",
    pair: Any = None,
    response_a: Any = None,
    response_b: Any = None,
) -> Choices:
    """Check margins, annotator ids, what was done, and what was judged.

    All may be lists, numpy arrays, torch tensors, or columns of pandas, polars and pyarrow.

    Args:
        margin: Margins in nats, chosen minus rejected, shape `(pairs,)`; or checked choices, which
            are returned as they are.
        annotator: Annotator ids, same length, as :func:`read_ids` reads them, or None.
        choice_set: Ids of choice sets; rows of one set are one choice among several responses, the
            chosen one over each other one. Sets of one row are pairs.
        rank: Ranks of the rejected responses in their set, 2, 3, ..., the chosen one being 1;
            a last rank that several share, or None: not ranked further.
        outcome: `"win"`, `"tie"` or `"loss"` of the first response of each pair, whose margin is
            that over the second one; or a grade -k, ..., k, 0 being a tie.
        ties: Model of ties: `"rao-kupper"` (a threshold) or `"davidson"`.
        pair: Ids of what was judged, the same for every annotator and either orientation; of a
            choice set, one id for all of its rows. Default: the two responses, where given.
        response_a: Ids of one response of each row; with `response_b`, of the other one. Where
            they are given, what was judged in a choice set are all of its responses, and `pair`
            may be a number of each row.
        response_b: See `response_a`.

    Returns:
        The checked data.

    Raises:
        ValueError: If there are no margins, a margin is not finite or too large beside the others,
            all are equal, an id is missing, the lengths differ, all choices are one annotator's,
            ranks or outcomes are impossible, or a set has several annotators, or several pairs.
        TypeError: If margins are not numbers, or ids neither text nor whole numbers.

    Example:
        >>> read_choices([0.3, -1.2, 2.0], ["ann", "bob", "ann"]).labels
        ('ann', 'bob')
    """
    if isinstance(margin, Choices):
        return margin
    margin = margin_array(margin)
    _check_margin(margin)
    sets = None if choice_set is None else _ids_of_rows(choice_set, margin, "choice_set")
    outcomes, margin = read_outcomes(margin, sets, rank, outcome, ties)
    judged, responses = _read_judged(margin, pair, response_a, response_b)
    if outcomes is not None and outcomes.are_sets and judged is not None:
        judged = _number_sets(outcomes.choice, judged, responses)
    if annotator is None:
        return Choices(margin, outcomes=outcomes, pair=judged, responses=responses)
    ids = _ids_of_rows(annotator, margin, "annotator")
    labels, index = number_ids(ids)
    if len(labels) == 1:
        raise ValueError(
            f"Expected at least two annotators, got {labels[0]} only: one person's choices say "
            "nothing about differences between people; fit without annotator ids"
        )
    if outcomes is not None:
        _check_one_annotator(outcomes, index, labels, sets)
    return Choices(margin, index, labels, outcomes, judged, responses)


def _read_judged(
    margin: np.ndarray, pair: Any, response_a: Any, response_b: Any
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Numbers of pairs and of responses, from their ids."""
    if (response_a is None) != (response_b is None):
        raise ValueError("Expected response_a and response_b, or neither of them")
    responses = None
    if response_a is not None:
        columns = [
            _ids_of_rows(ids, margin, name)
            for name, ids in (("response_a", response_a), ("response_b", response_b))
        ]
        number = number_labels(np.concatenate(columns))
        responses = number.reshape(2, -1).T
    if pair is not None:
        return number_labels(_ids_of_rows(pair, margin, "pair")), responses
    if responses is None:
        return None, None
    unordered = np.sort(responses, axis=1)
    return np.unique(unordered, axis=0, return_inverse=True)[1].reshape(-1), responses


def _number_sets(
    choice: Int[np.ndarray, " rows"],
    pair: Int[np.ndarray, " rows"],
    responses: Int[np.ndarray, "rows 2"] | None,
) -> Int[np.ndarray, " rows"]:
    """Number of what each row's set was a choice among, whichever response was chosen."""
    if responses is None:
        first = np.unique(choice, return_index=True)[1][choice]
        if (other := np.flatnonzero(pair != pair[first])).size:
            raise ValueError(
                f"Expected one pair id per choice set, got another one at index {other[0]}; "
                "response_a and response_b say what a set is a choice among"
            )
        return pair
    cells = np.unique(np.stack([np.repeat(choice, 2), responses.ravel()], axis=1), axis=0)
    members = np.split(cells[:, 1], np.flatnonzero(np.diff(cells[:, 0])) + 1)
    known: dict[bytes, int] = {}
    number = [known.setdefault(each.tobytes(), len(known)) for each in members]
    return np.array(number)[choice]


def random_people(
    choices: Choices,
    rng: np.random.Generator,
    *,
    max_people: int | None = None,
    max_choices: int | None = None,
) -> Int[np.ndarray, " people"] | None:
    """Annotators drawn at random, at least two, as many as the limits allow; None for all."""
    assert choices.annotator is not None
    max_people = choices.num_annotators if max_people is None else max_people
    fits = max_choices is None or choices.num_choices <= max_choices
    if choices.num_annotators <= max_people and fits:
        return None
    order = rng.permutation(choices.num_annotators)[:max_people]
    if max_choices is not None:
        total = np.bincount(choices.by_choice(choices.annotator))[order].cumsum()
        order = order[: max(2, int((total <= max_choices).sum()))]
    return np.sort(order)


def select_annotators(choices: Choices, person: Int[np.ndarray, " people"]) -> Choices:
    """The choices of some people only, numbered anew."""
    assert choices.annotator is not None
    new_index = np.full(choices.num_annotators, -1)
    new_index[person] = np.arange(len(person))
    index = new_index[choices.annotator]
    labels = tuple(choices.labels[k] for k in person)
    return _take_rows(replace(choices, annotator=index, labels=labels), index >= 0)


def select_units(choices: Choices, unit: Int[np.ndarray, " units"]) -> Choices:
    """The choices of some units only: of annotators with panels, or these choices themselves."""
    if choices.has_panels:
        return select_annotators(choices, unit)
    return select_choices(choices, unit)


def select_choices(choices: Choices, choice: Int[np.ndarray, " kept"]) -> Choices:
    """Some choices only, with all their rows."""
    return _take_rows(choices, np.isin(choices.choice, choice))


def without_ids(choices: Choices) -> Choices:
    """The same choices, nobody's."""
    return replace(choices, annotator=None, labels=())


def _take_rows(choices: Choices, rows: Bool[np.ndarray, " pairs"]) -> Choices:
    """Some rows, in their order; annotators without one are dropped."""
    annotator, labels = choices.annotator, choices.labels
    if annotator is not None:
        known, annotator = np.unique(annotator[rows], return_inverse=True)
        labels = tuple(labels[k] for k in known)
    return replace(
        choices,
        margin=choices.margin[rows],
        annotator=annotator,
        labels=labels,
        outcomes=None if choices.outcomes is None else choices.outcomes.take(rows),
        pair=None if choices.pair is None else choices.pair[rows],
        responses=None if choices.responses is None else choices.responses[rows],
    )


def _ids_of_rows(ids: Any, margin: np.ndarray, name: str) -> np.ndarray:
    found = read_ids(ids)
    if len(found) != margin.size:
        raise ValueError(
            f"Expected one {name} id per margin ({margin.size}), got {len(found)} ids"
        )
    return found


def _check_one_annotator(
    outcomes: Outcomes, index: np.ndarray, labels: tuple[str, ...], sets: np.ndarray | None
) -> None:
    """Raise where the rows of a set have several annotators."""
    first = index[np.unique(outcomes.choice, return_index=True)[1]]
    other = np.flatnonzero(first[outcomes.choice] != index)
    if other.size:
        row = int(other[0])
        names = labels[first[outcomes.choice[row]]], labels[index[row]]
        raise ValueError(
            f"Expected one annotator per choice set, got {names[0]} and {names[1]} in "
            f"{'one' if sets is None else repr(sets[row])} (index {row})"
        )


# Annotators


def read_ids(ids: Any) -> np.ndarray:
    """Annotator ids as text, exactly as written: the one rule of files, trainer and inference.

    An id is text of 1 to 1,000 characters, not blank and without a null character, or a whole
    number, whose text is its decimal form: 7, "7" and the float 7.0 are one annotator, "07" is
    another one. Floats, which a column of integers becomes where it has holes, count below 2^53.

    Args:
        ids: List, array, tensor or column, shape `(pairs,)`.

    Returns:
        Array of `str` objects; a long id takes memory once.

    Raises:
        ValueError: If an id is missing (None, NaN, NaT, masked), blank, or a broken number.
        TypeError: If an id is neither text nor a number.
    """
    texts: dict[Any, str] = {}
    values = _as_list(ids)
    found = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        is_text = isinstance(value, str)  # only texts are looked up: 1, 1.0 and True are equal
        text = texts.get(value) if is_text else None
        found[index] = text or texts.setdefault(_id_at(index, value), id_text(value))
    return found


def fault_of_id(value: object) -> str | None:
    """What a value would have to be to be an id, in words; None if it is one."""
    if isinstance(value, str):
        return _fault_of_text(value)
    if isinstance(value, Integral) and not isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, float | np.floating):
        number = float(value)
        return None if abs(number) < 2**53 and number.is_integer() else _ID_RULE
    if isinstance(value, Decimal):
        is_whole = value.is_finite() and value == value.to_integral_value()
        return None if is_whole else _ID_RULE
    return _ID_RULE


def id_text(value: Any) -> str:
    """Text of a value in which :func:`fault_of_id` finds no fault."""
    return str(value) if isinstance(value, str) else str(int(value))


def number_ids(ids: Iterable[str]) -> tuple[tuple[str, ...], Int[np.ndarray, " pairs"]]:
    """Different ids in the one order that holds everywhere, and the number of each row's id.

    Whole numbers come first, by size, 7 behind 07; other texts follow in the order of their
    characters. Ids 1 to 12 give equal tables, whether they came as numbers or as text.
    """
    texts = list(ids)
    labels = tuple(sorted(set(texts), key=_natural_order))
    number = {label: k for k, label in enumerate(labels)}
    return labels, np.array([number[text] for text in texts], dtype=np.int64)


def number_labels(labels: Any) -> Int[np.ndarray, " rows"]:
    """Number of each row's label, of any kind, by its text; None and NaN are labels too."""
    return np.unique(np.asarray(labels).astype(str), return_inverse=True)[1]


def _natural_order(text: str) -> tuple[bool, int, str]:
    is_number = _NUMBER.fullmatch(text) is not None
    return not is_number, int(text) if is_number else 0, text


def _id_at(index: int, value: object) -> str:
    fault = fault_of_id(value)
    if fault is None:
        return id_text(value)
    is_value = _is_missing(value) or isinstance(value, str | float | np.floating | Decimal)
    kind = ValueError if is_value else TypeError
    raise kind(f"Expected {fault}, got {reprlib.repr(value)} at index {index}")


def _fault_of_text(text: str) -> str | None:
    if not text.strip():
        return "an annotator id that is not blank"
    if len(text) > _MAX_ID_LENGTH:
        return f"an annotator id of at most {_MAX_ID_LENGTH:,} characters"
    if _UNFIT.search(text):
        return "an annotator id without null characters and lone surrogates"
    return None


def _as_list(values: Any) -> list[Any]:
    """Python values of a column of any library; none of the libraries is imported."""
    kind = getattr(getattr(values, "dtype", None), "kind", "O")
    if kind in "mMcV":
        raise TypeError(f"Expected {_ID_RULE}, got {values.dtype}")
    for name in ("to_pylist", "to_list", "tolist"):
        if hasattr(values, name):
            values = getattr(values, name)()
            break
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(f"Expected a column of annotator ids, got {type(values).__name__}")
    return list(values)


def _is_missing(value: object) -> bool:
    """None, NaN, and pandas' NA and NaT."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or value is np.ma.masked


# Margins


def fault_of_margins(margin: Float[np.ndarray, " pairs"]) -> tuple[int, str] | None:
    """Index of a margin that no likelihood takes, and what it would have to be; None if all do.

    Strengths scale with the margins, so a bound may be relative: beyond `1e10` times the typical
    margin, the likelihood of one choice leaves the range of floating point.
    """
    size = np.abs(margin)
    bad = np.flatnonzero(~(size <= _MAX_MARGIN))
    if bad.size:
        return int(bad[0]), f"a finite number of at most {_MAX_MARGIN:g} in size"
    largest, typical = int(size.argmax()), typical_size(margin)
    if 0 < typical < 1 / _MAX_MARGIN:
        return largest, f"margins with a median size of at least {1 / _MAX_MARGIN:g}"
    if size[largest] > _MAX_RATIO * typical:
        return largest, f"a size of at most {_MAX_RATIO:g} times the median, {typical:.3g}"
    return None


def typical_size(margin: Float[np.ndarray, " pairs"]) -> float:
    """Median of the margins' sizes, or their mean where most are zero."""
    size = np.abs(margin)
    return float(np.median(size) or size.mean())


def margin_array(margins: Any) -> Float[np.ndarray, " pairs"]:
    """Margins of any library as float64; a copy, since pandas hands out read-only views."""
    if hasattr(margins, "detach") or isinstance(margins, np.ma.MaskedArray):
        margins = margins.tolist()  # numpy has no bfloat16, and forgets the mask
    try:
        array = np.asarray(margins)
    except ValueError as error:  # rows of different lengths
        raise TypeError(f"Expected margins of shape (pairs,), got {error}") from error
    if array.ndim == 0:
        raise TypeError(f"Expected a column of margins, got {type(margins).__name__}")
    if array.ndim > 1:
        raise ValueError(f"Expected margins of shape (pairs,), got shape {array.shape}")
    if array.dtype.kind not in "fiu" or isinstance(margins, Sequence):  # numpy makes True 1.0
        array = np.array([_as_float(k, value) for k, value in enumerate(margins)])
    return np.array(array, dtype=np.float64)


def _as_float(index: int, value: Any) -> float:
    if _is_missing(value):
        return math.nan
    is_other = isinstance(value, bool | str | bytes | np.bool_ | np.datetime64 | np.timedelta64)
    if is_other or not hasattr(value, "__float__"):
        got = type(value).__name__
        raise TypeError(f"Expected margins that are numbers, got {got} at index {index}")
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def _check_margin(margin: np.ndarray) -> None:
    if margin.size == 0:
        raise ValueError("Expected at least two margins, got none")
    fault = fault_of_margins(margin)
    if fault is not None:
        index, words = fault
        raise ValueError(f"Expected {words}, got {margin[index]:g} at index {index}")
    if margin.min() == margin.max():
        raise ValueError(
            f"Expected margins that differ, got {margin.size} times {margin[0]:g}: "
            "mean and spread of the strength cannot be told apart"
        )
