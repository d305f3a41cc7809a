"""The report of a run: one self-contained HTML file, made from the files of the run folder."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from mixdpo_pyro import plots
from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.files import RUN_FILE
from mixdpo_pyro.inference.arviz_io import read_draws
from mixdpo_pyro.inference.choices import agreement, orient_at_random
from mixdpo_pyro.inference.explanations import contraction
from mixdpo_pyro.models import mixed_logit_log_prob
from mixdpo_pyro.pages import (
    PageFigure,
    embed_figures,
    interval_words,
    render_page,
    write_images,
    write_page,
)
from mixdpo_pyro.run_checks import (
    CALIBRATION,
    RunCheck,
    Status,
    TrainingTail,
    check_run,
    failed_names,
    flip_probability,
    overall_status,
    posterior_anchor,
)

__all__ = ["FinishedRun", "summary_lines", "write_report"]

POSTERIOR_FILE = "posterior.nc"
TRAINING_POSTERIOR_FILE = "training_posterior.json"
MARGINS_FILE = "margins.parquet"
HISTORY_FILE = "log_history.json"

_DPI = 180
"""Sharp on a phone's screen and in print; the figures are 5.2 inches wide."""

_DISAGREEMENT = (
    "Training and the held-out pairs disagree about cv. Trust the held-out pairs: while a policy "
    "is learning, the errors of its margins look like differences in strength."
)


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder holds.

    Attributes:
        folder: The folder.
        facts: Content of `run.json`.
        history: The Trainer's log history.
        margins: Held-out margins, a row a pair.
        posterior: Draws of `mean`, `cv` and, with annotators, `strength`, samples first.
        annotators: Labels of the columns of `strength`.
        training: Draws and summary of the guide that training learned.
        diagnostics: What `posterior.nc` says about its computation: its attributes, such as the
            `method`, and per draw `lp` and, for NUTS, `diverging`.
    """

    folder: Path
    facts: dict[str, Any]
    history: list[dict[str, Any]]
    margins: pd.DataFrame
    posterior: dict[str, np.ndarray]
    annotators: list[str]
    training: dict[str, Any]
    diagnostics: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a run folder.

        Raises:
            OutputError: Naming the file that is missing or damaged.
        """
        folder = Path(folder)
        posterior, annotators, diagnostics = _read(folder / POSTERIOR_FILE, read_draws)
        return cls(
            folder=folder,
            facts=_read(folder / RUN_FILE, _read_json),
            history=_read(folder / HISTORY_FILE, _read_json),
            margins=_read(folder / MARGINS_FILE, pd.read_parquet),
            posterior=posterior,
            annotators=annotators,
            training=_read(folder / TRAINING_POSTERIOR_FILE, _read_json),
            diagnostics=diagnostics,
        )

    @cached_property
    def reward_slope(self) -> float | None:
        """Policy margin per unit of true reward (simulated worlds): a line through the origin."""
        if "reward_margin" not in self.margins or self.facts["truth"] is None:
            return None
        margin, reward = self.margins["margin"], self.margins["reward_margin"]
        return float((margin * reward).sum() / (reward**2).sum())

    @cached_property
    def disagreement(self) -> str | None:
        """A warning where the 90% intervals of cv, training and held-out, are disjoint."""
        training = np.asarray(self.training["draws"]["cv"])
        if self.facts["family"] == "fixed":
            return None
        (low, high), (other_low, other_high) = (
            np.quantile(draws, [0.05, 0.95]) for draws in (self.posterior["cv"], training)
        )
        return _DISAGREEMENT if other_low > high or other_high < low else None

    @cached_property
    def accuracy(self) -> float:
        """Share of held-out pairs whose margin is positive; ties count one half.

        Margins that are not finite are left out; without any other it is not a number.
        """
        margin = _finite(self.margins["margin"])
        return float(agreement(margin).mean()) if len(margin) else math.nan

    @cached_property
    def tail(self) -> TrainingTail:
        """The logged training, and its last third."""
        return TrainingTail.of_history(self.history)

    @property
    def guide_interval(self) -> tuple[float, float] | None:
        """The 90% interval of cv under the guide of training; None where it is a point."""
        draws = np.asarray(self.training["draws"]["cv"], dtype=float)
        if not np.isfinite(draws).all() or np.ptp(draws) == 0:
            return None
        low, high = np.quantile(draws, [0.05, 0.95])
        return float(low), float(high)

    @cached_property
    def checks(self) -> list[RunCheck]:
        """Whether the run can be trusted, see :mod:`mixdpo_pyro.run_checks`."""
        return check_run(self)

    @property
    def status(self) -> Status:
        """PASS, REVIEW or FAIL of all checks."""
        return overall_status(self.checks)

    @property
    def status_sentence(self) -> str:
        """The status in one sentence."""
        if self.status == "FAIL":
            return (
                f"The verdict is not to be trusted. Failed: {failed_names(self.checks, 'FAIL')}."
            )
        if self.status == "PASS":
            return "Every check that applies has passed."
        unknown = failed_names(self.checks, "not available")
        parts = [
            failed_names(self.checks, "REVIEW"),
            f"not available: {unknown}" if unknown else "",
        ]
        return f"Before you rely on the verdict, look at {'; '.join(filter(None, parts))}."


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/*.png` into a run folder.

    Returns:
        Path of the report.

    Raises:
        OutputError: If the folder is not a run folder, or one of its files is damaged.
    """
    run = FinishedRun.load(folder)
    try:
        page, images = _page(run)
    except KeyError as error:
        raise OutputError(f"{folder}: the key {error} is missing in its files") from error
    write_images(images, run.folder)
    return write_page(page, run.folder / "report.html")


def _page(run: FinishedRun) -> tuple[str, dict[str, bytes]]:
    """The page, and its figures as PNG."""
    figures, images = embed_figures(_figures(run), _DPI)
    page = render_page(
        "report.html", run=run, facts=run.facts, rows=learned_rows(run), figures=figures
    )
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
    """The outcome of a run in a few lines of text."""
    run = FinishedRun.load(folder)
    verdict = run.facts["verdict"]
    distrust = "not to be trusted: " if run.status == "FAIL" else ""
    lines = [f"{distrust}{verdict['value']}: {verdict['reason']}"]
    lines += [f"{run.status}: {run.status_sentence}", ""]
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


def _figures(run: FinishedRun) -> dict[str, PageFigure]:
    """Name -> title, alternative text and figure; those without finite numbers are left out."""
    truth = run.facts["truth"]
    figures = _posterior_figures(run) if _has_finite_draws(run) else {}
    if len(run.tail.table):  # a short run may have logged nothing
        figures["training"] = (
            "Training",
            _training_words(run),
            plots.plot_training(
                run.history, run.tail.first_step, run.guide_interval, _loss_label(run)
            ),
        )
    if run.annotators and np.isfinite(run.posterior["strength"]).all():
        figures["annotators"] = (
            "Annotators",
            _annotator_words(run),
            plots.plot_annotators(
                run.posterior["strength"], run.annotators, truth and truth["strengths"]
            ),
        )
    return figures


def _posterior_figures(run: FinishedRun) -> dict[str, PageFigure]:
    truth, family = run.facts["truth"], run.facts["diagnosed_family"]
    draws = {name: _finite(run.posterior[name]) for name in ("cv", "mean")}
    learned = {name: _finite(run.training["draws"][name]) for name in ("cv", "mean")}
    narrowed = contraction(run.posterior, posterior_anchor(run))
    words = f"median and 90% interval {interval_words(draws['cv'])}"
    figures = {
        "strength_law": (
            "The strength of preference",
            f"Density of strength over mean strength; its cv has {words} given the held-out "
            "pairs. The median over the prior is grey.",
            plots.plot_strength_law(
                draws["cv"], family, float(run.training["cv"]), truth, show_prior=True
            ),
        ),
        "cv": (
            "From prior to posterior",
            f"Histograms of posterior draws beside the prior: cv, {words}, "
            f"{_narrowed(narrowed['cv'])}; mean strength, {interval_words(draws['mean'])}"
            + (f", {_narrowed(narrowed['log_mean'])}." if "log_mean" in narrowed else "."),
            plots.plot_prior_to_posterior(
                draws, learned, narrowed, _prior_median(run), truth and float(truth["cv"])
            ),
        ),
    }
    if len(_finite(run.margins["margin"])):
        figures["reliability"] = (
            "Are the predicted probabilities right on held-out pairs?",
            "Observed frequency against predicted probability in ten bins, with 90% intervals; "
            + next(c.sentence for c in run.checks if c.name == CALIBRATION),
            plots.plot_reliability(*_oriented_predictions(run)),
        )
    return figures


def _has_finite_draws(run: FinishedRun) -> bool:
    return all(
        len(_finite(source[name])) > 1
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
        _finite(run.margins["margin"]), np.random.default_rng(run.facts["seed"])
    )
    log_prob = mixed_logit_log_prob(
        torch.as_tensor(margin),
        torch.tensor(np.median(_finite(run.posterior["mean"])), dtype=torch.float64),
        torch.tensor(np.median(_finite(run.posterior["cv"])), dtype=torch.float64),
        family=run.facts["diagnosed_family"],
        flip_probability=flip_probability(run),
    )
    return log_prob.exp().numpy(), is_first


def _finite(values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _read(path: Path, reader: Any) -> Any:
    if not path.is_file():
        raise OutputError(f"{path}: missing; is '{path.parent}' the folder of a finished run?")
    try:
        return reader(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise OutputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())
