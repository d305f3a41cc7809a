"""`mixdpo check`: does the fitted distribution predict the choices? Posterior predictive checks.

The chosen response of every pair is known, so that "the chosen one was chosen" can be predicted
without fail; pairs are oriented at random before anything is computed from them. Choices are
replicated from the posterior (Gelman, Meng and Stern, Statistica Sinica 6, 1996); annotators'
strengths are drawn anew where the spread between annotators is checked (Marshall and
Spiegelhalter, Bayesian Analysis 2, 2007). The reliability diagram is that of Dimitriadis, Gneiting
and Jordan (PNAS 118, 2021).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from mixdpo_pyro.diagnosis.config import CHECK_FILE, CheckConfig
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.inference.choices import agreement, number_ids, orient_at_random, random_subset
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.inference.predictive import choice_probabilities, draw_choice_probabilities
from mixdpo_pyro.io import written_whole
from mixdpo_pyro.margins.table import MarginData, read_margins
from mixdpo_pyro.reporting.figures.checks import (
    plot_calibration_curve,
    plot_separation,
    plot_statistic,
)
from mixdpo_pyro.reporting.html import encode_png, write_images
from mixdpo_pyro.reporting.records import write_record

__all__ = [
    "SPREAD",
    "CalibrationCurve",
    "CheckRecord",
    "PredictiveCheck",
    "Statistic",
    "calibrate_predictions",
    "check_lines",
    "check_predictions",
    "read_posterior",
    "write_check",
]

SPREAD = "spread of annotators' agreement (sd)"
"""Of agreement minus what the distribution expects of the annotator's margins."""

_BINS = 10

_MAX_CURVES = 300
"""Replications whose isotonic fits make the band."""

_LEVEL = 0.05


@dataclass(frozen=True)
class Statistic:
    """A statistic of the choices, observed and replicated.

    Attributes:
        name: What it is.
        observed: Its value.
        low: 5% quantile of the replications.
        high: 95% quantile of the replications.
        p_value: Two-sided predictive p-value: twice the smaller share of replications at or
            beyond the observed value, ties counted half.
    """

    name: str
    observed: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class CalibrationCurve:
    """Isotonic calibration of predicted probabilities, with a band for right predictions.

    Attributes:
        predicted: Predicted probabilities in ascending order.
        calibrated: Isotonic fit to the choices (pool adjacent violators).
        low: 5% quantile of that fit where predictions are right.
        high: 95% quantile.
    """

    predicted: Float[np.ndarray, " pairs"]
    calibrated: Float[np.ndarray, " pairs"]
    low: Float[np.ndarray, " pairs"]
    high: Float[np.ndarray, " pairs"]

    @property
    def outside(self) -> float:
        """Share of pairs where the fit leaves the band; about 0.1 where predictions are right."""
        return float(((self.calibrated < self.low) | (self.calibrated > self.high)).mean())


@dataclass(frozen=True)
class PredictiveCheck:
    """What was checked.

    Attributes:
        statistics: Statistics with predictive p-values.
        replicated: Name -> values of the statistic in the replications.
        calibration: Reliability of the predictions of randomly oriented pairs.
        probability: The distribution's prediction for each pair's first response.
        is_first: Whether it was chosen.
        groups: Rows by group and annotator: observed and predicted agreement, and p-value.
        num_pairs: Pairs in the data.
        num_known: Annotators of the data that the posterior knows.
        num_annotators: Annotators of the data.
    """

    statistics: list[Statistic]
    replicated: dict[str, np.ndarray]
    calibration: CalibrationCurve
    probability: np.ndarray
    is_first: np.ndarray
    groups: pd.DataFrame
    num_pairs: int
    num_known: int
    num_annotators: int


def check_predictions(
    path: str | Path, posterior_path: str | Path, config: CheckConfig | None = None
) -> PredictiveCheck:
    """Compare a file's choices with what a posterior predicts.

    Args:
        path: Margins, as `mixdpo diagnose` reads them.
        posterior_path: A `posterior.nc`, as `mixdpo diagnose` and `mixdpo train` write it.
        config: Options.

    Raises:
        DataError: Naming the file, column and row that cannot be used.
    """
    config = config or CheckConfig()
    data = read_margins(path, config.annotator, config.group)
    posterior = read_posterior(posterior_path)
    rng = np.random.default_rng(config.seed)
    return _check(data, posterior, config, rng)


