"""`mixdpo rivals`: does any model of how people differ predict better than one strength?"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file

from mixdpo_pyro.diagnosis.config import RIVALS_FILE, RivalsConfig
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.inference.choices import number_labels, random_people, read_choices
from mixdpo_pyro.inference.people.rivals.harness import ONE_STRENGTH, RIVALS, Folds, make_folds
from mixdpo_pyro.inference.people.rivals.records import (
    Embeddings,
    KnownChoices,
    project_embeddings,
)
from mixdpo_pyro.inference.people.rivals.scores import (
    RivalScore,
    Worst,
    compare_rivals,
    find_winners,
)
from mixdpo_pyro.io import write_csv
from mixdpo_pyro.margins.table import MarginData, read_margins
from mixdpo_pyro.progress import abridged
from mixdpo_pyro.reporting.figures.rivals import plot_gains
from mixdpo_pyro.reporting.html import encode_images, write_images
from mixdpo_pyro.reporting.records import write_record

__all__ = ["RivalsRecord", "judge_rivals", "rivals_lines", "score_table", "write_rivals"]

_TENSORS = ("chosen", "rejected")

_PROMPT = "prompt"

_FEWEST = 20

_BADLY_SERVED = "the tenth of annotators whom one strength predicts worst in training"


@dataclass(frozen=True)
class RivalsRecord:
    """Content of `rivals.json`.

    Attributes:
        source: Name of the file.
        choices: Number of choices.
        annotators: Number of annotators.
        scored: Held-out choices that score: their annotator is known from other folds.
        scored_annotators: Annotators who made them.
        folds: Number of folds.
        held_out: What is held out together: `"choices"`, or the name of a column.
        worst: Groups of which the worst counts, in words.
        scores: Models, those on margins first.
        not_run: Models that were not run -> why.
        beat_one_strength: Models that predict better than one strength at 5%, allowing for how
            many were tried, the best first.
        gain_from_people: Models that predict better than the same model of equal people.
        num_drawn: Where annotators are a random part of all, how many.
        num_alike: Rows that look like one choice among several responses.
        config: Options of the command.
    """

    source: str
    choices: int
    annotators: int
    scored: int
    scored_annotators: int
    folds: int
    held_out: str
    worst: str
    scores: list[RivalScore]
    not_run: dict[str, str]
    beat_one_strength: list[str]
    gain_from_people: list[str]
    num_drawn: int | None
    num_alike: int
    config: dict[str, Any]


@dataclass(frozen=True)
class _Input:
    """What was read: choices, ids of annotators, and groups."""

    choices: KnownChoices
    labels: tuple[str, ...]
    held: np.ndarray | None
    group: np.ndarray | None
    num_drawn: int | None


def judge_rivals(
    path: str | Path, config: RivalsConfig | None = None, progress: bool = False
) -> tuple[RivalsRecord, pd.DataFrame]:
    """Compare models of how people differ on a file's choices.

    Args:
        path: Margins of plain pairs with annotator ids, as `mixdpo diagnose` reads them.
        config: Options.
        progress: Show a progress bar.

    Returns:
        Scores of the models, and what they say of each annotator.

    Raises:
        DataError: Naming the file, column and row that cannot be used.
    """
    from tqdm import tqdm

    config = config or RivalsConfig()
    asked = dict.fromkeys(name for name in (config.holdout, config.group) if name is not None)
    data = read_margins(path, config.annotator, tuple(asked))
    try:
        given = _read_input(data.pseudonymised(config.pseudonymise), config)
        folds = make_folds(given.choices.annotator, config.num_folds, given.held, config.seed)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    runs = [r for r in RIVALS if r.inputs == "margins" or config.embeddings is not None]
    with tqdm(total=len(runs) * (folds.number + 1), disable=not progress, unit="fit") as bar:

        def advance(name: str) -> None:
            bar.set_description(name)
            bar.update()

        scores, found = compare_rivals(
            given.choices, folds, rivals=runs, held_group=given.held, worst=_worst(given.group),
            seed=config.seed, advance=advance,
        )  # fmt: skip
    people = {name: held.people for name, held in found.items() if held.people}
    return _record(data, config, given, folds, scores), _people_table(given, people)


def _record(
    data: MarginData,
    config: RivalsConfig,
    given: _Input,
    folds: Folds,
    scores: list[RivalScore],
) -> RivalsRecord:
    run = {score.model for score in scores}
    scored = given.choices.annotator[folds.is_scored]
    return RivalsRecord(
        source=data.source,
        choices=len(given.choices),
        annotators=len(given.labels),
        scored=len(scored),
        scored_annotators=len(np.unique(scored)),
        folds=folds.number,
        held_out=config.holdout or "choices",
        worst=config.group or _BADLY_SERVED,
        scores=scores,
        not_run={r.name: "no --embeddings" for r in RIVALS if r.name not in run},
        beat_one_strength=find_winners(scores),
        gain_from_people=find_winners(scores, "people_gain"),
        num_drawn=given.num_drawn,
        num_alike=data.num_alike,
        config=asdict(config),
    )


def _read_input(data: MarginData, config: RivalsConfig) -> _Input:
    """Choices as numbers.

    Raises:
        ValueError: If they are no plain pairs of known people.
        DataError: Naming the file of embeddings that cannot be used.
    """
    if data.done:
        names = ", ".join(data.done)
        raise ValueError(
            f"Expected plain pairs, got choices with {names}: rival models know neither sets nor "
            "ties nor grades"
        )
    if data.annotator is None:
        raise ValueError(
            "Expected annotator ids; name their column with --annotator: held-out choices are "
            "those of known people"
        )
    embeddings = _read_embeddings(config, data)
    known = read_choices(data.margin, data.annotator)
    if known.num_pairs < _FEWEST:
        raise ValueError(f"Expected at least {_FEWEST} choices, got {known.num_pairs}")
    if not known.has_panels:
        raise ValueError(
            f"Expected several choices of each annotator, got one in column "
            f"{data.annotator_column!r}"
        )
    assert known.annotator is not None
    rng = np.random.default_rng((config.seed, 83))
    kept = random_people(known, rng, max_choices=config.max_choices)
    people = np.arange(known.num_annotators) if kept is None else kept
    rows = np.isin(known.annotator, people)
    margin = known.margin / np.sqrt((known.margin[rows] ** 2).mean())
    choices = KnownChoices(margin, known.annotator, known.num_annotators, embeddings).take(rows)
    number = np.searchsorted(people, choices.annotator)
    group = None if config.group is None else data.groups[config.group][rows]
    held = None if config.holdout is None else number_labels(data.groups[config.holdout][rows])
    return _Input(
        replace(choices, annotator=number, num_annotators=len(people)),
        tuple(known.labels[k] for k in people),
        held,
        group,
        None if kept is None else len(people),
    )


def _read_embeddings(config: RivalsConfig, data: MarginData) -> Embeddings | None:
    """Embeddings of the rows that were read; the file holds those of every row of the margins."""
    if config.embeddings is None:
        return None
    path = Path(config.embeddings).expanduser()
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: cannot be read as safetensors ({error})") from error
    wanted = [*_TENSORS, *([_PROMPT] if _PROMPT in tensors else [])]
    found = {}
    for name in wanted:
        if name not in tensors:
            has = ", ".join(sorted(tensors)) or "none"
            raise DataError(f"{path}: tensor '{name}' is missing; it has {has}")
        tensor = tensors[name]
        if tensor.ndim != 2 or len(tensor) != data.num_rows or not tensor.shape[1]:
            raise DataError(
                f"{path}: tensor '{name}' has shape {tuple(tensor.shape)}, expected an embedding "
                f"for each of the {data.num_rows:,} rows of margins"
            )
        found[name] = tensor.float().numpy()
        bad = np.flatnonzero(~np.isfinite(found[name]).all(1))
        if bad.size:
            raise DataError(f"{path}: tensor '{name}' has no finite numbers in row {bad[0]}")
        found[name] = found[name][data.row_numbers]
    sizes = [found[name].shape[1] for name in _TENSORS]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{path}: expected chosen and rejected embeddings of one size, got {sizes[0]} and "
            f"{sizes[1]}"
        )
    try:
        return project_embeddings(
            found["chosen"], found["rejected"], found.get(_PROMPT), config.components
        )
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _worst(group: np.ndarray | None) -> Worst | None:
    if group is None:
        return None
    names, label = np.unique(group.astype(str), return_inverse=True)
    return Worst(label, tuple(names))


def _people_table(given: _Input, people: Mapping[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Annotators, and what each model says of them."""
    table = {"annotator": given.labels, "choices": given.choices.count}
    for model, columns in people.items():
        table |= {f"{model}: {name}": value for name, value in columns.items()}
    return pd.DataFrame(table)


