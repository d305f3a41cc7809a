"""Community Alignment: the best of four responses, turn by turn (Zhang et al. 2025).

arXiv 2507.09650; fields from the card of `facebook/community-alignment-dataset` and the paper's
codebook. A row is a conversation of up to four turns; `first_turn_preferred_response` holds
`response_a` to `response_d`.
"""

import re
from collections.abc import Iterable
from typing import Any

from mixdpo_pyro.data.choice_kinds import CHOICE_SET
from mixdpo_pyro.data.readers.base import Message, ReadPairs, Response, make_pair

__all__ = ["read_community_alignment"]

_TURNS = ("first", "second", "third", "fourth")

_LETTERS = "abcd"

_PREFERRED = re.compile(f"(?:response_)?([{_LETTERS}])")

_END = "<|end_of_text|>"
"""The generating model's end of text, which some responses carry."""

_EXTRAS = (
    "assigned_lang", "annotator_age", "annotator_gender", "annotator_education_level",
    "annotator_political", "annotator_ethnicity", "annotator_country",
    "is_pregenerated_first_prompt", "in_balanced_subset",
)  # fmt: skip


def read_community_alignment(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    """Choices of Community Alignment, the preferred response against each other one."""
    read = ReadPairs()
    for row, record in enumerate(rows):
        names = ("annotator_id", "conversation_id")
        annotator, conversation = (read.take(row, record, name, "an id") for name in names)
        first = read.take(row, record, "first_turn_prompt", "text")
        if None in (annotator, conversation, first):
            continue
        known = {"annotator": annotator, "conversation_id": conversation}
        known |= {name: record[name] for name in _EXTRAS if name in record}
        _read_turns(read, row, record, known, options)
    return read


def _read_turns(
    read: ReadPairs, row: int, record: dict, known: dict[str, Any], options: frozenset[str]
) -> None:
    """Turns, each with the preferred responses of the turns before in its prompt."""
    history: list[Message] = []
    for number, turn in enumerate(_TURNS, start=1):
        text = record.get(f"{turn}_turn_prompt")
        if not text:
            later = [t for t in _TURNS[number:] if record.get(f"{t}_turn_prompt")]
            read.dropped["turns whose earlier turns are missing"] += len(later)
            return
        prompt = [*history, {"role": "user", "content": text}]
        preferred, others = _responses(read, row, record, turn)
        if preferred is None:
            return
        facts = known | {"turn": number, CHOICE_SET: f"{row}/{number}"}
        for other in others:
            read.pairs.append({**make_pair(prompt, preferred, other, options), **facts})
        history = [*prompt, {"role": "assistant", "content": preferred.text}]


def _responses(
    read: ReadPairs, row: int, record: dict, turn: str
) -> tuple[Response | None, list[Response]]:
    """The preferred response of a turn, and the others."""
    texts = {letter: record.get(f"{turn}_turn_response_{letter}") for letter in _LETTERS}
    found = {
        letter: Response(row, text.removesuffix(_END).rstrip(), None, None)
        for letter, text in texts.items()
        if isinstance(text, str) and text
    }
    name = f"{turn}_turn_preferred_response"
    choice = record.get(name)
    if not choice:
        read.dropped["turns without a preferred response"] += 1
        return None, []
    match = _PREFERRED.fullmatch(choice) if isinstance(choice, str) else None
    if match is None or match[1] not in found:
        letters = ", ".join(f"response_{letter}" for letter in found)
        read.add_problem(row, name, f"one of the responses that are there ({letters})", choice)
        return None, []
    return found.pop(match[1]), list(found.values())
