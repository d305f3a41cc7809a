"""HelpSteer3-Preference: two responses, graded -3 to 3 (Wang et al. 2025, arXiv 2505.11475).

Fields from the card of `nvidia/HelpSteer3`, configuration `preference`: negative scores say that
`response1` is better. Up to three annotators stand behind `overall_preference`; their own scores
are in `individual_preference`, without ids.
"""

from collections.abc import Iterable

from mixdpo_pyro.data.readers.base import ReadPairs, Response, add_judgement, take_messages

__all__ = ["read_helpsteer3"]

_EXTRAS = ("domain", "language")

_LARGEST = 3

_WORDS = f"a whole number from -{_LARGEST} to {_LARGEST}"


def read_helpsteer3(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    """Pairs of HelpSteer3-Preference, one per score."""
    read = ReadPairs()
    for row, record in enumerate(rows):
        prompt = take_messages(read, row, record, "context")
        texts = [read.take(row, record, name, "text") for name in ("response1", "response2")]
        scores = _scores(read, row, record, options)
        if prompt is None or None in texts:
            continue
        first, second = (Response(row, text, None, None) for text in texts)
        extras = {name: record[name] for name in _EXTRAS if name in record}
        for score in scores:
            add_judgement(read, prompt, (first, second), -score, extras, options)
    return read


def _scores(read: ReadPairs, row: int, record: dict, options: frozenset[str]) -> list[int]:
    name, sources = "overall_preference", [record]
    if "individual" in options:
        name = "score"
        sources = read.take(row, record, "individual_preference", "a list") or []
    found = []
    for source in sources:
        score = read.take(row, source, name, "a whole number")
        if score is not None and abs(score) > _LARGEST:
            read.add_problem(row, name, _WORDS, score)
        elif score is not None:
            found.append(score)
    return found