def score_table(record: RivalsRecord) -> pd.DataFrame:
    """A row for each model; settings as text."""
    rows = [asdict(score) | {"setting": _setting(score)} for score in record.scores]
    return pd.DataFrame(rows)


def _setting(score: RivalScore) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in score.setting.items())


def write_rivals(record: RivalsRecord, people: pd.DataFrame, folder: Path) -> None:
    """Write `rivals.csv`, `types.csv`, `rivals.json` and the figure into a folder."""
    for name, table in {"rivals.csv": score_table(record), "types.csv": people}.items():
        write_csv(table, folder / name)
    rivals = [score for score in record.scores if score.model != ONE_STRENGTH]
    figure = plot_gains(
        [score.model for score in rivals],
        [(score.gain, score.gain_q05, score.gain_q95) for score in rivals],
        [score.inputs == "embeddings" for score in rivals],
    )
    write_images(encode_images({"gains": figure}), folder)
    write_record(record, folder / RIVALS_FILE)


def rivals_lines(record: RivalsRecord) -> list[str]:
    """The result in a few lines of text."""
    drawn = "" if record.num_drawn is None else ", drawn at random"
    held = "choices of each annotator" if record.held_out == "choices" else record.held_out
    lines = [
        f"{record.source}: {record.choices:,} pairs, {record.annotators:,} annotators{drawn}",
        f"{record.scored:,} held-out choices of {record.scored_annotators:,} known annotators; "
        f"{record.folds} folds by {held}",
        "",
        f"{'model':26}{'nats':9}{'over one strength':22}{'by people':18}{'accuracy':10}"
        f"{'macro':9}worst",
    ]
    lines += [_score_line(score) for score in record.scores]
    return [*lines, "", *_conclusions(record)]


