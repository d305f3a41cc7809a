"""`mixdpo diagnose`: from a file of margins to a verdict, its evidence, and who differs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy.special import polygamma

from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.files import write_json, written_whole
from mixdpo_pyro.inference import Fit, fit, save_arviz
from mixdpo_pyro.inference.choices import agreement
from mixdpo_pyro.inference.diagnosis import Diagnosis, diagnose_choices
from mixdpo_pyro.inference.likelihood import tabulate
from mixdpo_pyro.margin_file import MarginData, read_margins

__all__ = [
    "DIAGNOSIS_FILE", "DiagnoseConfig", "diagnose", "summary_lines", "write_diagnosis",
]  # fmt: skip

DIAGNOSIS_FILE = "diagnosis.json"
"""The file that makes a folder a diagnosis folder."""

_MAX_STRENGTHS = 20_000_000
"""Draws times people held for the table of annotators: 160 MB."""


@dataclass(frozen=True)
class DiagnoseConfig:
    """Is this preference data heterogeneous, for whom, and how sure are we?

    Args:
        annotator: Column of annotator ids. Default: `annotator` where there is one.
        group: Columns of groups, such as topic or policy: a table each.
        second: File with margins of another policy for the same rows, for errors in the margins.
        family: The law of the strength that the verdict rests on.
        beta: Median of the mean strength's prior. Default: the one strength that fits best.
        num_samples: Posterior draws.
        seed: Seed of everything that is drawn.
        output: Folder for tables, posterior and report. Default: print only.
        overwrite: Replace an earlier diagnosis in that folder.
    """

    annotator: str | None = None
    group: tuple[str, ...] = ()
    second: str | None = None
    family: Literal["lognormal", "gamma"] = "lognormal"
    beta: float | None = None
    num_samples: int = 1000
    seed: int = 0
    output: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.beta is not None and not 0 < self.beta < np.inf:
            raise ConfigError(f"beta: expected a finite value > 0, got {self.beta}")
        if self.num_samples < 100:
            raise ConfigError(f"num_samples: expected at least 100, got {self.num_samples}")
        if self.seed < 0:
            raise ConfigError(f"seed: expected 0 or more, got {self.seed}")


def diagnose(
    path: str | Path, config: DiagnoseConfig | None = None
) -> tuple[Diagnosis, MarginData]:
    """Read a file of margins and diagnose it.

    Args:
        path: A `parquet`, `csv` or `jsonl` file with a column `margin` in nats, chosen minus
            rejected; see :func:`mixdpo_pyro.margin_file.read_margins`.
        config: Options.

    Returns:
        The diagnosis, and the data it is about.

    Raises:
        DataError: Naming the file, column and row that cannot be used.
    """
    config = config or DiagnoseConfig()
    data = read_margins(path, config.annotator, config.group)
    second = None if config.second is None else _read_second(config.second, data)
    try:
        diagnosis = diagnose_choices(
            data.margin,
            data.annotator,
            config.family,
            length=data.length,
            normalised=data.normalised,
            second=second,
            stratum=_stratum(data),
            beta=config.beta,
            num_samples=config.num_samples,
            seed=config.seed,
        )
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return diagnosis, data


def _read_second(path: str, data: MarginData) -> np.ndarray:
    """Margins of the second policy.

    A row's orientation is that of the choice in both files; how many differ in sign says nothing.
    """
    second = read_margins(path)
    if len(second.margin) != len(data.margin):
        raise DataError(
            f"{path}: has {len(second.margin):,} rows, but {data.source} has "
            f"{len(data.margin):,}; both must hold the same pairs in the same order"
        )
    if second.annotator is not None and data.annotator is not None:
        differs = second.annotator.astype(str) != data.annotator.astype(str)
        if differs.any():
            raise DataError(
                f"{path}: row {int(np.argmax(differs))} is by another annotator than in "
                f"{data.source}; both must hold the same pairs in the same order"
            )
    return second.margin


def _stratum(data: MarginData) -> np.ndarray | None:
    """Groups, combined: who chose is permuted within them."""
    if not data.groups or data.annotator is None:
        return None
    table = pd.DataFrame(data.groups)
    return table.groupby(list(table.columns), sort=True).ngroup().to_numpy()


# Tables


def annotator_table(diagnosis: Diagnosis, seed: int = 0) -> pd.DataFrame | None:
    r"""Every annotator's strength, strongest first, or None without repeated choices.

    Columns: `annotator`, `pairs`, `agreement` (share of choices that agree with the sign of the
    margin), `mean`, `sd`, `q05`, `q95` of the strength, `relative` (mean over the law's mean),
    `shrinkage`, and `p_not_positive` under the normal law.

    Shrinkage is :math:`\mathrm{Var}(\log\beta_g \mid \text{choices}) / \mathrm{Var}(\log\beta)`,
    the weight of the law beside the annotator's own choices, were both normal: 1 says that the row
    is what is believed about anybody.
    """
    choices = diagnosis.choices
    if not choices.has_panels:
        return None
    table = _strength_table(diagnosis.result, seed)
    table.insert(0, "annotator", choices.labels)
    if "normal" in diagnosis.fits:
        normal = _strengths(diagnosis.fits["normal"], seed)
        table["p_not_positive"] = (normal <= 0).mean(0)
    return table.sort_values("mean", ascending=False, ignore_index=True)


def group_table(diagnosis: Diagnosis, data: MarginData, seed: int = 0) -> pd.DataFrame | None:
    """Every group's strength, a group being treated as one person; None without groups.

    Columns: `column`, `group`, `annotators`, then those of the table of annotators.
    """
    tables = []
    for column, label in data.groups.items():
        people = None if data.annotator is None else pd.Series(data.annotator).groupby(label)
        counts = None if people is None else people.nunique()
        names, first = np.unique(label, return_counts=True)
        if len(names) == 1 or first.max() == 1:
            raise DataError(
                f"{data.source}: column '{column}' has {len(names):,} different values in "
                f"{len(label):,} rows; groups must be several and repeat"
            )
        result = diagnosis.result
        grouped = fit(data.margin, label, result.family, beta=result.beta, seed=seed)
        table = _strength_table(grouped, seed)
        table.insert(0, "column", column)
        table.insert(1, "group", grouped.choices.labels)
        if counts is not None:
            table.insert(2, "annotators", counts.loc[list(grouped.choices.labels)].to_numpy())
        tables.append(table.sort_values("mean", ascending=False))
    return pd.concat(tables, ignore_index=True) if tables else None


def _strength_table(result: Fit, seed: int) -> pd.DataFrame:
    choices = result.choices
    assert choices.annotator is not None
    draws = _strengths(result, seed)
    agrees = agreement(choices.margin)
    count = np.bincount(choices.annotator)
    law_mean, law_cv = result.posterior["mean"], result.posterior["cv"]
    is_gamma = result.family == "gamma"
    variance = (polygamma(1, law_cv**-2.0) if is_gamma else np.log1p(law_cv**2)).mean()
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    return pd.DataFrame(
        {
            "pairs": count,
            "agreement": np.bincount(choices.annotator, agrees) / count,
            "mean": draws.mean(0),
            "sd": draws.std(0, ddof=1),
            "q05": low,
            "q95": high,
            "relative": draws.mean(0) / law_mean.mean(),
            "shrinkage": np.clip(np.log(draws).var(0, ddof=1) / variance, 0, 1),
        }
    )


def _strengths(result: Fit, seed: int) -> np.ndarray:
    """Draws of every person's strength; fewer where people are many."""
    size = len(result.posterior["cv"])
    num_draws = int(np.clip(_MAX_STRENGTHS // result.choices.num_annotators, 50, size))
    if "strength" in result.posterior:
        return result.posterior["strength"][:num_draws]
    mean, cv = (torch.from_numpy(result.posterior[k][:num_draws]) for k in ("mean", "cv"))
    table = tabulate(result.choices, result.family, result.flip_probability)
    return table.draw_strengths(mean, cv, np.random.default_rng((seed, 17))).numpy()


# Output


def write_diagnosis(
    diagnosis: Diagnosis,
    data: MarginData,
    folder: Path,
    config: DiagnoseConfig | None = None,
    command: str = "",
) -> None:
    """Write `diagnosis.json`, `posterior.nc`, the tables and `report.html` into a folder."""
    from mixdpo_pyro.diagnosis_report import write_diagnosis_report

    config = config or DiagnoseConfig()
    annotators = annotator_table(diagnosis, config.seed)
    groups = group_table(diagnosis, data, config.seed)
    for name, table in (("annotators.csv", annotators), ("groups.csv", groups)):
        if table is not None:
            with written_whole(folder / name) as temporary:
                table.to_csv(temporary, index=False, float_format="%.6g")
    save_arviz(diagnosis.result.to_arviz(seed=config.seed), folder / "posterior.nc")
    facts = diagnosis_facts(diagnosis, data, config, command)
    write_json(facts, folder / DIAGNOSIS_FILE)
    write_diagnosis_report(diagnosis, facts, annotators, groups, folder)


def diagnosis_facts(
    diagnosis: Diagnosis, data: MarginData, config: DiagnoseConfig, command: str = ""
) -> dict[str, Any]:
    """Everything that was found, as plain values for JSON; what is not finite becomes null."""
    choices, verdict = diagnosis.choices, diagnosis.verdict
    agrees = agreement(choices.margin)
    facts = {
        "verdict": asdict(verdict),
        "error_rate": diagnosis.error_rate,
        "largest_p_value": diagnosis.largest_p_value,
        "probability_not_small": diagnosis.probability_not_small,
        "data": {
            "source": data.source,
            "pairs": choices.num_pairs,
            "annotators": choices.num_annotators if choices.labels else None,
            "annotator_column": data.annotator_column,
            "has_panels": choices.has_panels,
            "groups": list(data.groups),
            "agreement": float(agrees.mean()),
            "margin_sd": float(np.sqrt((choices.margin**2).mean())),
            "margin_p_value": diagnosis.margin_p_value,
        },
        "notes": data_notes(diagnosis),
        "families": {name: _family_facts(diagnosis, name) for name in diagnosis.fits},
        "checks": [asdict(check) for check in diagnosis.checks],
        "contraction": diagnosis.contraction,
        "share_not_positive": diagnosis.share_not_positive,
        "beta": diagnosis.result.beta,
        "config": asdict(config),
        "command": command,
    }
    return _finite(facts)


def _family_facts(diagnosis: Diagnosis, family: str) -> dict[str, Any]:
    result, loo = diagnosis.fits[family], diagnosis.loo[family]
    difference = diagnosis.differences.get(family)
    return {
        "cv": _quantiles(result.posterior["cv"]),
        "mean": _quantiles(result.posterior["mean"]),
        "log_likelihood": result.log_likelihood,
        "elpd": loo.elpd,
        "elpd_se": loo.se,
        "effective_parameters": loo.effective_parameters,
        "worst_k": loo.worst_k,
        "units_left_out": len(loo.unit),
        "elpd_gain": None if difference is None else difference.elpd,
        "elpd_gain_se": None if difference is None else difference.se,
    }


def data_notes(diagnosis: Diagnosis) -> list[str]:
    """What a reader should know about the data, a sentence each."""
    margin, notes = diagnosis.choices.margin, []
    if margin.min() >= 0 or margin.max() <= 0:
        sign = "agrees with" if margin.min() >= 0 else "contradicts"
        notes.append(
            f"Every choice {sign} its margin: the data give the mean strength no "
            f"{'upper' if margin.min() >= 0 else 'lower'} bound, and its prior decides. Were the "
            "margins those of the training pairs?"
        )
    if (margin == 0).any():
        notes.append(f"{int((margin == 0).sum()):,} margins are 0 and say nothing.")
    if diagnosis.contraction["cv"] < 0.5:
        notes.append(
            "The data narrowed the prior of cv by less than half: the interval is largely the "
            "prior's."
        )
    return notes


def summary_lines(diagnosis: Diagnosis, data: MarginData) -> list[str]:
    """The diagnosis in a few lines of text, the verdict first."""
    verdict, choices = diagnosis.verdict, diagnosis.choices
    people = f", {choices.num_annotators:,} annotators" if choices.labels else ", no annotator ids"
    lines = [
        f"{verdict.value}: {verdict.reason}",
        diagnosis.error_rate,
        "",
        f"{data.source}: {choices.num_pairs:,} pairs{people}",
        *data_notes(diagnosis),
        "",
        f"{'law':12}{'cv, median and 90%':26}{'gain over one strength, nats (se)'}",
    ]
    for name, result in diagnosis.fits.items():
        if name != "fixed":
            gain = diagnosis.differences[name]
            lines.append(
                f"{name:12}{_interval(result.posterior['cv']):26}{gain.elpd:.1f} ({gain.se:.1f})"
            )
    if diagnosis.share_not_positive is not None:
        low, middle, high = diagnosis.share_not_positive
        lines.append(
            f"normal law: {100 * middle:.1f}% of people ({100 * low:.1f} to {100 * high:.1f}%) "
            "have a strength at or below zero"
        )
    lines += ["", "other explanations"]
    lines += [f"  {check.name}: {check.status}. {check.sentence}" for check in diagnosis.checks]
    return lines


def _quantiles(draws: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
    return {"mean": float(draws.mean()), "sd": float(draws.std()), "q05": float(low),
            "q50": float(middle), "q95": float(high)}  # fmt: skip


def _interval(draws: np.ndarray) -> str:
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
