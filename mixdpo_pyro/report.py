"""The report of a run: one self-contained HTML file, made from the files of the run folder."""

import base64
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure

from mixdpo_pyro import plots
from mixdpo_pyro.errors import OutputError
from mixdpo_pyro.files import RUN_FILE, written_whole
from mixdpo_pyro.models import mixed_logit_log_prob

__all__ = ["FinishedRun", "summary_lines", "write_report"]

POSTERIOR_FILE = "posterior.nc"
TRAINING_POSTERIOR_FILE = "training_posterior.json"
MARGINS_FILE = "margins.parquet"
HISTORY_FILE = "log_history.json"


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
    """

    folder: Path
    facts: dict[str, Any]
    history: list[dict[str, Any]]
    margins: pd.DataFrame
    posterior: dict[str, np.ndarray]
    annotators: list[str]
    training: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a run folder.

        Raises:
            OutputError: Naming the file that is missing or damaged.
        """
        folder = Path(folder)
        posterior, annotators = _read(folder / POSTERIOR_FILE, _read_posterior)
        return cls(
            folder=folder,
            facts=_read(folder / RUN_FILE, _read_json),
            history=_read(folder / HISTORY_FILE, _read_json),
            margins=_read(folder / MARGINS_FILE, pd.read_parquet),
            posterior=posterior,
            annotators=annotators,
            training=_read(folder / TRAINING_POSTERIOR_FILE, _read_json),
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
        """Share of held-out pairs whose margin is positive; ties count one half."""
        margin = self.margins["margin"].to_numpy()
        return float(np.mean((margin > 0) + 0.5 * (margin == 0)))


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/*.png` into a run folder.

    Returns:
        Path of the report.

    Raises:
        OutputError: If the folder is not a run folder, or one of its files is damaged.
    """
    run = FinishedRun.load(folder)
    figures = []
    (run.folder / "figures").mkdir(exist_ok=True)
    for name, (title, alt, figure) in _figures(run).items():
        image = _png(figure)
        with written_whole(run.folder / "figures" / f"{name}.png") as temporary:
            temporary.write_bytes(image)
        encoded = base64.b64encode(image).decode()
        figures.append({"name": name, "title": title, "alt": alt, "data": encoded})
    environment = Environment(
        loader=PackageLoader("mixdpo_pyro"), autoescape=select_autoescape(), trim_blocks=True
    )
    page = environment.get_template("report.html").render(
        run=run, facts=run.facts, rows=learned_rows(run), figures=figures
    )
    path = run.folder / "report.html"
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


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
    lines = [f"{verdict['value']}: {verdict['reason']}", ""]
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
    reward_mean = "" if slope is None else _interval(draws["mean"] * slope)
    return {
        "source": source,
        "cv": _interval(draws["cv"]),
        "mean": _interval(draws["mean"]),
        "reward_mean": reward_mean,
    }


def _interval(draws: np.ndarray) -> str:
    """Median and 90% interval; a point where all draws are equal."""
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
    return f"{middle:.3g}" if low == high else f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def _figures(run: FinishedRun) -> dict[str, tuple[str, str, Figure]]:
    truth, family = run.facts["truth"], run.facts["diagnosed_family"]
    cv, training_cv = run.posterior["cv"], np.asarray(run.training["draws"]["cv"])
    cv_text = _interval(cv)
    figures = {
        "strength_law": (
            "The strength of preference",
            f"Density of strength over mean strength; cv {cv_text} given the held-out pairs.",
            plots.plot_strength_law(cv, family, float(run.training["cv"]), truth),
        ),
        "cv": (
            "From prior to posterior: the coefficient of variation",
            f"Histogram of posterior draws of cv, median and 90% interval {cv_text}.",
            plots.plot_cv(cv, training_cv, truth and float(truth["cv"])),
        ),
        "reliability": (
            "Are the predicted probabilities right on held-out pairs?",
            "Observed frequency against predicted probability in ten bins, with 90% intervals.",
            plots.plot_reliability(*_oriented_predictions(run)),
        ),
    }
    if any("loss" in entry for entry in run.history):  # a short run may have logged nothing
        figures["training"] = (
            "Training",
            "Loss, accuracy, mean strength and cv over the steps of training.",
            plots.plot_training(run.history),
        )
    if run.annotators:
        figures["annotators"] = (
            "Annotators",
            f"Strength of {len(run.annotators)} annotators relative to their mean, 90% intervals.",
            plots.plot_annotators(
                run.posterior["strength"], run.annotators, truth and truth["strengths"]
            ),
        )
    return figures


def _oriented_predictions(run: FinishedRun) -> tuple[np.ndarray, np.ndarray]:
    """Predicted probability of the first response and whether it was chosen, in random order."""
    margin = run.margins["margin"].to_numpy(np.float64)
    is_first = np.random.default_rng(run.facts["seed"]).random(len(margin)) < 0.5
    log_prob = mixed_logit_log_prob(
        torch.as_tensor(np.where(is_first, margin, -margin)),
        torch.tensor(np.median(run.posterior["mean"]), dtype=torch.float64),
        torch.tensor(np.median(run.posterior["cv"]), dtype=torch.float64),
        family=run.facts["diagnosed_family"],
    )
    return log_prob.exp().numpy(), is_first


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _read(path: Path, reader: Any) -> Any:
    if not path.is_file():
        raise OutputError(f"{path}: missing; is '{path.parent}' the folder of a finished run?")
    try:
        return reader(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise OutputError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def _read_posterior(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    import xarray as xr

    with xr.open_datatree(path, engine="h5netcdf") as tree:
        group = tree["posterior"].to_dataset().stack(sample=("chain", "draw")).load()
    draws = {str(k): v.transpose("sample", ...).to_numpy() for k, v in group.data_vars.items()}
    labels = group["annotator"].to_numpy().astype(str).tolist() if "strength" in draws else []
    return draws, labels
