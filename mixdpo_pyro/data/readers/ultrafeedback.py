"""UltraFeedback: scores by a language model (Cui et al. 2023, arXiv 2310.01377).

Fields from the cards of `openbmb/UltraFeedback` and `HuggingFaceH4/ultrafeedback_binarized`.
"""

from collections.abc import Iterable

from mixdpo_pyro.data.messages import fault_of_text, text_of
from mixdpo_pyro.data.readers.base import (
    ReadPairs,
    Response,
    make_pair,
    pair_responses,
    read_number,
)

__all__ = ["read_ultrafeedback"]

# UltraFeedback: scores by a language model, raw or binarized


def read_ultrafeedback(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    """Pairs of UltraFeedback, raw or binarized."""
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
            responses.append(Response(row, text, score, completion.get("model")))
    facts = {"source": record["source"]} if "source" in record else {}
    prompt = [{"role": "user", "content": instruction}]
    pair_responses(read, prompt, responses, facts, options, str(row))


def _ultrafeedback_score(completion: dict, options: frozenset[str]) -> float | None:
    """The score that is asked for; fine-grained is the mean of the ratings of the aspects."""
    if "overall" in options:
        return read_number(completion.get("overall_score"))
    score = read_number(completion.get("fine-grained_score"))
    if score is not None:
        return score
    aspects = completion.get("annotations")
    ratings = [
        read_number(aspect.get("Rating"))
        for aspect in (aspects.values() if isinstance(aspects, dict) else ())
        if isinstance(aspect, dict)
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
    if len(chosen) != shared + 1 or len(rejected) != shared + 1:
        read.add_problem(row, "chosen", "one response after the shared messages", chosen[shared:])
        return
    faults = {name: fault_of_text(record[name]) for name in names}
    if any(faults.values()):
        for name, fault in faults.items():
            if fault is not None:
                read.add_problem(row, name, fault, record[name])
        return
    scores = [read_number(record.get(f"score_{name}")) for name in names]
    if None not in scores and scores[0] == scores[1]:
        read.dropped["ties"] += 1
        return
    prompt = [{"role": m["role"], "content": text_of([m])} for m in chosen[:shared]]
    ends = [text_of(messages[-1:]) for messages in (chosen, rejected)]
    responses = [Response(row, e, s, None) for e, s in zip(ends, scores, strict=True)]
    facts = {name: record[name] for name in ("prompt_id", "source") if name in record}
    read.pairs.append({**make_pair(prompt, responses[0], responses[1], options), **facts})
