"""MultiPref: several annotators' verdicts on one pair (Miranda et al. 2024, arXiv 2410.19133).

Fields from the card of `allenai/multipref`: four people judge each pair on a scale of five.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from mixdpo_pyro.data.readers.base import ReadPairs, Response, add_judgement

__all__ = ["read_multipref"]

_GRADES = {"clearly": 2, "slightly": 1}

_VERDICT = re.compile(r"([AB])-is-(clearly|slightly)-better")

_KINDS_OF_WORKER = {
    "normal_worker_annotations": "normal",
    "expert_worker_annotations": "expert",
}

_MULTIPREF_EXTRAS = (
    "comparison_id", "prompt_id", "source", "category", "subject_study", "highest_level_degree",
)  # fmt: skip


def read_multipref(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    """Pairs of MultiPref, one per judgement: graded clearly (2), slightly (1) or tie (0)."""
    read = ReadPairs()
    for row, record in enumerate(rows):
        prompt_field = "text" if "text" in record else "prompt"
        names = (prompt_field, "completion_a", "completion_b")
        prompt, a, b = (read.take(row, record, name, "text") for name in names)
        if None in (prompt, a, b):
            continue
        responses = (
            Response(row, a, None, record.get("model_a")),
            Response(row, b, None, record.get("model_b")),
        )
        extras = {name: record[name] for name in _MULTIPREF_EXTRAS if name in record}
        asked = [{"role": "user", "content": prompt}]
        for facts, grade in _multipref_verdicts(read, row, record):
            add_judgement(read, asked, responses, grade, facts | extras, options)
    return read


def _multipref_verdicts(
    read: ReadPairs, row: int, record: dict
) -> Iterator[tuple[dict[str, Any], int]]:
    """Facts about a judgement, and its grade, above 0 where A is better."""
    if not any(name in record for name in _KINDS_OF_WORKER):
        read.add_problem(row, next(iter(_KINDS_OF_WORKER)), "a list", None)
    for name, kind in _KINDS_OF_WORKER.items():
        for judgement in (name in record and read.take(row, record, name, "a list")) or []:
            evaluator = read.take(row, judgement, "evaluator", "an id")
            verdict = judgement.get("overall_pref")
            if evaluator is None:
                continue
            match = _VERDICT.fullmatch(verdict) if isinstance(verdict, str) else None
            if match is None and verdict != "Tie":
                words = "Tie or A/B-is-clearly/slightly-better"
                read.add_problem(row, "overall_pref", words, verdict)
                continue
            facts = {
                "annotator": evaluator,
                "evaluator": evaluator,
                "worker": kind,
                "preference": match[2] if match else "tie",
            }
            grade = _GRADES[match[2]] if match else 0
            yield facts, grade if match is None or match[1] == "A" else -grade
