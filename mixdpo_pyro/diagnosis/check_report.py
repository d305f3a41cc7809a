"""The page of posterior predictive checks: do the choices look like the posterior's?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mixdpo_pyro.diagnosis.check_statistics import (
    OWN_STRENGTH,
    SAME_PAIR,
    PredictiveCheck,
    Statistic,
)
from mixdpo_pyro.progress import abridged
from mixdpo_pyro.reporting.figures.checks import (
    plot_calibration_curve,
    plot_separation,
    plot_shares,
    plot_statistic,
)
from mixdpo_pyro.reporting.html import (
    PageFigure,
    embed_figures,
    render_page,
    write_images,
    write_page,
)

__all__ = ["LEVEL", "failed_statistics", "what_it_means", "write_check_report"]

LEVEL = 0.05
"""P-value below which one of all statistics differs, over their number."""

_MEANINGS = {
    SAME_PAIR: "margins have errors that judges of a pair share: they agree with each other more "
    "often than the posterior lets them (that of mixdpo diagnose allows for such errors where a "
    "column pair shows them)",
    OWN_STRENGTH: "annotators choose against large margins too often for any one strength: some "
    "answers are random, labels are wrong, or margins are",
}
"""What it says where a statistic is larger than the posterior predicts."""

_ROWS = 20
"""Rows of the table of groups, the most surprising first."""


def failed_statistics(found: PredictiveCheck) -> list[Statistic]:
    """Statistics whose p-value is below 5% over their number."""
    return [s for s in found.statistics if s.p_value < LEVEL / len(found.statistics)]


def what_it_means(failed: Sequence[Statistic]) -> list[str]:
    """What it says that statistics are larger than predicted; of some it is known."""
    return [_MEANINGS[s.name] for s in failed if s.name in _MEANINGS and s.observed > s.high]


def write_check_report(found: PredictiveCheck, folder: Path, sources: Sequence[str]) -> Path:
    """Write `report.html` and `figures/` into a folder.

    Args:
        found: What was checked.
        folder: The folder.
        sources: Files of the margins and of the posterior.
    """
    figures, images = embed_figures(_figures(found))
    failed = failed_statistics(found)
    page = render_page(
        "check.html",
        found=found,
        failed=[statistic.name for statistic in failed],
        meanings=what_it_means(failed),
        figures=figures,
        groups=_surprising_first(found.groups),
        sources=list(map(str, sources)),
    )
    write_images(images, folder)
    return write_page(page, folder / "report.html")


def _surprising_first(groups: pd.DataFrame) -> list[dict[str, Any]]:
    if not len(groups):
        return []
    rows = groups.sort_values("p_value", kind="stable").head(_ROWS).to_dict("records")
    return [{**row, "group": abridged(str(row["group"]))} for row in rows]


def _figures(found: PredictiveCheck) -> dict[str, PageFigure]:
    curve, outside = found.calibration, f"{100 * found.calibration.outside:.0f}%"
    event = "the first response" if found.kind == "pairs" else "an outcome drawn at random"
    figures = {
        "reliability": PageFigure(
            "Are the predicted probabilities right?",
            f"Observed frequency of {event} by its predicted probability; the curve leaves the "
            f"band of right predictions for {outside} of the choices; about 10% is right.",
            plot_calibration_curve(
                curve.predicted, curve.calibrated, curve.low, curve.high, event
            ),
        ),
        "separation": PageFigure(
            "Are likely choices told from unlikely ones?",
            f"Choices in the order of the predicted probability of {event}, dark where it "
            "happened, and that probability as a line.",
            plot_separation(found.probability, found.happened, event),
        ),
    }
    if len(found.shares):
        figures["shares"] = PageFigure(
            "What was done, by the size of the margin",
            "Share of each outcome by the size of the margin, observed (dots) and predicted "
            "(bands, 90%).",
            plot_shares(found.shares),
        )
    for k, each in enumerate(found.statistics):
        figures[f"statistic_{k + 1}"] = PageFigure(
            each.name[:1].upper() + each.name[1:],
            f"{each.name}: observed {each.observed:.3f}, replicated {each.low:.3f} to "
            f"{each.high:.3f} (90%), p = {each.p_value:.3f}.",
            plot_statistic(found.replicated[each.name], each.observed, each.name),
        )
    return figures
