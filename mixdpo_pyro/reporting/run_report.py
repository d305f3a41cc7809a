"""The report of a run: one self-contained HTML file, made from the files of the run folder."""

import math
from pathlib import Path

import numpy as np
import torch

from mixdpo_pyro.inference.choices import orient_at_random
from mixdpo_pyro.inference.posterior import contraction
from mixdpo_pyro.models import mixed_logit_log_prob
from mixdpo_pyro.reporting.figures.annotators import plot_annotators
from mixdpo_pyro.reporting.figures.run import (
    plot_prior_to_posterior,
    plot_reliability,
    plot_strength_law,
    plot_training,
)
from mixdpo_pyro.reporting.health_checks import (
    CALIBRATION,
    HealthReport,
    check_run,
    flip_probability,
    posterior_anchor,
)
from mixdpo_pyro.reporting.html import (
    PageFigure,
    embed_figures,
    interval_words,
    render_page,
    write_images,
    write_page,
)
from mixdpo_pyro.reporting.run_record import FinishedRun, contents_named, finite_values

__all__ = ["learned_rows", "summary_lines", "write_report"]

_DPI = 180
"""Sharp on a phone's screen and in print; the figures are 5.2 inches wide."""


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/*.png` into a run folder.

    Returns:
        Path of the report.

    Raises:
        OutputError: If the folder is not a run folder, or one of its files is damaged.
    """
    run = FinishedRun.load(folder)
    with contents_named(folder):
        page, images = _page(run)
    write_images(images, run.folder)
    return write_page(page, run.folder / "report.html")


def _page(run: FinishedRun) -> tuple[str, dict[str, bytes]]:
    """The page, and its figures as PNG."""
    health = check_run(run)
    figures, images = embed_figures(_figures(run, health), _DPI)
    page = render_page(
        "report.html", run=run, facts=run.facts, health=health, rows=learned_rows(run),
        figures=figures,
    )  # fmt: skip
    return page, images


def learned_rows(run: FinishedRun) -> list[dict[str, str]]:
    """Rows of the table of learned values: held-out posterior, training, and the truth."""
    held_out = {name: run.posterior[name] for name in ("mean", "cv")}
    training = {name: np.asarray(run.training["draws"][name]) for name in ("mean", "cv")}
    rows = [
        _learned_row("held-out pairs", held_out, run.reward_slope),
        _learned_row("learned in training", training, run.reward_slope),
    ]
    if run.reward_slope is not None:
        truth = run.facts["truth"]
        rows.append(
            {"source": "truth", "cv": f"{truth['cv']:.2f}", "mean": "",
             "reward_mean": f"{truth['mean']:.2f}"}
        )  # fmt: skip
    return rows


def summary_lines(folder: str | Path) -> list[str]:
    """The outcome of a run in a few lines of text.

    Raises:
        OutputError: If the folder is not a run folder, or one of its files is damaged.
    """
    run = FinishedRun.load(folder)
    with contents_named(folder):
        return _summary_lines(run)


def _summary_lines(run: FinishedRun) -> list[str]:
    health = check_run(run)
    verdict = run.facts["verdict"]
    distrust = "not to be trusted: " if health.status == "FAIL" else ""
    lines = [f"{distrust}{verdict['value']}: {verdict['reason']}"]
    lines += [f"{health.status}: {health.sentence}", ""]
    has_truth = run.reward_slope is not None
    lines.append(f"{'':22}{'cv':24}{'mean per unit of reward' if has_truth else 'mean'}")
    for row in learned_rows(run):
        lines.append(
            f"{row['source']:22}{row['cv']:24}{row['reward_mean' if has_truth else 'mean']}"
        )
    if run.disagreement:
        lines += ["", run.disagreement]
    lines += ["", f"held-out accuracy     {run.accuracy:.3f}"]
    return [
        *lines,
        "",
        f"policy  {run.folder / 'policy'}",
        f"report  {run.folder / 'report.html'}",
    ]


def _learned_row(source: str, draws: dict[str, np.ndarray], slope: float | None) -> dict[str, str]:
    reward_mean = "" if slope is None else interval_words(draws["mean"] * slope)
    return {
        "source": source,
        "cv": interval_words(draws["cv"]),
        "mean": interval_words(draws["mean"]),
        "reward_mean": reward_mean,
    }


def _figures(run: FinishedRun, health: HealthReport) -> dict[str, PageFigure]:
    """Name -> title, alternative text and figure; those without finite numbers are left out."""
    truth = run.facts["truth"]
    figures = _posterior_figures(run, health) if _has_finite_draws(run) else {}
    if len(run.tail.table):  # a short run may have logged nothing
        figures["training"] = (
            "Training",
            _training_words(run),
            plot_training(run.history, run.tail.first_step, run.guide_interval, _loss_label(run)),
        )
    if run.annotators and np.isfinite(run.posterior["strength"]).all():
        figures["annotators"] = (
            "Annotators",
            _annotator_words(run),
            plot_annotators(
                run.posterior["strength"], run.annotators, truth and truth["strengths"]
            ),
        )
    return figures


def _posterior_figures(run: FinishedRun, health: HealthReport) -> dict[str, PageFigure]:
    truth, family = run.facts["truth"], run.facts["diagnosed_family"]
    draws = {name: finite_values(run.posterior[name]) for name in ("cv", "mean")}
    learned = {name: finite_values(run.training["draws"][name]) for name in ("cv", "mean")}
    narrowed = contraction(run.posterior, posterior_anchor(run))
    words = f"median and 90% interval {interval_words(draws['cv'])}"
    figures = {
        "strength_law": (
            "The strength of preference",
            f"Density of strength over mean strength; its cv has {words} given the held-out "
            "pairs. The median over the prior is grey.",
            plot_strength_law(
                draws["cv"], family, float(run.training["cv"]), truth, show_prior=True
            ),
        ),
        "cv": (
            "From prior to posterior",
            f"Histograms of posterior draws beside the prior: cv, {words}, "
            f"{_narrowed(narrowed['cv'])}; mean strength, {interval_words(draws['mean'])}"
            + (f", {_narrowed(narrowed['log_mean'])}." if "log_mean" in narrowed else "."),
            plot_prior_to_posterior(
                draws, learned, narrowed, _prior_median(run), truth and float(truth["cv"])
            ),
        ),
    }
    if len(finite_values(run.margins["margin"])):
        figures["reliability"] = (
            "Are the predicted probabilities right on held-out pairs?",
            "Observed frequency against predicted probability in ten bins, with 90% intervals; "
            + health.check(CALIBRATION).sentence,
            plot_reliability(*_oriented_predictions(run)),
        )
    return figures


def _has_finite_draws(run: FinishedRun) -> bool:
    return all(
        len(finite_values(source[name])) > 1
        for source in (run.posterior, run.training["draws"])
        for name in ("mean", "cv")
    )


def _narrowed(value: float) -> str:
    if not math.isfinite(value):
        return "its draws not all finite"
    return f"its prior variance narrowed by {max(value, 0):.0%}"


def _prior_median(run: FinishedRun) -> float | None:
    """Median of the mean's prior in the fit of the held-out pairs; None where it was fixed."""
    if posterior_anchor(run) == "fixed":
        return None
    return float(run.diagnostics.get("beta", run.facts["beta"]))


def _loss_label(run: FinishedRun) -> str:
    is_elbo = run.facts["family"] != "fixed" and run.facts["anchor"] != "free"
    return "negative ELBO\n(nats a pair)" if is_elbo else "loss (nats a pair)"


def _training_words(run: FinishedRun) -> str:
    table = run.tail.table
    loss = table["loss"]
    words = (
        f"{_loss_label(run)} over the steps of training, from {loss.iloc[0]:.3f} to "
        f"{loss.iloc[-1]:.3f}"
    ).replace("\n", " ")
    if "strength/cv" in table and run.facts["family"] != "fixed":
        cv = table["strength/cv"]
        words += f"; cv from {cv.iloc[0]:.2f} to {cv.iloc[-1]:.2f}"
    return f"{words}; accuracy of the training batches."


def _annotator_words(run: FinishedRun) -> str:
    relative = run.posterior["strength"].mean(0)
    order = np.argsort(relative)
    shown = "" if len(order) <= 40 else "; of many, forty evenly spread over the order"
    return (
        f"Strength of {len(order):,} annotators relative to their mean, 90% intervals{shown}; "
        f"weakest {run.annotators[order[0]]}, strongest {run.annotators[order[-1]]}."
    )


def _oriented_predictions(run: FinishedRun) -> tuple[np.ndarray, np.ndarray]:
    """Predicted probability of the first response and whether it was chosen, in random order."""
    margin, is_first = orient_at_random(
        finite_values(run.margins["margin"]), np.random.default_rng(run.facts["seed"])
    )
    log_prob = mixed_logit_log_prob(
        torch.as_tensor(margin),
        torch.tensor(np.median(finite_values(run.posterior["mean"])), dtype=torch.float64),
        torch.tensor(np.median(finite_values(run.posterior["cv"])), dtype=torch.float64),
        family=run.facts["diagnosed_family"],
        flip_probability=flip_probability(run),
    )
    return log_prob.exp().numpy(), is_first
