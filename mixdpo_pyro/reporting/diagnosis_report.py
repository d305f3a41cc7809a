"""The page of a diagnosis: one self-contained HTML file, the verdict first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mixdpo_pyro.inference.diagnosis import Diagnosis
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.inference.predictive import choice_probabilities
from mixdpo_pyro.inference.robustness.differences import PAIR_ERRORS
from mixdpo_pyro.progress import abridged
from mixdpo_pyro.reporting.diagnosis_record import DiagnosisRecord
from mixdpo_pyro.reporting.figures.annotators import (
    plot_annotator_intervals,
    plot_annotators,
    who_is_shown,
)
from mixdpo_pyro.reporting.figures.checks import plot_shares
from mixdpo_pyro.reporting.figures.diagnosis import (
    plot_agreement,
    plot_cv_by_family,
    plot_cv_intervals,
)
from mixdpo_pyro.reporting.html import (
    PageFigure,
    cv_figure,
    embed_figures,
    render_page,
    write_images,
    write_page,
)
from mixdpo_pyro.reporting.outcome_shares import replicate_shares
from mixdpo_pyro.reporting.recommendation import headline

__all__ = ["write_diagnosis_report"]

_ROWS = 10
"""Rows of the table of annotators that are shown from each end."""


def write_diagnosis_report(
    diagnosis: Diagnosis,
    record: DiagnosisRecord,
    annotators: pd.DataFrame | None,
    groups: pd.DataFrame | None,
    differences: pd.DataFrame | None,
    folder: Path,
    show_annotators: Sequence[str] = (),
) -> Path:
    """Write `report.html` and `figures/` into a diagnosis folder.

    Args:
        diagnosis: The diagnosis.
        record: Content of `diagnosis.json`.
        annotators: Table of annotators, strongest first, or None.
        groups: Table of groups, or None.
        differences: Table of what people differ in, or None.
        folder: The folder.
        show_annotators: Annotators whom figure and table show; default, of many a selection.

    Returns:
        Path of the page.
    """
    figures, images = embed_figures(_figures(diagnosis, record, annotators, show_annotators))
    page = render_page(
        "diagnosis.html",
        record=record,
        headline=headline(record.verdict),
        figures=figures,
        annotators=None if annotators is None else _shown(annotators, show_annotators),
        are_named=bool(show_annotators),
        num_careless=0 if annotators is None else int((annotators["p_careless"] > 0.9).sum()),
        groups=None if groups is None else _rows(groups.head(2 * _ROWS), "group"),
        differences=None if differences is None else _rows(differences, "part"),
        num_groups=0 if groups is None else len(groups),
        levels=_level_rows(record),
    )
    write_images(images, folder)
    return write_page(page, folder / "report.html")


def _shown(table: pd.DataFrame, show_annotators: Sequence[str]) -> list[dict[str, Any]]:
    if show_annotators:
        table = table[table["annotator"].isin(show_annotators)]
    elif len(table) > 2 * _ROWS:
        table = pd.concat([table.head(_ROWS), table.tail(_ROWS)])
    return _rows(table, "annotator")


def _rows(table: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """Rows of a table whose names fit into a cell."""
    rows = [{str(k): v for k, v in row.items()} for row in table.to_dict("records")]
    return [row | {name: abridged(str(row[name]))} for row in rows]


def _level_rows(record: DiagnosisRecord) -> list[dict[str, Any]]:
    """Levels of the columns of `--strength`, those that stand out most first."""
    effects = record.effects
    rows = [] if effects is None else sorted(effects.levels, key=lambda row: row.p_value)
    return [
        {**vars(row), "column": abridged(row.column), "level": abridged(row.level)}
        for row in rows[: 2 * _ROWS]
    ]


def _cv_intervals(diagnosis: Diagnosis) -> dict[str, tuple[float, float]]:
    """Explanation -> 90% interval of cv; of errors too whose size nothing shared tells."""
    intervals = {"main fit": diagnosis.result.posterior.interval("cv")}
    for check in diagnosis.checks:
        if check.cv_interval:
            intervals[check.name] = check.cv_interval
        elif check.name == PAIR_ERRORS and "cv, 5%" in check.numbers:
            ends = check.numbers["cv, 5%"], check.numbers["cv, 95%"]
            intervals[f"{check.name}, its size by the likelihood and a prior"] = ends
    return intervals


def _figures(
    diagnosis: Diagnosis,
    record: DiagnosisRecord,
    annotators: pd.DataFrame | None,
    show_annotators: Sequence[str],
) -> dict[str, PageFigure]:
    intervals = _cv_intervals(diagnosis)
    draws = {n: r.posterior.cv for n, r in diagnosis.fits.items() if n != "fixed"}
    words = "; ".join(f"{name} {a:.2f} to {b:.2f}" for name, (a, b) in intervals.items())
    posterior, interval = diagnosis.result.posterior, record.verdict.cv_interval
    figures = {
        "cv": cv_figure(posterior.cv, interval),
        "cv_intervals": PageFigure(
            "Does another explanation change the answer?",
            f"90% intervals of cv: {words}.",
            plot_cv_intervals(intervals),
        ),
        "agreement": _agreement(diagnosis),
        "cv_by_family": PageFigure(
            "From prior to posterior, by family",
            "Posterior of cv: "
            + "; ".join(f"{name}, median {np.median(cv):.2f}" for name, cv in draws.items())
            + ".",
            plot_cv_by_family(draws),
        ),
    }
    if annotators is not None and posterior.annotators:
        figures["annotators"] = PageFigure(
            "Annotators",
            f"Strength of {len(annotators):,} annotators relative to their mean, 90% intervals.",
            _plot_annotators(posterior, show_annotators),
            who_is_shown(len(annotators), show_annotators),
        )
    return figures


def _agreement(diagnosis: Diagnosis) -> PageFigure:
    if diagnosis.choices.outcomes is None:
        return PageFigure(
            "How choices agree with the margin",
            "Share of choices that agree with the sign of the margin, by its size, observed with "
            "90% intervals, beside the curves of different strengths and of one strength.",
            plot_agreement(diagnosis.choices.margin, _curves(diagnosis)),
        )
    posterior = diagnosis.result.posterior
    shares = replicate_shares(posterior, diagnosis.choices, posterior.seed)
    leads = diagnosis.choices.outcomes.are_sets
    return PageFigure(
        "What was done, by the size of the margin",
        "Share of each outcome by "
        + ("the lead of the largest utility" if leads else "the size of the margin")
        + ", observed (dots), and where it lies in 90% of replications with new annotators (bands)"
        + ("." if leads else "; outcomes are those of the response that the margin favours."),
        plot_shares(shares),
    )


def _plot_annotators(posterior: Posterior, show_annotators: Sequence[str]) -> Figure:
    labels = posterior.annotators
    if posterior.strength is not None:
        return plot_annotators(posterior.strength, labels, show_annotators=show_annotators)
    summary = posterior.strength_summary
    low, middle, high = (summary[k] / summary["mean"].mean() for k in ("q05", "q50", "q95"))
    return plot_annotator_intervals(low, middle, high, labels, show_annotators=show_annotators)


def _curves(diagnosis: Diagnosis) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    size = np.linspace(1e-3, float(np.quantile(np.abs(diagnosis.choices.margin), 0.995)), 100)
    fits = {"different strengths": diagnosis.result, "one strength": diagnosis.fits["fixed"]}
    return {
        name: (size, choice_probabilities(result.posterior.first(200), size).mean(0))
        for name, result in fits.items()
    }
