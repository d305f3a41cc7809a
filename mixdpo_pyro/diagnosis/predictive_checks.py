"""`mixdpo check`: does a posterior predict the choices? Posterior predictive checks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mixdpo_pyro.diagnosis.check_report import (
    LEVEL,
    failed_statistics,
    what_it_means,
    write_check_report,
)
from mixdpo_pyro.diagnosis.check_statistics import (
    PredictiveCheck,
    Statistic,
)
from mixdpo_pyro.diagnosis.config import CHECK_FILE, CheckConfig
from mixdpo_pyro.diagnosis.outcome_checks import check_outcomes
from mixdpo_pyro.diagnosis.pair_checks import check_pairs
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.inference.choices import Choices, random_subset, read_choices, select_choices
from mixdpo_pyro.inference.outcomes import Ties, describe_observation
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.inference.robustness.errors.responses import chosen_is_first
from mixdpo_pyro.io import write_csv
from mixdpo_pyro.margins.table import MarginData, read_margins
from mixdpo_pyro.reporting.records import write_record

__all__ = ["CheckRecord", "check_lines", "check_predictions", "read_posterior", "write_check"]

_WORDS = {
    "pairs": "pairs",
    "sets": "choice sets",
    "rao-kupper": "pairs with ties (Rao-Kupper)",
    "davidson": "pairs with ties (Davidson)",
    "grades": "grades",
}
"""What a posterior calls its observations, for messages."""


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
    data = read_margins(path, config.annotator, config.group, config.choice_set)
    data = data.pseudonymised(config.pseudonymise)
    posterior = read_posterior(posterior_path)
    ties: Ties = "davidson" if posterior.observation == "davidson" else "rao-kupper"
    try:
        choices = read_choices(data.margin, data.annotator, **data.done, ties=ties, **data.judged)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    _check_observation(path, choices, posterior)
    if "response_error" in posterior.parameters and not chosen_is_first(choices):
        choices = replace(choices, responses=None)  # errors are then those of pairs
    rng = np.random.default_rng(config.seed)
    some, groups = _looked_at(choices, data, config, rng)
    check = check_pairs if choices.outcomes is None else check_outcomes
    column = str(data.annotator_column)
    try:
        found = check(some, groups, column, posterior, config.num_replications, rng)
    except ValueError as error:
        raise DataError(f"{posterior_path}: {error}") from error
    return replace(found, num_choices=choices.num_choices)


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


def _looked_at(
    choices: Choices, data: MarginData, config: CheckConfig, rng: np.random.Generator
) -> tuple[Choices, dict[str, np.ndarray]]:
    """All choices, or a random subset, and the groups of each."""
    kept = random_subset(choices.num_choices, config.max_choices, rng)
    groups = {name: choices.by_choice(label)[kept] for name, label in data.groups.items()}
    return select_choices(choices, kept), groups


def _check_observation(path: str | Path, choices: Choices, posterior: Posterior) -> None:
    """Raise where the posterior has no thresholds for what was done, or others."""
    outcomes, known = choices.outcomes, posterior.observation
    found = describe_observation(outcomes)
    if {found, known} <= {"pairs", "sets"}:
        return
    if found != known:
        raise DataError(
            f"{path}: holds {_WORDS[found]}, but the posterior is one of {_WORDS[known]}; "
            "diagnose this file to have a posterior of its choices"
        )
    assert outcomes is not None
    size = sum(v[0].size for k, v in posterior.parameters.items() if k != "lapse_rate")
    if size != outcomes.prior.size:
        raise DataError(
            f"{path}: holds grades with {outcomes.prior.size} cut points from the middle, but the "
            f"posterior has {size}"
        )


# Output


@dataclass(frozen=True)
class CheckRecord:
    """Content of `check.json`.

    Attributes:
        margins: File of the margins.
        posterior: File of the posterior.
        kind: What was observed: `pairs`, `sets`, `rao-kupper`, `davidson` or `grades`.
        choices: Choices in the data.
        choices_looked_at: Choices that were checked.
        annotators: Annotators of the choices that were checked.
        annotators_in_posterior: Of these, the ones that the posterior knows.
        event: What the reliability diagram predicts of each choice.
        statistics: Statistics with predictive p-values.
        margin_error: 5%, 50% and 95% quantiles of the posterior's errors of the margins, in nats;
            None where it takes margins as exact.
        calibration_outside_band: Share of choices where the isotonic fit leaves its band.
        config: Options of the command.
    """

    margins: str
    posterior: str
    kind: str
    choices: int
    choices_looked_at: int
    annotators: int
    annotators_in_posterior: int
    event: str
    statistics: list[Statistic]
    margin_error: tuple[float, float, float] | None
    calibration_outside_band: float
    config: dict[str, Any]


def write_check(
    found: PredictiveCheck, folder: Path, config: CheckConfig, sources: Sequence[str]
) -> None:
    """Write `check.json`, `groups.csv`, `shares.csv`, `report.html` and `figures/`."""
    for name, table in (("groups.csv", found.groups), ("shares.csv", found.shares)):
        if len(table):
            write_csv(table, folder / name)
    record = CheckRecord(
        margins=str(sources[0]),
        posterior=str(sources[1]),
        kind=found.kind,
        choices=found.num_choices,
        choices_looked_at=len(found.probability),
        annotators=found.num_annotators,
        annotators_in_posterior=found.num_known,
        event=found.event,
        statistics=found.statistics,
        margin_error=found.margin_error,
        calibration_outside_band=found.calibration.outside,
        config=asdict(config),
    )
    write_record(record, folder / CHECK_FILE)
    write_check_report(found, folder, sources)


def check_lines(found: PredictiveCheck, seed: int) -> list[str]:
    """The checks in a few lines of text."""
    what = "pairs" if found.kind == "pairs" else "choices"
    failed = failed_statistics(found)
    lines = [
        f"the choices are not what the posterior predicts: {'; '.join(s.name for s in failed)}"
        if failed
        else "the choices are like those that the posterior predicts",
        *what_it_means(failed),
        "",
        _looked_at_line(found, seed),
    ]
    if found.num_annotators:
        lines.append(
            f"{found.num_annotators:,} annotators, of whom the posterior knows "
            f"{found.num_known:,}; the others' strengths are drawn from the distribution"
        )
    if found.margin_error is not None:
        low, middle, high = found.margin_error
        lines.append(
            f"errors of the margins, {middle:.3g} [{low:.3g}, {high:.3g}] nats, are drawn anew, "
            "one for all who judge a pair"
        )
    lines += ["", f"{'statistic':50}{'observed':>9}  {'replicated, 90%':19}{'p':>6}"]
    for s in found.statistics:
        interval = f"{s.low:.3f} to {s.high:.3f}"
        lines.append(f"{s.name:50}{s.observed:9.3f}  {interval:19}{s.p_value:6.3f}")
    lines += [
        "",
        f"reliability of the predictions: the isotonic curve leaves its 90% band for "
        f"{100 * found.calibration.outside:.0f}% of the {what}",
        f"a check fails below p = {LEVEL / len(found.statistics):.3g}, "
        f"{LEVEL:g} over {len(found.statistics)} statistics",
    ]
    if len(found.groups):
        for column, table in found.groups.groupby("column", sort=False):
            surprising = int((table["p_value"] < 0.05).sum())
            lines.append(
                f"{column}: {surprising} of {len(table)} outside their 95% prediction "
                f"({0.05 * len(table):.0f} expected)"
            )
    return lines


def _looked_at_line(found: PredictiveCheck, seed: int) -> str:
    of = f" of {found.num_choices:,} in the file"
    if found.kind == "pairs":
        number = f"{len(found.probability):,} of {found.num_choices:,}"
        return f"{number} pairs, oriented at random (seed {seed})"
    if found.kind == "sets":
        return f"{found.description}{of}; responses are numbered by utility, the largest first"
    return f"{found.description}{of}, seen from the response that the margin favours"
