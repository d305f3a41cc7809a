"""`mixdpo diagnose`: from a file of margins to a verdict, its evidence, and who differs."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mixdpo_pyro.diagnosis.config import DIAGNOSIS_FILE, DiagnoseConfig, split_formula
from mixdpo_pyro.diagnosis.tables import (
    annotator_table,
    differences_table,
    effect_table,
    group_table,
)
from mixdpo_pyro.errors import ConfigError, DataError
from mixdpo_pyro.inference import fit_strength_effects, save_arviz, to_datatree
from mixdpo_pyro.inference.choices import Choices, read_choices, typical_size
from mixdpo_pyro.inference.diagnosis import Diagnosis, diagnose_choices
from mixdpo_pyro.inference.people.columns import read_columns
from mixdpo_pyro.inference.posterior import format_interval
from mixdpo_pyro.inference.verdict import Verdict
from mixdpo_pyro.io import write_csv
from mixdpo_pyro.margins.table import TRAINED_ON, MarginData, read_margins
from mixdpo_pyro.progress import abridged
from mixdpo_pyro.reporting.diagnosis_record import (
    DiagnosisData,
    DiagnosisRecord,
    FamilySummary,
    Quantiles,
)
from mixdpo_pyro.reporting.diagnosis_report import write_diagnosis_report
from mixdpo_pyro.reporting.figures.annotators import check_shown
from mixdpo_pyro.reporting.recommendation import advise
from mixdpo_pyro.reporting.records import write_record

__all__ = ["data_notes", "diagnose_margins", "diagnosis_lines", "make_record", "write_diagnosis"]

_ALIKE = 0.02
"""Share of rows that look like parts of one choice from which on there is no answer."""

_LEVEL, _SHOWN = 0.05, 10
"""Adjusted p-value below which levels of columns are named, and how many are at most."""

_EXTREME = 100
"""Margins of this many times the median size are named; of a million normal ones none is."""


def diagnose_margins(
    path: str | Path, config: DiagnoseConfig | None = None
) -> tuple[Diagnosis, MarginData]:
    """Read a file of margins and diagnose it.

    Args:
        path: A `parquet`, `csv` or `jsonl` file with a column `margin` in nats, chosen minus
            rejected; see :func:`mixdpo_pyro.margins.table.read_margins`.
        config: Options.

    Returns:
        The diagnosis, and the data it is about.

    Raises:
        ConfigError: If the page is to show somebody who is no annotator.
        DataError: Naming the file, column and row that cannot be used.
    """
    config = config or DiagnoseConfig()
    columns = list(dict.fromkeys([*config.group, *config.stratum]))
    data = read_margins(
        path, config.annotator, columns, config.choice_set, attributes=config.attribute,
        covariates=split_formula(config.strength),
    )  # fmt: skip
    second = None if config.second is None else _read_second(config.second, data)
    data = data.pseudonymised(config.pseudonymise)
    if config.show_annotators:
        _check_shown(config, data)
    try:
        choices = read_choices(
            data.margin, data.annotator, **data.done, ties=config.ties, **data.judged
        )
        if data.covariates:
            _check_covariates(choices, data)
        diagnosis = diagnose_choices(
            choices,
            family=config.family,
            length=data.length,
            normalised=data.normalised,
            second=second,
            stratum=_stratum(data, config.stratum),
            attributes=data.attributes,
            groups=data.groups,
            beta=config.beta,
            num_samples=config.num_samples,
            seed=config.seed,
            draw_strengths=config.draw_strengths,
        )
        if data.covariates:
            effects = fit_strength_effects(diagnosis.result, data.covariates, seed=config.seed)
            diagnosis = replace(diagnosis, effects=effects)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if _looks_cut(data):
        diagnosis = replace(diagnosis, verdict=_doubt(diagnosis.verdict, data))
    return diagnosis, data


def _check_shown(config: DiagnoseConfig, data: MarginData) -> None:
    """Refuse early whom the page could not show."""
    labels, counts = np.unique(
        [] if data.annotator is None else data.annotator, return_counts=True
    )
    if counts.max(initial=0) < 2:
        raise ConfigError("show_annotators: expected annotators with several choices each")
    check_shown(config.show_annotators, labels.tolist())


def _check_covariates(choices: Choices, data: MarginData) -> None:
    """Refuse early what would end in an error after all fits."""
    if not choices.has_panels:
        names = ", ".join(data.covariates)
        raise ValueError(
            f"Expected annotators with several choices each for effects of columns ({names})"
        )
    read_columns(choices, data.covariates)


def _doubt(verdict: Verdict, data: MarginData) -> Verdict:
    """No answer where rows that count as choices look like parts of choices."""
    reason = (
        f"{data.num_alike:,} of {len(data.margin):,} rows share their annotator and their chosen "
        "response, by its log-probabilities, with rows of another rejected response. They look "
        "like choices among several responses that were cut into pairs, and such pairs make equal "
        "annotators look different. Name the column of the choices with --choice_set, or pass "
        "--choice_set none where each pair was judged by itself."
    )
    return replace(verdict, value="inconclusive", reason=reason, kind=None)


def _read_second(path: str, data: MarginData) -> np.ndarray:
    """Margins of the second policy.

    A row's orientation is that of the choice in both files; how many differ in sign says nothing.
    """
    second = read_margins(path)
    if second.num_rows != data.num_rows:
        raise DataError(
            f"{path}: has {second.num_rows:,} rows, but {data.source} has {data.num_rows:,}; "
            "both must hold the same pairs in the same order"
        )
    if not np.array_equal(second.row_numbers, data.row_numbers):
        raise DataError(
            f"{path}: the rows that are left out by column '{TRAINED_ON}' are others than in "
            f"{data.source}; mark in both files what either policy was trained on"
        )
    if second.annotator is not None and data.annotator is not None:
        differs = second.annotator != data.annotator
        if differs.any():
            row = data.row_numbers[np.argmax(differs)]
            raise DataError(
                f"{path}: row {row} is by another annotator than in {data.source}; both must "
                "hold the same pairs in the same order"
            )
    return second.margin


def _stratum(data: MarginData, columns: Sequence[str]) -> np.ndarray | None:
    """Strata, combined: who chose is permuted within them."""
    if not columns:
        return None
    table = pd.DataFrame({name: data.groups[name] for name in columns})
    return table.groupby(list(columns), sort=True).ngroup().to_numpy()


# Output


def write_diagnosis(
    diagnosis: Diagnosis,
    data: MarginData,
    folder: Path,
    config: DiagnoseConfig | None = None,
    command: str = "",
) -> None:
    """Write `diagnosis.json`, `posterior.nc`, the tables and `report.html` into a folder."""
    config = config or DiagnoseConfig()
    annotators = annotator_table(diagnosis, config.seed)
    groups = group_table(diagnosis, data, config.seed, config.ties)
    differences, effects = differences_table(diagnosis), effect_table(diagnosis)
    tables = {
        "annotators.csv": annotators,
        "groups.csv": groups,
        "differences.csv": differences,
        "strength_effects.csv": effects,
    }
    for name, table in tables.items():
        if table is not None:
            write_csv(table, folder / name)
    tree = to_datatree(diagnosis.allowing_for_errors, seed=config.seed)
    save_arviz(tree, folder / "posterior.nc")
    record = make_record(diagnosis, data, config, command)
    write_record(record, folder / DIAGNOSIS_FILE)
    write_diagnosis_report(
        diagnosis, record, annotators, groups, differences, folder, config.show_annotators
    )


def make_record(
    diagnosis: Diagnosis, data: MarginData, config: DiagnoseConfig, command: str = ""
) -> DiagnosisRecord:
    """Everything that was found, as plain values."""
    choices = diagnosis.choices
    return DiagnosisRecord(
        verdict=diagnosis.verdict,
        error_rate=diagnosis.error_rate,
        largest_p_value=diagnosis.largest_p_value,
        probability_not_small=diagnosis.probability_not_small,
        data=DiagnosisData(
            source=data.source,
            pairs=choices.num_pairs,
            choices=choices.describe(),
            counts={} if choices.outcomes is None else choices.outcomes.count(),
            annotators=choices.num_annotators if choices.labels else None,
            annotator_column=data.annotator_column,
            has_panels=choices.has_panels,
            groups=list(data.groups),
            agreement=float(choices.agrees.mean()),
            margin_sd=float(np.sqrt((choices.margin**2).mean())),
            margin_p_value=diagnosis.margin_p_value,
        ),
        notes=_notes(diagnosis, data),
        families={name: _summarise_family(diagnosis, name) for name in diagnosis.fits},
        checks=diagnosis.checks,
        contraction=dict(diagnosis.contraction),
        parameters={
            name: Quantiles.of(draws) for name, draws in diagnosis.result.posterior.scalars.items()
        },
        share_not_positive=diagnosis.share_not_positive,
        effects=diagnosis.effects,
        beta=diagnosis.result.posterior.beta,
        advice=advise(diagnosis, _looks_cut(data)),
        config=asdict(config),
        command=command,
    )


def _looks_cut(data: MarginData) -> bool:
    """Whether so many rows look like parts of one choice that there is no answer."""
    return data.num_alike >= _ALIKE * len(data.margin)


def _summarise_family(diagnosis: Diagnosis, family: str) -> FamilySummary:
    result, loo = diagnosis.fits[family], diagnosis.loo[family]
    difference = diagnosis.differences.get(family)
    return FamilySummary(
        cv=Quantiles.of(result.posterior.cv),
        mean=Quantiles.of(result.posterior.mean),
        log_likelihood=result.log_likelihood,
        elpd=loo.elpd,
        elpd_se=loo.se,
        effective_parameters=loo.effective_parameters,
        worst_k=loo.worst_k,
        units_left_out=len(loo.unit),
        elpd_gain=None if difference is None else difference.elpd,
        elpd_gain_se=None if difference is None else difference.se,
    )


def _notes(diagnosis: Diagnosis, data: MarginData) -> list[str]:
    """What a reader should know about the data and where the margins come from."""
    return [*data_notes(diagnosis, data.row_numbers), *_provenance(data)]


def _provenance(data: MarginData) -> list[str]:
    if data.num_trained_on is None:
        return [
            "Was the policy trained on these very choices? The table does not say, and the answer "
            f"holds only if it was not. A column '{TRAINED_ON}' says it, which mixdpo margins "
            "writes with --trained_on."
        ]
    if data.num_trained_on:
        return [
            f"{data.num_trained_on:,} of {data.num_rows:,} rows are left out: the policy was "
            f"trained on them (column '{TRAINED_ON}')."
        ]
    return []


def data_notes(diagnosis: Diagnosis, rows: np.ndarray | None = None) -> list[str]:
    """What a reader should know about the data, a sentence each.

    Args:
        diagnosis: What was found.
        rows: Number of each margin's row in the source; default, they are counted from 0.
    """
    margin, notes = diagnosis.choices.margin, []
    outcomes = diagnosis.choices.outcomes
    better = margin if outcomes is None else margin * outcomes.sign
    if better.min() >= 0 or better.max() <= 0:
        sign = "agrees with" if better.min() >= 0 else "contradicts"
        notes.append(
            f"Every choice {sign} its margin: the data give the mean strength no "
            f"{'upper' if better.min() >= 0 else 'lower'} bound, and its prior decides. Were the "
            "margins those of the training pairs?"
        )
    size = np.abs(margin)
    extreme = size > _EXTREME * typical_size(margin)
    if extreme.any():
        index, count = int(size.argmax()), int(extreme.sum())
        row = index if rows is None else int(rows[index])
        notes.append(
            f"{count:,} {'margin is' if count == 1 else 'margins are'} more than {_EXTREME} times "
            f"the median size; row {row} has the largest, {margin[index]:.3g}. Where such a "
            "margin contradicts its choice it decides cv: make sure that it is no missing value."
        )
    if (margin == 0).any():
        notes.append(f"{int((margin == 0).sum()):,} margins are 0 and say nothing.")
    if diagnosis.contraction["cv"] < 0.5:
        notes.append(
            "The data narrowed the prior of cv by less than half: the interval is largely the "
            "prior's."
        )
    return notes


def _count_lines(diagnosis: Diagnosis) -> list[str]:
    """Which outcomes, or sizes of choice sets, were seen how often."""
    outcomes = diagnosis.choices.outcomes
    if outcomes is None:
        return []
    return [", ".join(f"{name}: {number:,}" for name, number in outcomes.count().items())]


def _effect_lines(diagnosis: Diagnosis) -> list[str]:
    """With what strength goes: each column, and the levels that stand out."""
    effects = diagnosis.effects
    if effects is None:
        return []
    drawn = "" if effects.num_drawn is None else f" ({effects.num_drawn:,} annotators, at random)"
    lines = ["", f"log strength goes with{drawn}"]
    for column in effects.columns:
        middle, low, high = column.sd
        lines.append(
            f"  {column.column}, of {column.belongs_to}: sd {middle:.2f} ({low:.2f} to "
            f"{high:.2f}), p = {column.p_value:.2g}"
        )
    found = sorted(
        (row for row in effects.levels if row.p_adjusted < _LEVEL), key=lambda row: row.p_value
    )
    lines += [
        f"    {abridged(row.column)} {abridged(row.level)}: strength {row.ratio:.2f} times "
        f"({row.q05:.2f} to {row.q95:.2f}), adjusted p = {row.p_adjusted:.2g}"
        for row in found[:_SHOWN]
    ]
    if not found:
        lines.append("    no level stands out once all of them are allowed for")
    parts = (
        f"{part.name} {100 * part.share:.0f}% ({100 * part.q05:.0f} to {100 * part.q95:.0f})"
        for part in effects.shares
    )
    return [*lines, f"  of the variance of log strength: {'; '.join(parts)}"]


def diagnosis_lines(diagnosis: Diagnosis, data: MarginData) -> list[str]:
    """The diagnosis in a few lines of text, the verdict first."""
    verdict, choices = diagnosis.verdict, diagnosis.choices
    annotators = (
        f", {choices.num_annotators:,} annotators" if choices.labels else ", no annotator ids"
    )
    lines = [
        f"{verdict.value}: {verdict.reason}",
        diagnosis.error_rate,
        *advise(diagnosis, _looks_cut(data)).lines,
        "",
        f"{data.source}: {choices.describe()}{annotators}",
        *_count_lines(diagnosis),
        *_notes(diagnosis, data),
        *(
            f"{name}: {format_interval(draws)} (median and 90%)"
            for name, draws in diagnosis.result.posterior.scalars.items()
        ),
        "",
        f"{'family':12}{'cv, median and 90%':26}{'gain over one strength, nats (se)'}",
    ]
    for name, result in diagnosis.fits.items():
        if name != "fixed":
            gain, cv = diagnosis.differences[name], format_interval(result.posterior.cv)
            lines.append(f"{name:12}{cv:26}{gain.elpd:.1f} ({gain.se:.1f})")
    if diagnosis.share_not_positive is not None:
        low, middle, high = diagnosis.share_not_positive
        lines.append(
            f"normal family: {100 * middle:.1f}% of annotators ({100 * low:.1f} to "
            f"{100 * high:.1f}%) have a strength at or below zero"
        )
    lines += _effect_lines(diagnosis)
    lines += ["", "other explanations"]
    lines += [f"  {check.name}: {check.status}. {check.sentence}" for check in diagnosis.checks]
    return lines
