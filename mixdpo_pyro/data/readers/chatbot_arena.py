"""Chatbot Arena: votes on two answers, with ties (Zheng et al. 2023, arXiv 2306.05685).

Fields from the cards of `lmsys/chatbot_arena_conversations`, `lmarena-ai/arena-human-preference-
100k` (conversations as JSON text, voters as `judge_hash`) and `lmsys/mt_bench_human_judgments`.
"""

from collections.abc import Iterable

from mixdpo_pyro.data.readers.base import ReadPairs, Response, add_judgement, take_messages

__all__ = ["read_chatbot_arena"]

_GRADES = {"model_a": 1, "model_b": -1, "tie": 0, "tie (bothbad)": 0}

_VOTERS = ("judge", "judge_hash")

_EXTRAS = ("question_id", "winner", "language", "turn", "anony")


def read_chatbot_arena(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    """Votes of Chatbot Arena on answers to one prompt; longer conversations are dropped."""
    read = ReadPairs()
    for row, record in enumerate(rows):
        names = ("conversation_a", "conversation_b")
        a, b = (take_messages(read, row, record, name) for name in names)
        winner = record.get("winner")
        if not isinstance(winner, str) or winner not in _GRADES:
            read.add_problem(row, "winner", ", ".join(_GRADES), winner)
            continue
        if a is None or b is None:
            continue
        if winner == "tie (bothbad)" and "drop-both-bad" in options:
            read.dropped["votes that both are bad"] += 1
            continue
        if a[:-1] != b[:-1] or a[-1]["role"] != "assistant" or b[-1]["role"] != "assistant":
            read.dropped["conversations that part before the last answer"] += 1
            continue
        responses = (
            Response(row, a[-1]["content"], None, record.get("model_a")),
            Response(row, b[-1]["content"], None, record.get("model_b")),
        )
        facts = {name: record[name] for name in _EXTRAS if name in record}
        voter = next((name for name in _VOTERS if name in record), None)
        if voter is not None:
            facts["annotator"] = read.take(row, record, voter, "an id")
        add_judgement(read, a[:-1], responses, _GRADES[winner], facts, options)
    return read
