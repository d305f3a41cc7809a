"""The report of a run: one self-contained HTML file, made from the files of the run folder."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mixdpo_pyro.inference.choices import orient_at_random
from mixdpo_pyro.inference.posterior import ERRORS, Posterior, format_interval
from mixdpo_pyro.inference.predictive import choice_probabilities
from mixdpo_pyro.reporting.figures.annotators import check_shown, plot_annotators, who_is_shown
from mixdpo_pyro.reporting.figures.run import (
    plot_prior_to_posterior,
    plot_reliability,
    plot_strength_distribution,
    plot_training,
)
from mixdpo_pyro.reporting.health_checks import (
    CALIBRATION,
    HealthReport,
    check_run,
)
from mixdpo_pyro.reporting.html import (
    PageFigure,
    cv_figure,
    embed_figures,
    render_page,
    write_images,
    write_page,
)
from mixdpo_pyro.reporting.recommendation import Advice, headline
from mixdpo_pyro.reporting.run_record import FinishedRun, finite_values
from mixdpo_pyro.training.model_card import CHOICE_WORDS

__all__ = ["learned_rows", "run_lines", "threshold_rows", "write_report"]


def write_report(folder: str | Path, show_annotators: Sequence[str] = ()) -> Path:
    """Write `report.html` and `figures/` into a run folder.

    Args:
        folder: The folder.
        show_annotators: Annotators whom the figure shows; default, all, and of more than forty a
            selection.

    Returns:
        Path of the report.

    Raises:
        ConfigError: If there is no annotator of such a name.
        OutputError: If the folder is not a run folder, or one of its files is damaged.
    """
    run = FinishedRun.load(folder)
    check_shown(show_annotators, run.posterior.annotators)
    page, images = _page(run, show_annotators)
    write_images(images, run.folder)
    return write_page(page, run.folder / "report.html")


def _page(run: FinishedRun, show_annotators: Sequence[str]) -> tuple[str, dict[str, bytes]]:
    """The page, and its images by the names of their files."""
    health = check_run(run)
    figures, images = embed_figures(_figures(run, health, show_annotators))
    page = render_page(
        "report.html", run=run, record=run.record, health=health, rows=learned_rows(run),
        thresholds=threshold_rows(run), figures=figures, advice=advice_on(run, health),
        headline=headline(run.record.verdict) if run.record.verdict else "no verdict",
        trained_on=CHOICE_WORDS.get(run.record.data.observation, "").format("several"),
    )  # fmt: skip
    return page, images


def learned_rows(run: FinishedRun) -> list[dict[str, str]]:
    """Rows of the table of learned values: held-out posterior, training, and the truth."""
    allowed = "" if run.posterior.margin_error is None else ", errors allowed for"
    sources = {f"held-out pairs{allowed}": run.posterior, "learned in training": run.training}
    rows = [
        _learned_row(name, posterior, run.reward_slope)
        for name, posterior in sources.items()
        if posterior.method != "none"
    ]
    if (attenuated := run.attenuated_cv) is not None:
        low, middle, high = attenuated
        cv = f"{middle:.3g} [{low:.3g}, {high:.3g}]"
        source = "held-out pairs, margins as exact"
        rows.insert(1, {"source": source, "cv": cv, "mean": "", "reward_mean": ""})
    truth = run.record.truth
    if truth is not None and run.reward_slope is not None:
        rows.append(
            {"source": "truth", "cv": f"{truth.cv:.2f}", "mean": "",
             "reward_mean": f"{truth.mean:.2f}"}
        )  # fmt: skip
    return rows


def threshold_rows(run: FinishedRun) -> list[dict[str, str]]:
    """Rows of the table of thresholds of ties or grades: held-out posterior, and training."""
    learned = run.record.learned.thresholds
    scalars = {k: v for k, v in run.posterior.scalars.items() if k not in ERRORS}
    held_out = {re.sub(r"s\[(\d+)\]", r"_\1", name): v for name, v in scalars.items()}
    return [
        {
            "name": name.replace("_", " "),
            "held_out": format_interval(held_out[name]) if name in held_out else "",
            "learned": f"{learned[name]:.3g}" if name in learned else "",
        }
        for name in dict.fromkeys([*learned, *held_out])
    ]


def run_lines(folder: str | Path) -> list[str]:
    """The outcome of a run in a few lines of text.

    Raises:
        OutputError: If the folder is not a run folder, or one of its files is damaged.
    """
    run = FinishedRun.load(folder)
    health = check_run(run)
    verdict = run.record.verdict
    distrust = "not to be trusted: " if health.status == "FAIL" else ""
    lines = ["no verdict: the diagnosis failed"]
    if verdict is not None:
        lines = [f"{distrust}{verdict.value}: {verdict.reason}"]
    advice = advice_on(run, health)
    lines += [f"{health.status}: {health.sentence}", *(advice.lines if advice else []), ""]
    has_truth = run.reward_slope is not None
    lines.append(f"{'':36}{'cv':24}{'mean per unit of reward' if has_truth else 'mean'}")
    for row in learned_rows(run):
        mean = row["reward_mean" if has_truth else "mean"]
        lines.append(f"{row['source']:36}{row['cv']:24}{mean}".rstrip())
    for row in threshold_rows(run):
        words = f"{row['name']:36}{row['held_out']:24}"
        lines.append(f"{words}{row['learned']} in training" if row["learned"] else words.rstrip())
    if run.disagreement:
        lines += ["", run.disagreement]
    lines += ["", f"{'held-out accuracy':36}{run.accuracy:.3f}", *run.record.notes]
    return [
        *lines,
        "",
        f"policy  {run.folder / 'policy'}",
        *(f"report  {path}" for path in [run.folder / "report.html"] if path.is_file()),
    ]


def advice_on(run: FinishedRun, health: HealthReport) -> Advice | None:
    """What to do with a run; of one that failed a check, to mend that first."""
    advice = run.record.advice
    if advice is None or health.status != "FAIL":
        return advice
    mend = "Do not act on this verdict: mend what failed, and train or evaluate again."
    return replace(advice, recommendation=mend)


def _learned_row(source: str, posterior: Posterior, slope: float | None) -> dict[str, str]:
    return {
        "source": source,
        "cv": format_interval(posterior.cv),
        "mean": format_interval(posterior.mean),
        "reward_mean": "" if slope is None else format_interval(posterior.mean * slope),
    }


def _figures(
    run: FinishedRun, health: HealthReport, show_annotators: Sequence[str]
) -> dict[str, PageFigure]:
    """Name -> title, alternative text and figure; those without finite numbers are dropped."""
    truth, strength = run.record.truth, run.posterior.strength
    figures = _posterior_figures(run, health) if _has_finite_draws(run) else {}
    if len(run.tail.table):  # a short run may have logged nothing
        figures["training"] = PageFigure(
            "Training",
            _training_words(run),
            plot_training(run.history, run.tail.first_step, run.guide_interval, _loss_words(run)),
            _shaded(run),
        )
    if strength is not None and np.isfinite(strength).all():
        figures["annotators"] = PageFigure(
            "Annotators",
            _annotator_words(run.posterior),
            plot_annotators(
                strength,
                run.posterior.annotators,
                truth.strengths if truth else None,
                show_annotators,
            ),
            who_is_shown(len(run.posterior.annotators), show_annotators),
        )
    return figures


def _posterior_figures(run: FinishedRun, health: HealthReport) -> dict[str, PageFigure]:
    truth, family = run.record.truth, run.posterior.family
    draws = {name: finite_values(run.posterior.draws[name]) for name in ("cv", "mean")}
    learned = {name: finite_values(run.training.draws[name]) for name in ("cv", "mean")}
    narrowed = run.posterior.contraction()
    words = f"median and 90% interval {format_interval(draws['cv'])}"
    verdict = run.record.verdict
    figures = {
        "cv": cv_figure(
            draws["cv"], verdict.cv_interval if verdict else None, truth.cv if truth else None
        ),
        "strength_distribution": PageFigure(
            "The strength of preference",
            f"Density of strength over mean strength; its cv has {words} given the held-out "
            "pairs. The median over the prior is grey.",
            plot_strength_distribution(
                draws["cv"], family, run.record.learned.cv, truth, show_prior=True
            ),
        ),
        "prior_to_posterior": PageFigure(
            "From prior to posterior",
            f"Posterior densities beside the prior: cv, {words}, "
            f"{_narrowed(narrowed['cv'])}; mean strength, {format_interval(draws['mean'])}"
            + (f", {_narrowed(narrowed['log_mean'])}." if "log_mean" in narrowed else "."),
            plot_prior_to_posterior(
                draws, learned, narrowed, _prior_median(run), truth.cv if truth else None
            ),
        ),
    }
    if run.pair_margins is not None and len(run.pair_margins):
        figures["reliability"] = PageFigure(
            "Are the predicted probabilities right on held-out pairs?",
            "Observed frequency against predicted probability in ten bins, with 90% intervals; "
            + health.check(CALIBRATION).sentence,
            plot_reliability(*_oriented_predictions(run)),
        )
    return figures


def _has_finite_draws(run: FinishedRun) -> bool:
    return all(
        len(finite_values(source.draws[name])) > 1
        for source in (run.posterior, run.training)
        for name in ("mean", "cv")
    )


def _narrowed(value: float) -> str:
    if not math.isfinite(value):
        return "its draws not all finite"
    return f"its prior variance narrowed by {max(value, 0):.0%}"


def _prior_median(run: FinishedRun) -> float | None:
    """Median of the mean's prior in the fit of the held-out pairs; None where it was fixed."""
    return None if run.posterior.mean_anchor == "fixed" else run.posterior.beta


