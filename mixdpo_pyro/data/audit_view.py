"""An audit as a person reads it in the terminal."""

import math
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixdpo_pyro.data.audit import (
    AnnotatorCounts,
    ChoiceCounts,
    Examination,
    Example,
    LengthBalance,
    Repeats,
    Truncation,
    count_noun,
)
from mixdpo_pyro.data.validation import TEXT_COLUMNS
from mixdpo_pyro.progress import abridged, printable

__all__ = ["show_examination"]

_SHOWN_CHARACTERS = 600


def show_examination(found: Examination, console: Console) -> None:
    """Print what was found."""
    console.print(Text(found.source, style="bold"))
    console.print(_overview(found))
    for values in found.bad_values:
        bad = count_noun(values.count, "bad value")
        title = f"{bad} of '{values.field}', expected {values.expected}:"
        console.print(Text(title, style="red"))
        for line in values.first:
            console.print(Text(f"  {line}"))
        if values.count > len(values.first):
            console.print(Text(f"  and {values.count - len(values.first):,} more"))
    for number, example in enumerate(found.examples, start=1):
        _show_example(example, f"Example {number} of {len(found.examples)}", console)
    for note in _notes(found):
        console.print(Text(f"Look at: {note}", style="yellow"))
    verdict = "yes" if found.is_ready else f"no ({'; '.join(found.obstacles)})"
    style = "bold green" if found.is_ready else "bold red"
    console.print(Text(f"ready to train: {verdict}", style=style))


def _overview(found: Examination) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, words in _facts(found):
        table.add_row(name, Text(words))
    return table


def _facts(found: Examination) -> list[tuple[str, str]]:
    rows = [("rows", f"{found.num_rows:,} read, {found.num_usable:,} usable")]
    rows.append(("columns", ", ".join(found.columns)))
    rows += [("dropped", f"{count:,} {reason}") for reason, count in found.dropped.items()]
    if found.ties:
        rows.append(("ties", f"{found.ties:,}"))
    if found.num_usable == 0:
        return rows
    form = "messages" if found.is_conversational else "text"
    where = "a column" if found.has_prompt_column else "the shared beginning of the responses"
    rows.append(("prompt", f"{where} ({form})"))
    for part, describe in _DESCRIBED.items():
        value = getattr(found, part)
        if value is not None:
            rows += describe(value)
    return rows


def _repeat_facts(repeats: Repeats) -> list[tuple[str, str]]:
    rows = [
        ("different pairs", f"{repeats.different:,}, {repeats.judged_again:,} in several rows"),
        ("exact duplicates", f"{repeats.duplicates:,} rows"),
    ]
    words = f"{repeats.contradictory:,} pairs chosen both ways"
    if repeats.within_annotators is not None:
        words += (
            f"; {repeats.between_annotators:,} between annotators, "
            f"{repeats.within_annotators:,} within one"
        )
    return [*rows, ("contradictions", words)]


def _length_facts(lengths: LengthBalance) -> list[tuple[str, str]]:
    return [
        (
            "chosen is longer",
            f"{lengths.share_longer:.1%} [{lengths.low:.1%}, {lengths.high:.1%}] of pairs that "
            f"differ in {lengths.unit}",
        ),
        ("length ratio", f"{math.exp(lengths.median_log_ratio):.2f} chosen / rejected, median"),
    ]


def _truncation_facts(truncation: Truncation) -> list[tuple[str, str]]:
    return [
        ("longest", f"{truncation.longest:,} tokens, the limit is {truncation.max_length:,}"),
        (
            "truncated",
            f"{truncation.fully:,} pairs fully, {truncation.partially:,} partially, "
            f"{truncation.made_equal:,} made equal by it",
        ),
        ("merged tokens", f"{truncation.merged:,} pairs, where prompt and response meet"),
    ]


def _annotator_facts(counts: AnnotatorCounts) -> list[tuple[str, str]]:
    least, low, middle, high, most = (f"{q:,.0f}" for q in counts.quantiles)
    busiest = ", ".join(f"{abridged(name)} {number:,}" for name, number in counts.most.items())
    return [
        ("annotators", f"{counts.number:,} in '{counts.column}', {counts.once:,} with one pair"),
        ("pairs of one", f"{least} to {most}, quartiles {low}, {middle}, {high}"),
        ("busiest", busiest),
    ]


