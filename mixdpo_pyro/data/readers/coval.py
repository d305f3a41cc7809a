"""CoVal, earlier Collective Alignment 1: four ranked responses (OpenAI, 2025).

Fields of `comparisons.jsonl` from the cards of `openai/coval` and `openai/collective-alignment-1`:
each assessment in `metadata` ranks the responses as in `"A>B>C=D"`, once for the annotator
(`personal`) and once for the world.
"""

import re
from collections.abc import Iterable, Iterator

from mixdpo_pyro.data.choice_kinds import CHOICE_SET, RANK
from mixdpo_pyro.data.messages import text_of
from mixdpo_pyro.data.readers.base import (
    Message,
    ReadPairs,
    Response,
    make_pair,
    ranks_of_scores,
    take_messages,
)

__all__ = ["read_coval"]

_RANKING = re.compile(r"[A-Z]([>=][A-Z])*")

_WORDS = "a ranking such as A>B>C=D of the responses that are there"


def read_coval(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    """Rankings of CoVal, the best response against each other one."""
    read = ReadPairs()
    whose = "world" if "world" in options else "personal"
    for row, record in enumerate(rows):
        prompt = _prompt(read, row, record)
        texts = _texts(read, row, record)
        if prompt is None or texts is None:
            continue
        for number, (annotator, order) in enumerate(_rankings(read, row, record, texts, whose)):
            best, *others = order
            facts = {
                "annotator": annotator,
                "prompt_id": record.get("prompt_id"),
                CHOICE_SET: f"{row}/{number}",
            }
            kept = [(letter, place) for letter, place in others if place != best[1]]
            if ties := len(others) - len(kept):
                read.dropped["ties with the best response"] += ties
            ranks = ranks_of_scores([-place for _, place in kept])
            chosen = Response(row, texts[best[0]], None, None)
            for (letter, _), rank in zip(kept, ranks, strict=True):
                rejected = Response(row, texts[letter], None, None)
                pair = {**make_pair(prompt, chosen, rejected, options), **facts}
                read.pairs.append(pair | ({RANK: rank} if "ranking" in options else {}))
    return read


def _prompt(read: ReadPairs, row: int, record: dict) -> list[Message] | None:
    """The messages; those of a developer are the system's, which chat templates know."""
    prompt = record.get("prompt")
    if not isinstance(prompt, dict):
        read.add_problem(row, "prompt", "a dictionary with 'messages'", prompt)
        return None
    messages = take_messages(read, row, prompt, "messages")
    if messages is None:
        return None
    roles = {"developer": "system"}
    return [{**m, "role": roles.get(m["role"], m["role"])} for m in messages]


def _texts(read: ReadPairs, row: int, record: dict) -> dict[str, str] | None:
    """Letter -> response."""
    responses = read.take(row, record, "responses", "a list")
    if responses is None:
        return None
    texts = {}
    for response in responses:
        letter = read.take(row, response, "response_index", "text")
        messages = take_messages(read, row, response, "messages")
        if letter is None or messages is None:
            return None
        texts[letter] = text_of(messages)
    return texts


def _rankings(
    read: ReadPairs, row: int, record: dict, texts: dict[str, str], whose: str
) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Annotators, and the letters with their places, the best first."""
    metadata = record.get("metadata")
    if not isinstance(metadata, dict):
        read.add_problem(row, "metadata", "a dictionary with 'assessments'", metadata)
        return
    for assessment in read.take(row, metadata, "assessments", "a list") or []:
        annotator = read.take(row, assessment, "annotator_id", "an id")
        blocks = assessment.get("ranking_blocks") or {}
        block = next(iter((blocks.get(whose) if isinstance(blocks, dict) else None) or []), None)
        ranking = block.get("ranking") if isinstance(block, dict) else None
        if not ranking:
            read.dropped[f"assessments without a {whose} ranking"] += 1
            continue
        order = _order(ranking)
        letters = [letter for letter, _ in order]
        if len(set(letters)) < len(letters) or not order or not set(letters) <= texts.keys():
            read.add_problem(row, "ranking", _WORDS, ranking)
        elif annotator is not None:
            yield annotator, order


def _order(ranking: object) -> list[tuple[str, int]]:
    text = re.sub(r"\s", "", ranking) if isinstance(ranking, str) else ""
    if not _RANKING.fullmatch(text):
        return []
    groups = text.split(">")
    return [(letter, k) for k, group in enumerate(groups) for letter in group.split("=")]
