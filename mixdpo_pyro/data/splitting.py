"""A split into training and held-out pairs that keeps prompts together."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
from datasets import Dataset
from jaxtyping import Bool, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mixdpo_pyro.data.choice_kinds import CHOICE_SET
from mixdpo_pyro.data.validation import TEXT_COLUMNS
from mixdpo_pyro.errors import ConfigError, DataError

__all__ = [
    "SplitBy",
    "answer_keys",
    "drop_answers",
    "drop_held_out",
    "has_answers",
    "keys_of_pairs",
    "pair_keys",
    "prompt_groups",
    "split_pairs",
    "split_prompts",
]

SplitBy = Literal["prompt", "annotator"]

_HELD_OUT_PAIRS = 4
"""Pairs of an annotator that are held out together, at least, where the fraction is less."""


def split_pairs(
    pairs: Dataset,
    test_fraction: float,
    seed: int = 0,
    annotator_column: str | None = None,
    split_by: SplitBy = "prompt",
) -> tuple[Dataset, Dataset]:
    """Split at random into train and test; no prompt is on both sides.

    Several annotators judge one pair, and one response stands in several pairs. Were rows of a
    prompt on both sides, the test margins would come from a policy that has seen the answer.

    By prompt, whole prompts are held out, in random order until they hold `test_fraction` of the
    rows. With annotator ids the order goes by annotators: prompts of one after the other, until
    four pairs of each are held out, or `test_fraction` of them where that is more, but no more
    than half of them where there are four. Only annotators with several held-out pairs tell
    differences between people from another link; one pair each, of more people, does not.

    By annotator, all pairs of random annotators are held out, and training pairs that share a
    prompt with them are dropped.

    Rows with one `choice_set` are one choice: having one prompt and one annotator, they stay
    together; they count once among the four.

    Args:
        pairs: Pairs with `chosen`, `rejected`, and `prompt` or without one; with `choice_set`
            where some are one choice.
        test_fraction: Fraction of the rows that is held out, between 0 and 1.
        seed: Seed of the choice.
        annotator_column: Column with annotator ids, or None.
        split_by: What is held out as a whole.

    Raises:
        ConfigError: If pairs are to be split by annotator without a column of ids.
        DataError: If there are fewer than two prompts, or no training pair is left.
    """
    if split_by not in get_args(SplitBy):
        raise ConfigError(f"Expected split_by 'prompt' or 'annotator', got {split_by!r}")
    group = prompt_groups(pairs)
    if group.max(initial=-1) < 1:
        raise DataError(f"Expected at least 2 different prompts to split, got {group.max() + 1}")
    rng = np.random.default_rng(seed)
    person = None if annotator_column is None else _numbers(pairs[annotator_column][:])
    if split_by == "prompt":
        choices = _first_rows(pairs)
        is_test = np.isin(group, _choose_prompts(group, person, choices, test_fraction, rng))
        return _select(pairs, ~is_test), _select(pairs, is_test)
    if person is None:
        raise ConfigError("split_by: 'annotator' needs a column of annotator ids")
    is_test = np.isin(person, _choose_people(person, test_fraction, rng))
    is_train = ~np.isin(group, group[is_test])
    if not is_train.any():
        raise DataError("Every prompt is held out with its annotators; split by prompt")
    return _select(pairs, is_train), _select(pairs, is_test)


def drop_held_out(train: Dataset, test: Dataset) -> Dataset:
    """The training pairs that share no response, to one prompt, with the test pairs.

    For a split that the user made: it may hold out annotators, and share prompts on purpose. Of a
    choice set, all rows are dropped where one is.
    """
    return drop_answers(train, answer_keys(test))


def answer_keys(pairs: Dataset) -> set[str]:
    """A key for every response behind its prompt, wherever the prompt stands: 16 hex digits."""
    return {key for keys in _answer_keys(pairs) for key in keys}


def drop_answers(pairs: Dataset, keys: set[str]) -> Dataset:
    """The pairs, in whole choice sets, with no response among :func:`answer_keys`."""
    return _select(pairs, ~has_answers(pairs, keys))


def has_answers(pairs: Dataset, keys: set[str]) -> Bool[np.ndarray, " rows"]:
    """Whether a response of the pair, or of its choice set, is among :func:`answer_keys`."""
    is_among = np.array([not keys.isdisjoint(own) for own in _answer_keys(pairs)], dtype=bool)
    if CHOICE_SET in pairs.column_names:
        choice = _numbers(pairs[CHOICE_SET][:])
        is_among = np.isin(choice, choice[is_among])
    return is_among


def prompt_groups(pairs: Dataset) -> Int[np.ndarray, " rows"]:
    """Number of each row's prompt.

    Without a column of prompts, it is the shared beginning of the responses, as TRL finds it.
    Since that may end behind the first words of an answer, rows that share a whole response count
    as one prompt too. Where a prompt is empty, the two responses stand for it.
    """
    keys = list(_prompt_keys(pairs))
    number: dict[str, int] = {}
    edges = [(i, number.setdefault(k, len(number))) for i, row in enumerate(keys) for k in row]
    row, key = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    size = len(keys) + len(number)
    graph = coo_array((np.ones(len(row)), (row, len(keys) + key)), shape=(size, size))
    part = connected_components(graph, directed=False)[1][: len(keys)]
    first: dict[int, str] = {}  # groups are numbered by their keys, whatever the order of the rows
    for each, names in zip(part.tolist(), keys, strict=True):
        first[each] = min(first.get(each, names[0]), *names)
    return _numbers(first[each] for each in part.tolist())


def pair_keys(pairs: Dataset) -> list[str]:
    """One key a row; equal for rows with the same prompt and the same two answers."""
    return keys_of_pairs(_given_prompts(pairs), pairs["chosen"][:], pairs["rejected"][:])


def keys_of_pairs(prompts: Iterable, chosen: Iterable, rejected: Iterable) -> list[str]:
    """The keys of :func:`pair_keys` for columns of texts or messages."""
    return [
        _hash(prompt, *sorted(json.dumps(answer, sort_keys=True) for answer in answers))
        for prompt, *answers in zip(prompts, chosen, rejected, strict=True)
    ]


def split_prompts(pairs: Dataset) -> dict[str, list]:
    """Prompts and responses; without a prompt column, TRL's shared beginning, but for its slip.

    TRL looks one character back for a space; where not even the first character is shared, that
    is the last character of the chosen response.
    """
    if "prompt" in pairs.column_names:
        return {name: pairs[name][:] for name in TEXT_COLUMNS}
    from trl import extract_prompt

    texts: dict[str, list] = {name: [] for name in TEXT_COLUMNS}
    for chosen, rejected in zip(pairs["chosen"][:], pairs["rejected"][:], strict=True):
        pair = {"prompt": chosen[:0], "chosen": chosen, "rejected": rejected}
        if chosen[0] == rejected[0]:
            pair = extract_prompt({"chosen": chosen, "rejected": rejected})
        for name in TEXT_COLUMNS:
            texts[name].append(pair[name])
    return texts


def _prompt_keys(pairs: Dataset) -> Iterator[list[str]]:
    """Keys of each row; rows with a key in common have one prompt."""
    is_explicit = "prompt" in pairs.column_names
    whole = zip(pairs["chosen"][:], pairs["rejected"][:], pair_keys(pairs), strict=True)
    for prompt, (chosen, rejected, pair) in zip(
        split_prompts(pairs)["prompt"], whole, strict=True
    ):
        keys = [_hash("prompt", prompt)] if prompt else [pair]
        yield keys if is_explicit else [*keys, *(_hash("text", x) for x in (chosen, rejected))]


def _answer_keys(pairs: Dataset) -> Iterator[list[str]]:
    """Keys of each row's two answers to its prompt."""
    for prompt, *answers in zip(
        _given_prompts(pairs), pairs["chosen"][:], pairs["rejected"][:], strict=True
    ):
        yield [_hash(_joined(prompt, answer))[:16] for answer in answers]