def _choice_facts(counts: ChoiceCounts) -> list[tuple[str, str]]:
    several = [f"{number:,} among {size}" for size, number in counts.sets.items()]
    pairs = [count_noun(counts.pairs, "pair")] if counts.pairs else []
    rows = [("choices", ", ".join([*pairs, *several]))]
    if counts.sets:
        how = {"column": f"column '{counts.column}'", "found": "found by what their rows share"}
        rows[0] = ("choices", f"{rows[0][1]} responses ({how[counts.origin]})")
    if counts.rankings:
        rows.append(("rankings", f"{counts.rankings:,} of the choices"))
    if counts.tie_share is not None:
        rows.append(("judged a tie", f"{counts.ties:,}, {counts.tie_share:.1%} of the pairs"))
    if counts.grades is not None:
        listed = (f"{number:,} of {grade}" for grade, number in counts.grades.items())
        rows.append(("grades", ", ".join(listed)))
    return rows


_DESCRIBED: dict[str, Callable[[Any], list[tuple[str, str]]]] = {
    "choices": _choice_facts,
    "repeats": _repeat_facts,
    "annotators": _annotator_facts,
    "lengths": _length_facts,
    "truncation": _truncation_facts,
}


def _notes(found: Examination) -> list[str]:
    """What a person should look at before training."""
    notes = []
    if found.looks_like_hh:
        notes.append(
            "dialogues of HH-RLHF; --reader hh-rlhf cuts them behind the last 'Assistant:'"
        )
    if found.without_prompt:
        notes.append(f"{found.without_prompt:,} pairs have an empty prompt")
    if found.joined_parts:
        notes.append(f"messages of {found.joined_parts:,} texts come in parts, read as one text")
    if found.repeated_prompts * 2 > found.num_usable:
        notes.append(
            f"the responses of {found.repeated_prompts:,} pairs begin with their prompt, and TRL "
            "puts it before them once more; drop the column 'prompt' if it stands twice"
        )
    if found.choices is not None and found.choices.note:
        notes.append(found.choices.note)
    repeats = found.repeats
    if repeats is not None and repeats.duplicates:
        whose = "of one annotator " if found.annotators else "(or several people's choices) "
        notes.append(f"{repeats.duplicates:,} exact duplicates {whose}count several times")
    if repeats is not None and repeats.within_annotators:
        notes.append(f"annotators contradict themselves on {repeats.within_annotators:,} pairs")
    if found.lengths is not None and found.lengths.is_uneven:
        side = "chosen" if found.lengths.share_longer > 0.5 else "rejected"
        notes.append(f"the {side} response is longer; length can pass for preference")
    truncation = found.truncation
    if truncation is not None and truncation.fully + truncation.made_equal:
        notes.append(f"max_length {truncation.max_length} leaves pairs that teach nothing")
    if truncation is not None and truncation.merged:
        notes.append(
            f"the responses of {truncation.merged:,} pairs begin before the prompt ends, since "
            "tokens merge there; end the prompt on a token boundary"
        )
    if found.annotators is not None and found.annotators.once == found.annotators.number:
        notes.append("every annotator judged once: no evidence of differences between people")
    return notes


def _show_example(example: Example, title: str, console: Console) -> None:
    whose = "" if example.annotator is None else f", annotator {abridged(example.annotator)}"
    console.print(Text(f"{title}: row {example.row}{whose}", style="bold"))
    for name in TEXT_COLUMNS:
        text = Text(f"{name:>9} ", style="dim")
        text.append("|", style="bold cyan")  # the boundary of prompt and response
        text.append(_cut(getattr(example, name)), style="default")
        text.append("|", style="bold cyan")
        console.print(text)


def _cut(text: str) -> str:
    """The beginning and the end of a long text, and nothing that steers a terminal."""
    text = printable(text)
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"
