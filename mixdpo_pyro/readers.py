"""Ready-made readers of public preference datasets: their rows in, preference pairs out.

A reader gives the columns `prompt`, `chosen`, `rejected`, `annotator` where the source knows one,
`file_row` (the row of the source, counted from 0) and further columns of it. It counts what
it leaves out, and lists every row that lacks a field. Sources: HH-RLHF (Bai et al. 2022,
arXiv 2204.05862), PRISM (Kirk et al. 2024, arXiv 2404.16019), MultiPref (Miranda et al. 2024,
arXiv 2410.19133), UltraFeedback (Cui et al. 2023, arXiv 2310.01377).
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

from mixdpo_pyro.errors import ConfigError

__all__ = ["FILE_ROW", "READERS", "Problem", "ReadPairs", "Reader", "find_reader"]

FILE_ROW = "file_row"
"""Column that carries the row of the source that a pair comes from, counted from 0."""

Message = dict[str, str]


@dataclass(frozen=True)
class Problem:
    """A value that cannot be used.

    Attributes:
        row: Row of the source, counted from 0.
        field: Name of the column or field.
        expected: What has to be there, in words.
        got: What is there, shortened.
    """

    row: int
    field: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"row {self.row}, column '{self.field}': expected {self.expected}, got {self.got}"


@dataclass
class ReadPairs:
    """What a reader made of the rows of a source.

    Attributes:
        pairs: One dictionary a pair.
        dropped: Reason -> number of pairs, rows or judgements left out.
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
        value = record.get(name)
        if _KINDS[expected](value):
            return value
        self.add_problem(row, name, expected, value)
        return None


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


def find_reader(spec: str) -> tuple[Reader, frozenset[str]]:
    """The reader `NAME` or `NAME:option,option` and its options.

    Raises:
        ConfigError: Naming the readers or options that there are.
    """
    name, _, options = spec.partition(":")
    if name not in READERS:
        raise ConfigError(f"reader: unknown reader '{name}'; there are {', '.join(READERS)}")
    reader = READERS[name]
    return reader, reader.choose(options.split(","))


