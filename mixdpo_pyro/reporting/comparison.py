"""Finished runs side by side: a table, and a self-contained page with the intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixdpo_pyro.errors import ConfigError, OutputError
from mixdpo_pyro.inference.outcomes import Outcomes
from mixdpo_pyro.inference.posterior import Posterior, format_interval
from mixdpo_pyro.inference.predictive import choice_probabilities
from mixdpo_pyro.models.observation import observed_log_prob
from mixdpo_pyro.reporting.arms import (
    ARM_HEADINGS,
    ARM_TABLES,
    ArmResult,
    advise_arms,
    arm_notes,
    arm_rows,
)
from mixdpo_pyro.reporting.figures.style import literal
from mixdpo_pyro.reporting.health_checks import check_run
from mixdpo_pyro.reporting.html import PageFigure, embed_figures, render_page, write_page
from mixdpo_pyro.reporting.run_record import FinishedRun
from mixdpo_pyro.reporting.sweep_record import (
    SweptRun,
    expand_sweeps,
    find_swept,
    short_names,
    unfinished_runs,
)

__all__ = ["RunSummary", "load_summaries", "plot_intervals", "show_comparison", "write_comparison"]


@dataclass(frozen=True)
class RunSummary:
    """What is compared of a run.

    Attributes:
        name: Name of its folder.
        folder: The folder.
        family: Family of the strength in training.
        mean_anchor: Anchoring of the mean.
        data: Name of the dataset.
        num_pairs: Held-out pairs, or choices of another kind.
        num_annotators: Annotators whose strengths were learned.
        verdict: heterogeneous, homogeneous, inconclusive, or no verdict.
        health: Whether the verdict can be trusted: PASS, REVIEW or FAIL.
        cv: Draws of the coefficient of variation given the held-out pairs.
        mean: Draws of the mean.
        accuracy: Share of held-out pairs with a positive margin.
        log_prob: Mean log-probability of the held-out choices in nats, at the median of the
            distribution.
        held_out: What the held-out pairs are, to tell whether runs can be compared.
        swept: Its place in a sweep; None for a run by itself.
    """

    name: str
    folder: Path
    family: str
    mean_anchor: str
    data: str
    num_pairs: int
    num_annotators: int
    verdict: str
    health: str
    cv: np.ndarray
    mean: np.ndarray
    accuracy: float
    log_prob: float
    held_out: frozenset[tuple[str, int]] = field(repr=False)
    swept: SweptRun | None = None


def load_summaries(folders: Sequence[str | Path]) -> list[RunSummary]:
    """Read runs, and the finished ones of sweeps; parent folders tell equal names apart.

    Raises:
        ConfigError: If a folder is given twice.
        OutputError: If a folder is no run folder, or damaged.
    """
    paths = [Path(folder).expanduser() for folder in expand_sweeps(map(str, folders))]
    resolved = [path.resolve() for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise ConfigError(f"{path}: is given twice")
    names = short_names(resolved)
    return [_load(path, name) for path, name in zip(paths, names, strict=True)]


def show_comparison(runs: Sequence[RunSummary], console: Console) -> None:
    """Print what was learned, what it was learned from, and what to keep in mind about it."""
    arms = _arm_results(runs)
    console.print(Text(f"what to do: {_advice(runs)}\n"))
    for columns in ARM_TABLES if arms else ():
        _print_table(ARM_HEADINGS, arm_rows(arms), ("arm", "beta", "seeds", *columns), console)
    for names in _TERMINAL_TABLES:
        _print_table(_HEADINGS, _rows(runs), ("run", *names), console)
    for source in dict.fromkeys(run.data for run in runs):
        console.print(Text(f"data: {source}"))
    for note in _notes(runs):
        console.print(Text(note))


def _print_table(
    headings: Sequence[str], rows: list[list[str]], shown: Sequence[str], console: Console
) -> None:
    """Some columns of a table; the first may be broken over lines."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in shown:
        table.add_column(name, no_wrap=name != shown[0], overflow="fold")
    for row in rows:
        cells = dict(zip(headings, row, strict=True))
        table.add_row(*(Text(cells[name]) for name in shown))
    console.print(table)
    console.print()


def write_comparison(runs: Sequence[RunSummary], path: str | Path) -> Path:
    """Write the table and the figure of the intervals as one self-contained page.

    Raises:
        OutputError: If the folder of `path` does not exist.
    """
    path = Path(path).expanduser()
    if not path.parent.is_dir() or path.is_dir():
        raise OutputError(f"{path}: expected the name of a file in a folder that exists")
    alt = "; ".join(
        f"{r.name}: cv {format_interval(r.cv)}, mean {format_interval(r.mean)}" for r in runs
    )
    intervals = PageFigure(
        "cv and mean strength, by run", alt, plot_intervals(runs),
        "Median (point), 50% (thick) and 90% (thin) interval given the held-out pairs.",
    )  # fmt: skip
    (figure,), _ = embed_figures({"intervals": intervals})
    page = render_page(
        "compare.html",
        advice=_advice(runs),
        arm_headings=ARM_HEADINGS,
        arms=arm_rows(_arm_results(runs)),
        headings=_HEADINGS,
        rows=_rows(runs),
        notes=_notes(runs),
        figure=figure,
    )
    return write_page(page, path)