def _shaded(run: FinishedRun) -> str:
    """What is shaded in the figure of the training."""
    if run.tail.first_step is None:
        return ""
    tail = "Shaded grey: the last third, counted in learning rate, that convergence is judged by."
    guide = " Blue: the guide's 90% interval at the end."
    return tail + guide * (run.guide_interval is not None)


def _loss_words(run: FinishedRun) -> str:
    return f"loss (nats per {'pair' if run.record.data.observation == 'pairs' else 'choice'})"


def _training_words(run: FinishedRun) -> str:
    table = run.tail.table
    loss = table["loss"]
    fall = f"from {loss.iloc[0]:.3f} to {loss.iloc[-1]:.3f}"
    words = f"{_loss_words(run)} over the steps of training, {fall}"
    if "strength/cv" in table and run.record.family != "fixed":
        cv = table["strength/cv"]
        words += f"; cv from {cv.iloc[0]:.2f} to {cv.iloc[-1]:.2f}"
    return f"{words}; accuracy of the training batches."


def _annotator_words(posterior: Posterior) -> str:
    relative = posterior.draws["strength"].mean(0)
    order = np.argsort(relative)
    weakest, strongest = (posterior.annotators[order[k]] for k in (0, -1))
    return (
        f"Strength of {len(order):,} annotators relative to their mean, 90% intervals; "
        f"weakest {weakest}, strongest {strongest}."
    )


def _oriented_predictions(run: FinishedRun) -> tuple[np.ndarray, np.ndarray]:
    """Predicted probability of the first response and whether it was chosen, in random order."""
    assert run.pair_margins is not None
    margin, is_first = orient_at_random(run.pair_margins, np.random.default_rng(run.record.seed))
    mean, cv = (np.median(finite_values(run.posterior.draws[k])) for k in ("mean", "cv"))
    return choice_probabilities(run.posterior.at(mean, cv), margin)[0], is_first