def _score_line(score: RivalScore) -> str:
    gain = people = ""
    if score.model != ONE_STRENGTH:
        gain = f"{score.gain:+.4f} +- {score.gain_q95 - score.gain:.4f}"
        people = f"{score.people_gain:+.4f}" if score.people_gain else ""
    return (
        f"{score.model:26}{score.nats:<9.4f}{gain:22}{people:18}{score.accuracy:<10.4f}"
        f"{score.macro_nats:<9.4f}{score.worst_nats:.4f}"
    )


def _conclusions(record: RivalsRecord) -> list[str]:
    worst = {abridged(score.worst_group) for score in record.scores if score.worst_group}
    lines = [
        _named("Better than one strength", record.beat_one_strength),
        _named("Better than the same model of equal people", record.gain_from_people),
        "Nats are log-probabilities per held-out choice, +- half a 90% interval; macro weighs "
        "annotators equally; worst is "
        + (f"of {record.worst}: {', '.join(sorted(worst))}" if record.config["group"] else
           record.worst) + ".",
    ]  # fmt: skip
    if record.not_run:
        lines.append(f"Not run, since they need --embeddings: {', '.join(record.not_run)}.")
    if record.num_alike:
        lines.append(
            f"{record.num_alike:,} rows look like one choice among several responses; taken as "
            "pairs they make equal people look different. Keep one row of each."
        )
    return lines


def _named(words: str, models: list[str]) -> str:
    found = ", ".join(models) if models else "none"
    return f"{words} (5% over all models): {found}."