def _joined(prompt: Any, answer: Any) -> Any:
    """Prompt and answer as one text, or as one list of messages without what they leave out."""
    if isinstance(answer, str):
        return (prompt or "") + answer
    return [{k: v for k, v in m.items() if v is not None} for m in [*(prompt or []), *answer]]


def _given_prompts(pairs: Dataset) -> Sequence[Any]:
    return pairs["prompt"][:] if "prompt" in pairs.column_names else [""] * len(pairs)


def _hash(*values: Any) -> str:
    text = "\0".join(json.dumps(value, sort_keys=True) for value in values)
    return hashlib.sha256(text.encode()).hexdigest()


def _numbers(values: Iterable[Any]) -> Int[np.ndarray, " rows"]:
    """Numbers of values, in their order as text."""
    texts = [str(value) for value in values]
    number = {text: k for k, text in enumerate(sorted(set(texts)))}
    return np.array([number[text] for text in texts], dtype=np.int64)


class _HoldOut:
    """Sets of rows that are held out, one after the other, until they are enough.

    Args:
        part: Number of each row's set.
        fraction: Fraction of the rows that are enough.
        least: Sets that are held out whatever their size; one set stays in any case.
    """

    def __init__(self, part: np.ndarray, fraction: float, least: int = 1) -> None:
        self.chosen: set[int] = set()
        self._size = np.bincount(part)
        self._room = max(round(fraction * len(part)), 1)
        self._least = least

    def take(self, k: int) -> bool:
        """Hold out set `k`, if there is room; whether it was."""
        is_last = len(self.chosen) == len(self._size) - 1
        is_large = len(self.chosen) >= self._least and self._size[k] > self._room
        if k in self.chosen or is_last or is_large:
            return False
        self.chosen.add(k)
        self._room -= int(self._size[k])
        return True


