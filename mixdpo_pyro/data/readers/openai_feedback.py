"""Comparisons that OpenAI published: WebGPT, and summaries from human feedback.

WebGPT (Nakano et al. 2021, arXiv 2112.09332), fields from the card of
`openai/webgpt_comparisons`: scores from -1 to 1 that sum to 0, both 0 for a tie. Summaries
(Stiennon et al. 2020, arXiv 2009.01325), fields of the configuration `comparisons` from the card
and loading script of `openai/summarize_from_feedback`.
"""

from collections.abc import Iterable

from mixdpo_pyro.data.choice_kinds import CHOICE_SET
from mixdpo_pyro.data.readers.base import (
    ReadPairs,
    Response,
    add_judgement,
    make_pair,
    read_number,
)

__all__ = ["read_summaries", "read_webgpt"]


def read_webgpt(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    """Comparisons of WebGPT: a question and two answers."""
    read = ReadPairs()
    for row, record in enumerate(rows):
        question = record.get("question")
        if isinstance(question, dict):
            question = read.take(row, question, "full_text", "text")
        else:
            question = read.take(row, record, "question", "text")
        answers = [read.take(row, record, f"answer_{k}", "text") for k in (0, 1)]
        scores = [read_number(record.get(f"score_{k}")) for k in (0, 1)]
        for k, score in enumerate(scores):
            if score is None:
                read.add_problem(row, f"score_{k}", "a number", record.get(f"score_{k}"))
        if question is None or None in answers or scores[0] is None or scores[1] is None:
            continue
        responses = tuple(
            Response(row, answer, score, None)
            for answer, score in zip(answers, scores, strict=True)
        )
        prompt = [{"role": "user", "content": question}]
        grade = (scores[0] > scores[1]) - (scores[0] < scores[1])
        add_judgement(read, prompt, (responses[0], responses[1]), grade, {}, options)
    return read


def read_summaries(rows: Iterable[dict], options: frozenset[str]) -> ReadPairs:
    """Comparisons of two summaries of a post or an article, each judged by itself."""
    read = ReadPairs()
    for row, record in enumerate(rows):
        info = record.get("info")
        if not isinstance(info, dict):
            read.add_problem(row, "info", "a dictionary with 'post' or 'article'", info)
            continue
        source = "article" if info.get("article") and not info.get("post") else "post"
        text = read.take(row, info, source, "text")
        worker = read.take(row, record, "worker", "an id")
        choice = read.take(row, record, "choice", "a whole number")
        summaries = read.take(row, record, "summaries", "a list")
        if None in (text, worker, choice, summaries):
            continue
        if len(summaries) != 2 or choice not in (0, 1):
            read.add_problem(row, "choice", "0 or 1, the place of one of two summaries", choice)
            continue
        texts = [read.take(row, summary, "text", "text") for summary in summaries]
        if None in texts:
            continue
        responses = [
            Response(row, each, None, summary.get("policy"))
            for each, summary in zip(texts, summaries, strict=True)
        ]
        title = f"{info['title']}\n\n" if isinstance(info.get("title"), str) else ""
        prompt = [{"role": "user", "content": f"{title}{text}\n\nTL;DR:"}]
        pair = make_pair(prompt, responses[choice], responses[1 - choice], options)
        facts = {"annotator": worker, "batch": record.get("batch"), CHOICE_SET: str(row)}
        read.pairs.append({**pair, **facts})
    return read