def read_posterior(path: str | Path) -> Posterior:
    """Read a `posterior.nc`.

    Raises:
        DataError: Naming the file, if it is missing, damaged, or holds another posterior, or draws
            that no strength can have.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        posterior = Posterior.load(path)
    except KeyError as error:
        raise DataError(f"{path}: holds no posterior of the strength (no {error})") from error
    except (OSError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as NetCDF ({message})") from error
    try:
        return posterior.validate()
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def calibrate_predictions(
    probability: Float[np.ndarray, " pairs"],
    is_first: np.ndarray,
    replicated: np.ndarray,
) -> CalibrationCurve:
    """Isotonic regression of the choices on their predicted probabilities.

    Args:
        probability: Predicted probability that the first response is chosen.
        is_first: Whether it was.
        replicated: The same in replications, shape `(replications, pairs)`; they make the band.
    """
    order = np.argsort(probability, kind="stable")
    fits = np.stack([_isotonic(choices[order]) for choices in replicated])
    low, high = np.quantile(fits, [0.05, 0.95], axis=0)
    return CalibrationCurve(probability[order], _isotonic(is_first[order]), low, high)


def _isotonic(choices: np.ndarray) -> np.ndarray:
    return isotonic_regression(choices.astype(float)).x


def _check(
    data: MarginData, posterior: Posterior, config: CheckConfig, rng: np.random.Generator
) -> PredictiveCheck:
    kept = random_subset(len(data.margin), config.max_pairs, rng)
    margin = data.margin[kept]
    size, agrees = np.abs(margin), agreement(margin)
    labels, index = _annotators(data, kept)
    ids = None if data.annotator is None else data.annotator[kept]
    draws = posterior.take(np.arange(config.num_replications) % posterior.num_samples)
    known, new = (
        draw_choice_probabilities(draws, size, rng, annotator=ids, are_new=are_new)
        for are_new in (False, True)
    )
    known_choices, new_choices = rng.random(known.shape) < known, rng.random(new.shape) < new
    expected = choice_probabilities(posterior.first(200), size).mean(0)
    replicated: dict[str, np.ndarray] = {}
    statistics = []
    for name, function, are_new in _statistics(size, expected, index, len(labels)):
        values = function(new_choices if are_new else known_choices)
        replicated[name] = values
        statistics.append(_statistic(name, float(function(agrees[None])[0]), values))
    oriented, is_first = orient_at_random(margin, rng)
    # Of new annotators: what the posterior knows about these ones came from these choices.
    probability = np.where(oriented > 0, expected, 1 - expected)
    first_again = np.where(oriented > 0, new_choices, ~new_choices)[:_MAX_CURVES]
    return PredictiveCheck(
        statistics=statistics,
        replicated=replicated,
        calibration=calibrate_predictions(probability, is_first, first_again),
        probability=probability,
        is_first=is_first,
        groups=_group_rows(data, kept, agrees, known_choices, new_choices, labels, index),
        num_pairs=len(data.margin),
        num_known=int((posterior.columns(labels) >= 0).sum()),
        num_annotators=0 if data.annotator is None else len(labels),
    )


def _annotators(data: MarginData, kept: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
    """Labels of the annotators and the annotator of each pair; without ids, one per pair."""
    if data.annotator is None:
        return [str(k) for k in range(len(kept))], np.arange(len(kept))
    return number_ids(data.annotator[kept])


def _statistics(
    size: np.ndarray, probability: np.ndarray, annotator: np.ndarray, num_annotators: int
) -> list[tuple[str, Any, bool]]:
    """Name, function of `(replications, pairs)` agreements, and whether strengths are new."""
    order = np.argsort(size)
    fifths, tenths = np.array_split(order, 5), np.array_split(order, _BINS)
    expected = np.array([probability[g].mean() for g in tenths])
    variance = np.array([(probability[g] * (1 - probability[g])).mean() / len(g) for g in tenths])

    def misfit(choices: np.ndarray) -> np.ndarray:
        rates = np.stack([choices[:, g].mean(1) for g in tenths], axis=1)
        return ((rates - expected) ** 2 / np.maximum(variance, 1e-12)).sum(1)

    found: list[tuple[str, Any, bool]] = [
        ("agreement with the margin", lambda c: c.mean(1), False),
        ("agreement, smallest fifth of margins", lambda c: c[:, fifths[0]].mean(1), False),
        ("agreement, largest fifth of margins", lambda c: c[:, fifths[-1]].mean(1), False),
        (f"misfit over {_BINS} bins of margins (chi-square)", misfit, False),
    ]
    count = np.bincount(annotator, minlength=num_annotators)
    if num_annotators < len(size):
        repeated = count >= 2

        def spread(choices: np.ndarray) -> np.ndarray:
            excess = choices - probability
            rates = np.stack([np.bincount(annotator, e, num_annotators) / count for e in excess])
            return rates[:, repeated].std(axis=1)

        found.append((SPREAD, spread, True))
    return found


def _statistic(name: str, observed: float, values: np.ndarray) -> Statistic:
    low, high = np.quantile(values, [0.05, 0.95])
    return Statistic(name, observed, float(low), float(high), _two_sided(observed, values))


def _two_sided(observed: float, values: np.ndarray) -> float:
    above = (values > observed).mean() + 0.5 * (values == observed).mean()
    return float(min(1.0, 2 * max(min(above, 1 - above), 0.5 / len(values))))


def _group_rows(
    data: MarginData,
    kept: np.ndarray,
    agrees: np.ndarray,
    same: np.ndarray,
    anew: np.ndarray,
    annotators: Sequence[str],
    annotator: np.ndarray,
) -> pd.DataFrame:
    """Observed and replicated agreement of groups, and of annotators with new strengths."""
    parts = [
        _rows(column, *number_ids(labels[kept]), agrees, same)
        for column, labels in data.groups.items()
    ]
    if data.annotator is not None:
        parts.append(_rows(str(data.annotator_column), annotators, annotator, agrees, anew))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _rows(
    column: str, labels: Sequence[str], index: np.ndarray, agrees: np.ndarray, choices: np.ndarray
) -> pd.DataFrame:
    count = np.bincount(index)
    observed = np.bincount(index, agrees) / count
    rates = np.stack([np.bincount(index, c, len(count)) / count for c in choices])
    low, high = np.quantile(rates, [0.05, 0.95], axis=0)
    p_value = [_two_sided(o, r) for o, r in zip(observed, rates.T, strict=True)]
    return pd.DataFrame(
        {"column": column, "group": labels, "pairs": count, "agreement": observed,
         "predicted": rates.mean(0), "q05": low, "q95": high, "p_value": p_value}
    )  # fmt: skip


# Output


@dataclass(frozen=True)
class CheckRecord:
    """Content of `check.json`.

    Attributes:
        margins: File of the margins.
        posterior: File of the posterior.
        pairs: Pairs in the data.
        pairs_looked_at: Pairs that were checked.
        annotators: Annotators of the data.
        annotators_in_posterior: Of these, the ones that the posterior knows.
        orientation: How pairs were oriented.
        statistics: Statistics with predictive p-values.
        calibration_outside_band: Share of pairs where the isotonic fit leaves its band.
        config: Options of the command.
    """

    margins: str
    posterior: str
    pairs: int
    pairs_looked_at: int
    annotators: int
    annotators_in_posterior: int
    orientation: str
    statistics: list[Statistic]
    calibration_outside_band: float
    config: dict[str, Any]


def write_check(
    found: PredictiveCheck, folder: Path, config: CheckConfig, sources: Sequence[str]
) -> None:
    """Write `check.json`, `groups.csv` and `figures/*.png` into a folder."""
    images = {name: encode_png(figure) for name, figure in _figures(found).items()}
    write_images(images, folder)
    if len(found.groups):
        with written_whole(folder / "groups.csv") as temporary:
            found.groups.to_csv(temporary, index=False, float_format="%.6g")
    record = CheckRecord(
        margins=str(sources[0]),
        posterior=str(sources[1]),
        pairs=found.num_pairs,
        pairs_looked_at=len(found.probability),
        annotators=found.num_annotators,
        annotators_in_posterior=found.num_known,
        orientation="random",
        statistics=found.statistics,
        calibration_outside_band=found.calibration.outside,
        config=asdict(config),
    )
    write_record(record, folder / CHECK_FILE)


def _figures(found: PredictiveCheck) -> dict[str, Figure]:
    curve = found.calibration
    figures = {
        "reliability": plot_calibration_curve(
            curve.predicted, curve.calibrated, curve.low, curve.high
        ),
        "separation": plot_separation(found.probability, found.is_first),
    }
    for k, statistic in enumerate(found.statistics):
        figures[f"statistic_{k + 1}"] = plot_statistic(
            found.replicated[statistic.name], statistic.observed, statistic.name
        )
    return figures


def check_lines(found: PredictiveCheck, seed: int) -> list[str]:
    """The checks in a few lines of text."""
    failed = [s.name for s in found.statistics if s.p_value < _LEVEL / len(found.statistics)]
    lines = [
        f"the choices are not what the posterior predicts: {'; '.join(failed)}"
        if failed
        else "the choices are like those that the posterior predicts",
        "",
        f"{len(found.probability):,} of {found.num_pairs:,} pairs, oriented at random "
        f"(seed {seed})",
    ]
    if found.num_annotators:
        lines.append(
            f"{found.num_annotators:,} annotators, of whom the posterior knows "
            f"{found.num_known:,}; the others' strengths are drawn from the distribution"
        )
    lines += ["", f"{'statistic':50}{'observed':>9}  {'replicated, 90%':19}{'p':>6}"]
    for s in found.statistics:
        interval = f"{s.low:.3f} to {s.high:.3f}"
        lines.append(f"{s.name:50}{s.observed:9.3f}  {interval:19}{s.p_value:6.3f}")
    lines += [
        "",
        f"reliability of the predictions: the isotonic curve leaves its 90% band for "
        f"{100 * found.calibration.outside:.0f}% of the pairs",
        f"a check fails below p = {_LEVEL / len(found.statistics):.3g}, "
        f"{_LEVEL:g} over {len(found.statistics)} statistics",
    ]
    if len(found.groups):
        for column, table in found.groups.groupby("column", sort=False):
            surprising = int((table["p_value"] < 0.05).sum())
            lines.append(
                f"{column}: {surprising} of {len(table)} outside their 95% prediction "
                f"({0.05 * len(table):.0f} expected)"
            )
    return lines