def _choose_prompts(
    group: np.ndarray,
    person: np.ndarray | None,
    choices: np.ndarray,
    fraction: float,
    rng: np.random.Generator,
) -> list[int]:
    """Prompts to hold out: several of one annotator after the other, then any."""
    held_out = _HoldOut(group, fraction)
    if person is not None:
        _hold_out_several(held_out, group[choices], person[choices], fraction, rng)
    for k in rng.permutation(group.max() + 1).tolist():
        held_out.take(k)
    return sorted(held_out.chosen)


def _hold_out_several(
    held_out: _HoldOut,
    group: np.ndarray,
    person: np.ndarray,
    fraction: float,
    rng: np.random.Generator,
) -> None:
    count = np.bincount(person)
    half = np.maximum(count // 2, 2)
    goal = np.where(count < 2, 0, np.clip(np.rint(fraction * count), _HELD_OUT_PAIRS, None))
    goal = np.minimum(goal, half)
    people, prompts = _split_rows(group, person), _split_rows(person, group)
    held = np.zeros(len(count), dtype=np.int64)
    for g in rng.permutation(len(count)).tolist():
        for k in rng.permutation(np.unique(prompts[g])).tolist():
            if held[g] < goal[g] and held_out.take(k):
                np.add.at(held, people[k], 1)


def _choose_people(person: np.ndarray, fraction: float, rng: np.random.Generator) -> list[int]:
    """Annotators to hold out; two at least, since one says nothing about differences."""
    held_out = _HoldOut(person, fraction, least=2)
    for g in rng.permutation(person.max() + 1).tolist():
        held_out.take(g)
    return sorted(held_out.chosen)


def _first_rows(pairs: Dataset) -> Int[np.ndarray, " choices"]:
    """Index of the first row of every choice."""
    if CHOICE_SET not in pairs.column_names:
        return np.arange(len(pairs))
    return np.sort(np.unique(_numbers(pairs[CHOICE_SET][:]), return_index=True)[1])


def _split_rows(part: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """Values of the rows of each part."""
    order = np.argsort(part, kind="stable")
    return np.split(values[order], np.bincount(part).cumsum()[:-1])


def _select(pairs: Dataset, is_kept: np.ndarray) -> Dataset:
    return pairs.select(np.flatnonzero(is_kept))