def shorten(value: object, length: int = 60) -> str:
    """The value as Python writes it, cut to `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


# HH-RLHF: two dialogues in one string each


class _Turn(NamedTuple):
    role: str
    text: str  # what follows the marker, spaces and all
    start: int  # where the marker begins
    content: int  # where the marker ends


_MARKER = re.compile(r"\n\n(Human|Assistant):")
_DIALOGUE = "a dialogue that begins with '\\n\\nHuman:'"


def _read_hh(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    read = ReadPairs()
    for row, record in enumerate(rows):
        chosen, rejected = (_hh_turns(read, row, record, n) for n in ("chosen", "rejected"))
        if chosen is None or rejected is None:
            continue
        shared = _count_shared(chosen, rejected)
        reason = _why_no_comparison(chosen[shared:], rejected[shared:])
        if reason:
            read.dropped[reason] += 1
            continue
        make = _hh_text if "text" in options else _hh_messages
        extras = {k: v for k, v in record.items() if k not in ("prompt", "chosen", "rejected")}
        read.pairs.append({**make(record, chosen, rejected, shared), FILE_ROW: row, **extras})
    return read


def _hh_turns(read: ReadPairs, row: int, record: dict, name: str) -> list[_Turn] | None:
    text = record.get(name)
    if not isinstance(text, str) or not text.startswith("\n\nHuman:"):
        read.add_problem(row, name, _DIALOGUE, text)
        return None
    marks = list(_MARKER.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        _Turn(mark[1], text[mark.end() : end], mark.start(), mark.end())
        for mark, end in zip(marks, ends, strict=True)
    ]


def _count_shared(chosen: list[_Turn], rejected: list[_Turn]) -> int:
    count = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one[:2] != other[:2]:
            break
        count += 1
    return count


def _why_no_comparison(chosen: list[_Turn], rejected: list[_Turn]) -> str | None:
    """Why two endings do not answer the same prompt, or None."""
    if not chosen and not rejected:
        return "identical dialogues"
    if not chosen or not rejected:
        return "a dialogue that the other one continues"
    if chosen[0].role != "Assistant" or rejected[0].role != "Assistant":
        return "dialogues that part at a human turn"
    return None


def _hh_text(record: dict, chosen: list[_Turn], rejected: list[_Turn], shared: int) -> dict:
    """The prompt ends with `Assistant:`, the responses begin with the space behind it."""
    start, other_start = chosen[shared].content, rejected[shared].content
    return {
        "prompt": record["chosen"][:start],
        "chosen": record["chosen"][start:],
        "rejected": record["rejected"][other_start:],
    }


def _hh_messages(record: dict, chosen: list[_Turn], rejected: list[_Turn], shared: int) -> dict:
    parts = {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
    roles = {"Human": "user", "Assistant": "assistant"}
    return {
        name: [{"role": roles[t.role], "content": t.text.strip()} for t in turns]
        for name, turns in parts.items()
    }


# PRISM: scores of several responses within one turn of a conversation


@dataclass(frozen=True)
class _Response:
    """A response and its score."""

    row: int
    text: str
    score: float | None
    model: str | None
    is_chosen: bool = False


@dataclass
class _PrismTurn:
    prompt: str
    interaction: str | None
    extras: dict[str, Any]
    responses: list[_Response] = field(default_factory=list)


_PRISM_IDS = ("user_id", "conversation_id")
_PRISM_EXTRAS = ("conversation_type", "included_in_balanced_subset")


def _read_prism(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    read = ReadPairs()
    conversations: dict[tuple[str, str], dict[int, _PrismTurn]] = defaultdict(dict)
    for row, record in enumerate(rows):
        if "conversation_history" in record:
            _add_prism_conversation(read, row, record, conversations)
        else:
            _add_prism_utterance(read, row, record, conversations)
    first_turn = min((min(turns) for turns in conversations.values()), default=0)
    for (user, conversation), turns in conversations.items():
        known = {"annotator": user, "user_id": user, "conversation_id": conversation}
        _pair_prism_turns(read, turns, first_turn, known, options)
    return read


def _add_prism_utterance(
    read: ReadPairs, row: int, record: dict, conversations: dict[Any, dict[int, _PrismTurn]]
) -> None:
    user, conversation = (read.take(row, record, name, "an id") for name in _PRISM_IDS)
    names = ("user_prompt", "model_response")
    prompt, text = (read.take(row, record, name, "text") for name in names)
    number = read.take(row, record, "turn", "a whole number")
    if None in (user, conversation, prompt, text, number):
        return
    extras = {name: record[name] for name in _PRISM_EXTRAS if name in record}
    turn = conversations[user, conversation].setdefault(
        number, _PrismTurn(prompt, record.get("interaction_id"), extras)
    )
    turn.responses.append(_prism_response(row, text, record))


def _add_prism_conversation(
    read: ReadPairs, row: int, record: dict, conversations: dict[Any, dict[int, _PrismTurn]]
) -> None:
    user, conversation = (read.take(row, record, name, "an id") for name in _PRISM_IDS)
    history = read.take(row, record, "conversation_history", "a list")
    if None in (user, conversation, history):
        return
    extras = {name: record[name] for name in _PRISM_EXTRAS if name in record}
    turns = conversations[user, conversation]
    for entry in sorted(history, key=lambda e: e.get("role") != "user"):  # prompts first
        number = read.take(row, entry, "turn", "a whole number")
        text = read.take(row, entry, "content", "text")
        if number is None or text is None:
            continue
        if entry.get("role") == "user":
            turns[number] = _PrismTurn(text, None, extras)
        elif number in turns:
            turns[number].responses.append(_prism_response(row, text, entry))
        else:
            read.add_problem(row, "turn", "the turn of a user message", number)


def _prism_response(row: int, text: str, entry: dict) -> _Response:
    return _Response(
        row, text, _number(entry.get("score")), entry.get("model_name"),
        entry.get("if_chosen") is True,
    )  # fmt: skip


def _pair_prism_turns(
    read: ReadPairs,
    turns: dict[int, _PrismTurn],
    first_turn: int,
    known: dict[str, Any],
    options: frozenset[str],
) -> None:
    """Pairs of every turn; the prompt holds the earlier turns with the responses picked there."""
    history: list[Message] = []
    is_broken = False
    for expected, number in enumerate(sorted(turns), start=first_turn):
        turn = turns[number]
        if is_broken or number != expected:
            read.dropped["turns whose earlier turns are missing"] += 1
            is_broken = True
            continue
        prompt = [*history, {"role": "user", "content": turn.prompt}]
        facts = {**known, "interaction_id": turn.interaction, "turn": number, **turn.extras}
        _pair_responses(read, prompt, turn.responses, facts, options)
        picked = next((r for r in turn.responses if r.is_chosen), None)
        if picked is None:
            is_broken = True
        else:
            history = [*prompt, {"role": "assistant", "content": picked.text}]


# MultiPref: several people's verdicts on one pair


_VERDICT = re.compile(r"([AB])-is-(clearly|slightly)-better")
_KINDS_OF_WORKER = {
    "normal_worker_annotations": "normal",
    "expert_worker_annotations": "expert",
}
_MULTIPREF_EXTRAS = (
    "comparison_id", "prompt_id", "source", "category", "subject_study", "highest_level_degree",
)  # fmt: skip


def _read_multipref(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    read = ReadPairs()
    for row, record in enumerate(rows):
        prompt_field = "text" if "text" in record else "prompt"
        names = (prompt_field, "completion_a", "completion_b")
        prompt, a, b = (read.take(row, record, name, "text") for name in names)
        if None in (prompt, a, b):
            continue
        responses = {
            "A": _Response(row, a, None, record.get("model_a")),
            "B": _Response(row, b, None, record.get("model_b")),
        }
        extras = {name: record[name] for name in _MULTIPREF_EXTRAS if name in record}
        for facts, winner in _multipref_verdicts(read, row, record):
            pair = _pair_of(
                [{"role": "user", "content": prompt}],
                responses[winner],
                responses["B" if winner == "A" else "A"],
                options,
            )
            read.pairs.append({**pair, **facts, **extras})
    return read


def _multipref_verdicts(
    read: ReadPairs, row: int, record: dict
) -> Iterator[tuple[dict[str, Any], str]]:
    """Facts about a judgement and its winner, A or B."""
    if not any(name in record for name in _KINDS_OF_WORKER):
        read.add_problem(row, next(iter(_KINDS_OF_WORKER)), "a list", None)
    for name, kind in _KINDS_OF_WORKER.items():
        for judgement in (name in record and read.take(row, record, name, "a list")) or []:
            evaluator = read.take(row, judgement, "evaluator", "an id")
            verdict = judgement.get("overall_pref")
            if evaluator is None:
                continue
            if verdict == "Tie":
                read.dropped["ties"] += 1
                continue
            match = _VERDICT.fullmatch(verdict) if isinstance(verdict, str) else None
            if match is None:
                words = "Tie or A/B-is-clearly/slightly-better"
                read.add_problem(row, "overall_pref", words, verdict)
                continue
            facts = {
                "annotator": evaluator,
                "evaluator": evaluator,
                "worker": kind,
                "preference": match[2],
            }
            yield facts, match[1]


# UltraFeedback: scores by a language model, raw or binarized


def _read_ultrafeedback(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    read = ReadPairs()
    for row, record in enumerate(rows):
        if "completions" in record:
            _read_completions(read, row, record, options)
        else:
            _read_binarized(read, row, record, options)
    return read


def _read_completions(read: ReadPairs, row: int, record: dict, options: frozenset[str]) -> None:
    instruction = read.take(row, record, "instruction", "text")
    completions = read.take(row, record, "completions", "a list")
    if instruction is None or completions is None:
        return
    responses = []
    for completion in completions:
        text = read.take(row, completion, "response", "text")
        if text is not None:
            score = _ultrafeedback_score(completion, options)
            responses.append(_Response(row, text, score, completion.get("model")))
    facts = {"source": record["source"]} if "source" in record else {}
    _pair_responses(read, [{"role": "user", "content": instruction}], responses, facts, options)


def _ultrafeedback_score(completion: dict, options: frozenset[str]) -> float | None:
    """The score that is asked for; fine-grained is the mean of the ratings of the aspects."""
    if "overall" in options:
        return _number(completion.get("overall_score"))
    score = _number(completion.get("fine-grained_score"))
    if score is not None:
        return score
    aspects = completion.get("annotations") or {}
    ratings = [
        _number(aspect.get("Rating")) for aspect in aspects.values() if isinstance(aspect, dict)
    ]
    numbers = [rating for rating in ratings if rating is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _read_binarized(read: ReadPairs, row: int, record: dict, options: frozenset[str]) -> None:
    """Messages in `chosen` and `rejected`, the prompt among them; equal scores are ties."""
    names = ("chosen", "rejected")
    chosen, rejected = (read.take(row, record, name, "a list") for name in names)
    if chosen is None or rejected is None:
        return
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if not chosen[shared:] or not rejected[shared:]:
        read.dropped["identical dialogues"] += 1
        return
    if shared == 0:
        read.add_problem(row, "chosen", "messages that begin like those of 'rejected'", chosen)
        return
    ends = [messages[-1].get("content") for messages in (chosen, rejected)]
    if len(chosen) != shared + 1 or len(rejected) != shared + 1 or None in ends:
        read.add_problem(row, "chosen", "one response after the shared messages", chosen[shared:])
        return
    scores = [_number(record.get(f"score_{name}")) for name in names]
    if None not in scores and scores[0] == scores[1]:
        read.dropped["ties"] += 1
        return
    prompt = [{"role": m["role"], "content": m["content"]} for m in chosen[:shared]]
    responses = [_Response(row, e, s, None) for e, s in zip(ends, scores, strict=True)]
    facts = {name: record[name] for name in ("prompt_id", "source") if name in record}
    read.pairs.append({**_pair_of(prompt, responses[0], responses[1], options), **facts})


# What the readers share


def _pair_responses(
    read: ReadPairs,
    prompt: list[Message],
    responses: list[_Response],
    facts: dict[str, Any],
    options: frozenset[str],
) -> None:
    """Scores to pairs: the best against every other, or all ordered pairs; ties are dropped."""
    scored = [r for r in responses if r.score is not None]
    unscored = len(responses) - len(scored)
    if unscored:
        read.dropped["responses without a score"] += unscored
    ranked = sorted(scored, key=lambda r: (-(r.score or 0.0), not r.is_chosen))  # stable
    both = combinations(ranked, 2) if "all" in options else ((ranked[0], r) for r in ranked[1:])
    for better, worse in both:
        if better.score == worse.score:
            read.dropped["ties"] += 1
        else:
            read.pairs.append({**_pair_of(prompt, better, worse, options), **facts})


def _pair_of(
    prompt: list[Message], better: _Response, worse: _Response, options: frozenset[str]
) -> dict[str, Any]:
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
    speakers = {"user": "Human", "assistant": "Assistant", "system": "System"}
    turns = [f"\n\n{speakers[m['role']]}: {m['content']}" for m in messages]
    return "".join([*turns, "\n\nAssistant:"])


def _number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:  # "N/A"
        return None
    return number if math.isfinite(number) else None


_KINDS: dict[str, Callable[[object], bool]] = {
    "text": lambda value: isinstance(value, str),
    "an id": lambda value: (
        value != "" and isinstance(value, str | int) and not isinstance(value, bool)
    ),
    "a list": lambda value: isinstance(value, list) and all(isinstance(v, dict) for v in value),
    "a whole number": lambda value: isinstance(value, int) and not isinstance(value, bool),
}
_FORM = ("messages", "text")
_PAIRING = ("best", "all")
READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        Reader("hh-rlhf", "Anthropic HH-RLHF", (("text", "messages"),), _read_hh),
        Reader(
            "prism", "PRISM, utterances or conversations", (_FORM, _PAIRING), _read_prism,
            hub_config="utterances",
        ),
        Reader("multipref", "MultiPref, a pair a judgement", (_FORM,), _read_multipref),
        Reader(
            "ultrafeedback", "UltraFeedback, raw or binarized",
            (_FORM, _PAIRING, ("fine", "overall")), _read_ultrafeedback,
        ),
    )
}  # fmt: skip
"""The readers, name -> reader."""
