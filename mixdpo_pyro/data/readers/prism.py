"""PRISM: scores of several responses within one turn (Kirk et al. 2024, arXiv 2404.16019).

Fields of `utterances.jsonl` and `conversations.jsonl`, from the card of
`HannahRoseKirk/prism-alignment`.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mixdpo_pyro.data.readers.base import Message, ReadPairs, Response, pair_responses, read_number

__all__ = ["read_prism"]


@dataclass
class _PrismTurn:
    prompt: str
    interaction: str | None
    extras: dict[str, Any]
    responses: list[Response] = field(default_factory=list)


_PRISM_IDS = ("user_id", "conversation_id")

_PRISM_EXTRAS = ("conversation_type", "included_in_balanced_subset")


def read_prism(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    """Pairs of PRISM, from utterances or conversations."""
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


def _prism_response(row: int, text: str, entry: dict) -> Response:
    return Response(
        row, text, read_number(entry.get("score")), entry.get("model_name"),
        entry.get("if_chosen") in (True, "True", "true"),
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
        choice = f"{turn.responses[0].row if turn.responses else 0}/{number}"  # nobody's id
        pair_responses(read, prompt, turn.responses, facts, options, choice)
        picked = next((r for r in turn.responses if r.is_chosen), None)
        if picked is None:
            is_broken = True
        else:
            history = [*prompt, {"role": "assistant", "content": picked.text}]