def plot_intervals(runs: Sequence[RunSummary]) -> Figure:
    """Median, 50% and 90% interval of cv and mean, a line a run."""
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(runs)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(runs))[::-1]
    for axis, name in zip(axes, ("cv", "mean"), strict=True):
        for place, run in zip(places, runs, strict=True):
            low, quarter, middle, upper, high = np.quantile(
                getattr(run, name), [0.05, 0.25, 0.5, 0.75, 0.95]
            )
            axis.plot([low, high], [place, place], color="#2456a6", linewidth=1.5)
            axis.plot([quarter, upper], [place, place], color="#2456a6", linewidth=4)
            axis.plot(middle, place, "o", color="#2456a6", markersize=6)
        axis.set_title({"cv": "cv of the strength", "mean": "mean strength"}[name])
        axis.set_ylim(-0.6, len(runs) - 0.4)
        axis.grid(axis="x", color="#dddddd")
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_xlim(left=0)
    axes[0].set_yticks(places, [literal(_cut(run.name)) for run in runs])
    axes[1].tick_params(axis="y", length=0)
    return figure


def _load(folder: Path, name: str) -> RunSummary:
    run = FinishedRun.load(folder)
    record, posterior = run.record, run.posterior
    source, choices = record.data.source, run.held_out_choices
    return RunSummary(
        name=name,
        folder=folder,
        family=record.family,
        mean_anchor=record.mean_anchor,
        data=source,
        num_pairs=len(run.margins) if choices is None else choices.num_choices,
        num_annotators=len(posterior.annotators),
        verdict=record.verdict.value if record.verdict else "no verdict",
        health=check_run(run).status.value,
        cv=posterior.cv,
        mean=posterior.mean,
        accuracy=run.accuracy,
        log_prob=_mean_log_prob(
            run.margins["margin"].to_numpy(np.float64) if choices is None else choices.margin,
            posterior,
            None if choices is None else choices.outcomes,
        ),
        held_out=frozenset((source, int(row)) for row in run.margins["source_row"]),
        swept=find_swept(folder),
    )


def _arm_results(runs: Sequence[RunSummary]) -> list[ArmResult]:
    """What the runs of sweeps add to their arms."""
    return [
        ArmResult(
            run.swept, run.folder.parents[3].name, run.accuracy, run.num_pairs, run.log_prob,
            float(np.median(run.cv)), run.verdict, run.health,
        )
        for run in runs
        if run.swept is not None
    ]  # fmt: skip


def _advice(runs: Sequence[RunSummary]) -> str:
    """What to mend, and what the comparison says."""
    if failed := ", ".join(run.name for run in runs if run.health == "FAIL"):
        return f"Not to be trusted, see the report: {failed}. Mend what failed before you compare."
    return advise_arms(_arm_results(runs))


def _hold_out_the_same(runs: Sequence[RunSummary]) -> bool:
    """Whether runs can be compared one by one; of sweeps, those of one seed."""
    seeds = [None if run.swept is None else run.swept.seed for run in runs]
    parts = {(seed, run.held_out) for seed, run in zip(seeds, runs, strict=True)}
    return len(parts) == len(set(seeds))


def _mean_log_prob(
    margin: np.ndarray, posterior: Posterior, outcomes: Outcomes | None = None
) -> float:
    """Every choice taken by itself, as for a new annotator; NaN where there is none, or no fit."""
    if len(margin) == 0 or not np.isfinite(posterior.cv).all():
        return float("nan")
    point = posterior.at(float(np.median(posterior.mean)), float(np.median(posterior.cv)))
    if outcomes is None:
        return float(np.log(choice_probabilities(point, margin)).mean())
    outcomes = outcomes.at(point.parameters, 0)
    value, code, choice = torch.from_numpy(margin), torch.from_numpy(outcomes.code), None
    if outcomes.are_sets:
        value, code, choice = outcomes.utilities(margin)
    mean, cv, family = float(point.mean[0]), float(point.cv[0]), posterior.family
    log_prob = observed_log_prob(
        outcomes.observation, value, mean, cv, family, outcome=code, choice_set=choice
    )
    return log_prob.mean().item()


_HEADINGS = (
    "run", "verdict", "health", "cv", "mean strength", "accuracy", "log-probability", "family",
    "mean anchor", "held out", "annotators", "data",
)  # fmt: skip

_TERMINAL_TABLES = (
    ("verdict", "health", "cv", "mean strength"),
    ("family", "mean anchor", "held out", "annotators", "accuracy", "log-probability"),
)  # of eighty characters


def _rows(runs: Sequence[RunSummary]) -> list[list[str]]:
    return [
        [
            run.name, run.verdict, run.health, format_interval(run.cv), format_interval(run.mean),
            f"{run.accuracy:.3f}", f"{run.log_prob:.4f}", run.family, run.mean_anchor,
            f"{run.num_pairs:,}", f"{run.num_annotators:,}" if run.num_annotators else "-",
            Path(run.data).name,
        ]
        for run in runs
    ]  # fmt: skip


def _notes(runs: Sequence[RunSummary]) -> list[str]:
    """How to read the table."""
    notes = [
        "cv and mean: median and 90% interval given the held-out pairs. Log-probability: nats per "
        "held-out choice, more is better; each choice taken by itself.",
        "The mean depends on the size of a policy's margins, so means of different policies say "
        "little. Intervals take the margins as given.",
    ]
    notes += arm_notes(_arm_results(runs))
    for sweep in dict.fromkeys(run.folder.parents[3] for run in runs if run.swept):
        if missing := ", ".join(unfinished_runs(sweep)):
            notes.append(f"Not finished in {sweep.name}, and missing here: {missing}.")
    if not _hold_out_the_same(runs):
        notes.append(
            "The runs held out different pairs: accuracies and log-probabilities are not "
            "comparable."
        )
    return notes


def _cut(name: str, length: int = 28) -> str:
    return name if len(name) <= length else f"...{name[3 - length :]}"
