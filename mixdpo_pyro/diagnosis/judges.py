"""`mixdpo judges`: ratings from votes, and how strongly, and to which side, each judge leans."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mixdpo_pyro.data.tables import Table, check_has_columns, read_table
from mixdpo_pyro.data.validation import TextRule, id_rule
from mixdpo_pyro.diagnosis.config import JUDGES_FILE, JudgesConfig
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.inference.people.judges import JudgesFit, fit_judges
from mixdpo_pyro.io import write_csv
from mixdpo_pyro.progress import abridged
from mixdpo_pyro.reporting.figures.judges import plot_judges, plot_ratings
from mixdpo_pyro.reporting.html import encode_images, write_images
from mixdpo_pyro.reporting.records import write_record

__all__ = [
    "JudgesRecord", "judge_table", "judges_lines", "rate_votes", "rating_table", "write_judges",
]  # fmt: skip

_TIES = ("tie", "tie (bothbad)", "both_bad", "draw")

_ELO = 400 / np.log(10)

_MOST_SHOWN = 25

_LEANING = 0.75
"""Probability of one side between equal items from which on a judge is named."""


@dataclass(frozen=True)
class JudgesRecord:
    """Content of `judges.json`.

    Attributes:
        source: Name of the file.
        votes: Number of votes.
        ties: How many of them are ties.
        items: Number of items.
        judges: Number of judges; 0 where all are taken as equal.
        log_likelihood: Marginal log-likelihood in nats.
        parameters: Name -> median, 5% and 95% quantiles, see `JudgesFit`.
        unbeaten: Items that won, or lost, every vote.
        config: Options of the command.
    """

    source: str
    votes: int
    ties: int
    items: int
    judges: int
    log_likelihood: float
    parameters: dict[str, tuple[float, float, float]]
    unbeaten: tuple[str, ...]
    config: dict[str, Any]


def rate_votes(
    path: str | Path, config: JudgesConfig | None = None
) -> tuple[JudgesFit, JudgesRecord]:
    """Rate what a file's votes are about.

    Args:
        path: A `parquet`, `csv` or `jsonl` file, a vote a row.
        config: Options.

    Raises:
        DataError: Naming the file, column and row that cannot be used.
    """
    config = config or JudgesConfig()
    names = {"left": config.left, "right": config.right, "winner": config.winner}
    if config.judge is not None:
        names["judge"] = config.judge
    columns = _read_columns(Path(path), names)
    try:
        found = fit_judges(**columns, equal_judges=config.equal_judges)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    winner = columns["winner"]
    record = JudgesRecord(
        str(path), len(winner), int((winner == "tie").sum()), len(found.items),
        len(found.judges), found.log_likelihood, found.parameters, found.unbeaten, asdict(config),
    )  # fmt: skip
    return found, record


def _read_columns(path: Path, names: Mapping[str, str]) -> dict[str, Any]:
    table = read_table(path, names.values())
    if table.problems:
        raise DataError(f"{path}: cannot be read as a table: {table.problems[0]}")
    check_has_columns(table.all_names, names.values(), path)
    if not len(table.rows):
        raise DataError(f"{path}: there are no rows")
    columns = {
        role: _texts(path, table, name, id_rule())
        for role, name in names.items()
        if role != "winner"
    }
    _refuse_twins(path, table, columns)
    columns["winner"] = _winners(path, table, names, columns["left"], columns["right"])
    return columns


def _texts(path: Path, table: Table, name: str, rule: TextRule) -> np.ndarray:
    return rule.read(table.values(name), lambda k, expected: table.fault(path, k, name, expected))


def _refuse_twins(path: Path, table: Table, columns: Mapping[str, np.ndarray]) -> None:
    same = np.flatnonzero(columns["left"] == columns["right"])
    if len(same):
        name = columns["left"][same[0]]
        raise DataError(
            f"{path}: row {table.rows[int(same[0])]} compares '{name}' with itself "
            f"({len(same):,} of {len(table.rows):,} rows do)"
        )


def _winners(
    path: Path, table: Table, names: Mapping[str, str], left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """`left`, `right` or `tie` of each row, whichever way the file says it."""
    known = {"left": "left", "right": "right", names["left"]: "left", names["right"]: "right"}
    known |= dict.fromkeys(_TIES, "tie")
    values = table.values(names["winner"])
    found = np.empty(len(values), dtype=object)
    for k, value in enumerate(values):
        text = str(value)
        by_item = "left" if text == left[k] else "right" if text == right[k] else None
        winner = by_item or known.get(text)
        if winner is None:
            expected = (
                f"left, right, tie, '{names['left']}', '{names['right']}', or the item that won"
            )
            raise table.fault(path, k, names["winner"], expected)
        found[k] = winner
    return found


def rating_table(found: JudgesFit) -> pd.DataFrame:
    """Items, the best first: ratings in logits and as Elo, ranks, 90% intervals."""
    low, high = found.interval().T
    best, worst = found.rank_interval().T
    table = pd.DataFrame(
        {
            "item": found.items, "rating": found.rating, "q05": low, "q95": high,
            "elo": 1000 + _ELO * found.rating, "elo_q05": 1000 + _ELO * low,
            "elo_q95": 1000 + _ELO * high, "best_rank": best, "worst_rank": worst,
        }
    )  # fmt: skip
    return table.sort_values("rating", ascending=False, ignore_index=True)


def judge_table(found: JudgesFit) -> pd.DataFrame:
    """Judges: votes, strength, side bias, lapse, and how often left wins between equal items."""
    table = pd.DataFrame({"judge": found.judges, "votes": found.num_votes})
    described = {"strength": found.strength, "side_bias": found.side, "lapse": found.lapse}
    for name, value in described.items():
        for k, suffix in enumerate(("_q05", "", "_q95")):
            table[f"{name}{suffix}"] = value[:, k]
    table["left_of_even"] = 1 / (1 + np.exp(-table["side_bias"]))
    return table


def write_judges(found: JudgesFit, record: JudgesRecord, folder: Path) -> None:
    """Write `ratings.csv`, `judges.csv`, `judges.json` and the figures into a folder."""
    tables = {"ratings.csv": rating_table(found)}
    ratings = tables["ratings.csv"]
    figures = {"ratings": plot_ratings(ratings)}
    if found.judges:
        tables["judges.csv"] = judge_table(found)
        figures["judges"] = plot_judges(tables["judges.csv"])
    for name, table in tables.items():
        write_csv(table, folder / name)
    write_images(encode_images(figures), folder)
    write_record(record, folder / JUDGES_FILE)


def judges_lines(found: JudgesFit, record: JudgesRecord) -> list[str]:
    """The result in a few lines of text."""
    ratings = rating_table(found)
    who = f", {record.judges:,} judges" if record.judges else ", judges taken as equal"
    lines = [
        f"{record.source}: {record.votes:,} votes ({record.ties:,} ties), {record.items:,} items"
        f"{who}",
        "",
        f"{'item':32}{'rating in logits, 90%':28}{'Elo':7}ranks, 90%",
    ]
    lines += [_rating_line(row) for row in ratings.head(_MOST_SHOWN).to_dict("records")]
    if len(ratings) > _MOST_SHOWN:
        lines.append(f"and {len(ratings) - _MOST_SHOWN:,} more")
    return [*lines, "", *_judge_lines(found), *_parameter_lines(record)]


def _rating_line(row: Mapping[str, Any]) -> str:
    interval = f"{row['rating']:.2f} [{row['q05']:.2f}, {row['q95']:.2f}]"
    ranks = f"{row['best_rank']} to {row['worst_rank']}"
    return f"{abridged(row['item']):32}{interval:28}{row['elo']:<7.0f}{ranks}"


def _judge_lines(found: JudgesFit) -> list[str]:
    """Judges who lean to one side, most of all first."""
    if not found.judges:
        return []
    judges = judge_table(found)
    leaning = judges[(judges["left_of_even"] - 0.5).abs() > _LEANING - 0.5]
    leaning = leaning.reindex(leaning["side_bias"].abs().sort_values(ascending=False).index)
    lines = [_leaning_line(row) for row in leaning.head(5).to_dict("records")]
    if len(leaning) > len(lines):
        lines.append(f"and {len(leaning) - len(lines):,} more judges who lean to one side")
    return lines


def _leaning_line(row: Mapping[str, Any]) -> str:
    share, side = row["left_of_even"], "left"
    if share < 0.5:
        share, side = 1 - share, "right"
    return (
        f"judge {abridged(row['judge'])} says {side} in {100 * share:.0f}% of even comparisons "
        f"({row['votes']:,} votes)"
    )


def _parameter_lines(record: JudgesRecord) -> list[str]:
    words: Sequence[tuple[str, str]] = (
        ("cv", "judges' strengths, coefficient of variation"),
        ("side", "judges' side biases, scale in logits"),
        ("threshold", "threshold of ties, in logits"),
    )
    lines = [
        f"{text}: {record.parameters[name][0]:.2g} [{record.parameters[name][1]:.2g}, "
        f"{record.parameters[name][2]:.2g}]"
        for name, text in words
        if name in record.parameters
    ]
    if record.unbeaten:
        lines.append(
            f"won, or lost, every vote: {', '.join(map(abridged, record.unbeaten))}; only the "
            "prior (sd 5 logits) holds these ratings"
        )
    return lines
