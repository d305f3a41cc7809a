"""HH-RLHF: two dialogues in one string each (Bai et al. 2022, arXiv 2204.05862)."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from mixdpo_pyro.data.readers.base import FILE_ROW, ReadPairs

__all__ = ["read_hh_rlhf"]

# HH-RLHF: two dialogues in one string each


class _Turn(NamedTuple):
    role: str
    text: str  # what follows the marker, spaces and all
    start: int  # where the marker begins
    content: int  # where the marker ends


_MARKER = re.compile(r"\n\n(Human|Assistant):")

_DIALOGUE = "a dialogue that begins with '\\n\\nHuman:'"


def read_hh_rlhf(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    """Pairs of HH-RLHF: the shared dialogue is the prompt."""
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
