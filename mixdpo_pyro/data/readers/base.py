"""Ready-made readers of public preference datasets: their rows in, preference pairs out.

A reader gives the columns `prompt`, `chosen`, `rejected`, `annotator` where the source knows one,
`file_row` (the row of the source, counted from 0), further columns of it, and those of
:mod:`~mixdpo_pyro.data.choice_kinds` that say what was done. It counts what it drops, and lists
every row that lacks a field. Each reader's module names its source.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from mixdpo_pyro.data.choice_kinds import CHOICE_SET, GRADE, OUTCOME, RANK
from mixdpo_pyro.data.messages import fault_of_text, text_of
from mixdpo_pyro.data.problems import Problem, shorten
from mixdpo_pyro.data.validation import id_rule
from mixdpo_pyro.errors import ConfigError

__all__ = [
    "FILE_ROW", "FORM_OPTIONS", "GRADE_OPTIONS", "PAIRING_OPTIONS", "TIE_OPTIONS", "Message",
    "ReadPairs", "Reader", "Response", "add_judgement", "make_pair", "pair_responses",
    "ranks_of_scores", "read_number", "take_messages",
]  # fmt: skip

FILE_ROW = "file_row"
"""Column that carries the row of the source that a pair comes from, counted from 0."""

Message = dict[str, str]


@dataclass
class ReadPairs:
    """What a reader made of the rows of a source.

    Attributes:
        pairs: One dictionary a pair.
        dropped: Reason -> number of pairs, rows or judgements dropped.
        problems: Every value that is missing or of a wrong type.
    """

    pairs: list[dict[str, Any]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    def add_problem(self, row: int, name: str, expected: str, value: object) -> None:
        """Remember a value that cannot be used."""
        self.problems.append(Problem(row, name, expected, shorten(value)))

    def take(self, row: int, record: dict, name: str, expected: str) -> Any:
        """The field `name` of a record, or None with a problem where it is not what is expected.

        Args:
            row: Row of the source.
            record: The row, or a part of it.
            name: Name of the field.
            expected: One of the kinds that are known: `text`, `an id`, `a list`, `a whole number`.
        """
        value = _KINDS[expected](record.get(name))
        if value is None:
            self.add_problem(row, name, expected, record.get(name))
        return value


@dataclass(frozen=True)
class Reader:
    """A way to read one public dataset.

    Attributes:
        name: Name on the command line.
        words: What it reads, in a few words.
        options: Groups of choices; the first of a group is the default.
        hub_config: Configuration to load from the hub where none is named.
    """

    name: str
    words: str
    options: tuple[tuple[str, ...], ...]
    read: Callable[[Iterable[dict], frozenset[str]], ReadPairs]
    hub_config: str | None = None

    def choose(self, given: Iterable[str]) -> frozenset[str]:
        """The chosen options, one of every group.

        Raises:
            ConfigError: If an option is unknown, or two of one group are given.
        """
        given = [option for option in given if option]
        known = [option for group in self.options for option in group]
        for option in given:
            if option not in known:
                raise ConfigError(
                    f"reader {self.name}: unknown option '{option}'; it takes {', '.join(known)}"
                )
        chosen = []
        for group in self.options:
            asked = [option for option in group if option in given]
            if len(asked) > 1:
                raise ConfigError(f"reader {self.name}: '{asked[0]}' or '{asked[1]}', not both")
            chosen.append(asked[0] if asked else group[0])
        return frozenset(chosen)


@dataclass(frozen=True)
class Response:
    """A response and its score."""

    row: int
    text: str
    score: float | None
    model: str | None
    is_chosen: bool = False


# What the readers share


def pair_responses(
    read: ReadPairs,
    prompt: list[Message],
    responses: list[Response],
    facts: dict[str, Any],
    options: frozenset[str],
    choice: str,
) -> None:
    """Scores to pairs: a choice of the best, a ranking, or all ordered pairs; ties are dropped.

    A response that ties with the best one is dropped; a ranking ends before the first tie among
    the others, see :func:`ranks_of_scores`.

    Args:
        read: Where the pairs go.
        prompt: What the responses answer.
        responses: Responses with scores.
        facts: Further columns of the pairs.
        options: Of :data:`PAIRING_OPTIONS` and :data:`FORM_OPTIONS`.
        choice: Id of the choice set.
    """
    scored = [r for r in responses if r.score is not None]
    unscored = len(responses) - len(scored)
    if unscored:
        read.dropped["responses without a score"] += unscored
    ranked = sorted(scored, key=lambda r: (-(r.score or 0.0), not r.is_chosen))  # stable
    if "all" in options:
        for better, worse in combinations(ranked, 2):
            if better.score == worse.score:
                read.dropped["ties"] += 1
            else:
                read.pairs.append({**make_pair(prompt, better, worse, options), **facts})
        return
    others = [r for r in ranked[1:] if r.score != ranked[0].score]
    if ties := len(ranked[1:]) - len(others):
        read.dropped["ties"] += ties
    rank = ranks_of_scores([r.score for r in others])
    for place, worse in enumerate(others):
        pair = {**make_pair(prompt, ranked[0], worse, options), **facts, CHOICE_SET: choice}
        read.pairs.append(pair | ({RANK: rank[place]} if "ranking" in options else {}))


def ranks_of_scores(scores: Sequence[float | None]) -> list[int | None]:
    """Ranks 2, 3, ... of falling scores, None from the first tie on: which is better is unknown.

    Example:
        >>> ranks_of_scores([9, 7, 4, 4, 1])
        [2, 3, None, None, None]
    """
    tied = [k for k in range(1, len(scores)) if scores[k] == scores[k - 1]]
    end = tied[0] - 1 if tied else len(scores)
    return [k + 2 if k < end else None for k in range(len(scores))]


def add_judgement(
    read: ReadPairs,
    prompt: list[Message],
    responses: tuple[Response, Response],
    grade: int,
    facts: dict[str, Any],
    options: frozenset[str],
) -> None:
    """A pair that was judged by itself: the better response is the chosen one.

    Args:
        read: Where the pair goes.
        prompt: What the responses answer.
        responses: The two responses; of a tie the first one stands in `chosen`.
        grade: How much better the first one is; 0 for a tie.
        facts: Further columns.
        options: Of :data:`FORM_OPTIONS`; and `grades` (a column `grade`), `ties` (a column
            `outcome`), or `pairs` (ties are dropped, and each pair is a choice by itself).
    """
    better, worse = responses if grade >= 0 else responses[::-1]
    if "grades" in options:
        done: dict[str, Any] = {GRADE: abs(grade)}
    elif "ties" in options:
        done = {OUTCOME: "win" if grade else "tie"}
    elif grade == 0:
        read.dropped["ties"] += 1
        return
    else:
        done = {CHOICE_SET: str(len(read.pairs))}
    read.pairs.append({**make_pair(prompt, better, worse, options), **facts, **done})


def make_pair(
    prompt: list[Message], better: Response, worse: Response, options: frozenset[str]
) -> dict[str, Any]:
    """A preference pair of two responses, as messages or as text."""
    if "text" in options:
        pair: dict[str, Any] = {
            "prompt": _dialogue_text(prompt),
            "chosen": f" {better.text}",
            "rejected": f" {worse.text}",
        }
    else:
        pair = {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": better.text}],
            "rejected": [{"role": "assistant", "content": worse.text}],
        }
    pair[FILE_ROW] = better.row
    if better.score is not None and worse.score is not None:
        pair["score_chosen"], pair["score_rejected"] = better.score, worse.score
        pair["score_difference"] = better.score - worse.score
    pair["model_chosen"], pair["model_rejected"] = better.model, worse.model
    return pair


def _dialogue_text(messages: list[Message]) -> str:
    """Messages in the form of HH-RLHF, up to the `Assistant:` that the response follows."""
    speakers = {"user": "Human", "assistant": "Assistant"}
    turns = [
        f"\n\n{speakers.get(m['role'], m['role'].capitalize())}: {m['content']}" for m in messages
    ]
    return "".join([*turns, "\n\nAssistant:"])


def take_messages(read: ReadPairs, row: int, record: dict, name: str) -> list[Message] | None:
    """Messages of a field, also written as JSON text; or None, with a problem."""
    value = record.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not value or fault_of_text(value) is not None:
        read.add_problem(
            row, name, "a list of messages with 'role' and 'content'", record.get(name)
        )
        return None
    return [{"role": m["role"], "content": text_of([m])} for m in value]


def read_number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:  # "N/A"
        return None
    return number if math.isfinite(number) else None


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _as_id(value: Any) -> str | None:
    rule = id_rule()
    return rule.text_of(value) if rule.fault_of(value) is None else None


def _as_records(value: Any) -> list[dict] | None:
    is_list = isinstance(value, list) and all(isinstance(v, dict) for v in value)
    return value if is_list else None


def _as_whole_number(value: Any) -> int | None:
    """Also one that is written as text, as in a csv file, or as a float, as in a json one."""
    number = read_number(value)
    return int(number) if number is not None and number.is_integer() else None


_KINDS: dict[str, Callable[[Any], Any]] = {
    "text": _as_text,
    "an id": _as_id,
    "a list": _as_records,
    "a whole number": _as_whole_number,
}

FORM_OPTIONS = ("messages", "text")

PAIRING_OPTIONS = ("best", "ranking", "all")
"""What scores of several responses become."""

GRADE_OPTIONS = ("grades", "ties", "pairs")
"""What judgements of two responses become, where they say how much better one is."""

TIE_OPTIONS = ("ties", "pairs")
"""What judgements of two responses become, where they say which one is better, or neither."""
