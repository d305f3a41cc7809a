"""Tables of a diagnosis: the strength of every annotator and of every group."""

import numpy as np
import pandas as pd
import torch
from scipy.special import polygamma

from mixdpo_pyro.errors import DataError
from mixdpo_pyro.inference import Fit, fit
from mixdpo_pyro.inference.choices import Choices
from mixdpo_pyro.inference.diagnosis import MAX_STRENGTHS, Diagnosis
from mixdpo_pyro.inference.likelihood.panels import describe_draws, tabulate
from mixdpo_pyro.inference.outcomes import Ties
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.inference.robustness.differences import (
    PAIR_ERRORS,
    estimate_lapse_rates,
    known_error,
)
from mixdpo_pyro.inference.robustness.errors.pair_errors import margin_scale
from mixdpo_pyro.margins.table import MarginData

__all__ = [
    "annotator_table",
    "differences_table",
    "effect_table",
    "group_table",
    "weight_table",
]

# Tables


def annotator_table(diagnosis: Diagnosis, seed: int = 0) -> pd.DataFrame | None:
    r"""Every annotator's strength, strongest first, or None without repeated choices.

    Columns: `annotator`, `pairs` (of choice sets: choices), `agreement` (share of choices that
    agree with the sign of the margin), `mean`, `sd`, `q05`, `q95` of the strength, `relative`
    (mean over the distribution's mean), `shrinkage`, `lapse_rate` and `p_careless` (see
    :class:`~mixdpo_pyro.inference.robustness.care.LapseRates`), and `p_not_positive` under the
    normal family with exact margins. The other columns of the strength allow for errors of the
    margins where more than a prior says their size, see `Diagnosis.allowing_for_errors`.

    Shrinkage is :math:`\mathrm{Var}(\log\beta_g \mid \text{choices}) / \mathrm{Var}(\log\beta)`,
    the weight of the distribution beside the annotator's own choices, were both normal: 1 says
    that the row is what is believed about any annotator.
    """
    choices = diagnosis.choices
    if not choices.has_panels:
        return None
    table = _strength_table(diagnosis.allowing_for_errors, choices, seed)
    table.insert(0, "annotator", choices.labels)
    error = known_error(diagnosis.checks, choices)
    rates = estimate_lapse_rates(diagnosis.result, diagnosis.beside, error)
    table["lapse_rate"], table["p_careless"] = rates.lapse_rate, rates.careless.round(6)
    if "normal" in diagnosis.fits:
        normal = _strengths(diagnosis.fits["normal"], seed)
        table["p_not_positive"] = normal["p_not_positive"]
    return table.sort_values("mean", ascending=False, ignore_index=True)


def group_table(
    diagnosis: Diagnosis, data: MarginData, seed: int = 0, ties: Ties = "rao-kupper"
) -> pd.DataFrame | None:
    """Every group's strength, a group being treated as one annotator; None without groups.

    Columns: `column`, `group`, `annotators`, then those of the table of annotators.
    """
    tables = []
    for column, label in data.groups.items():
        annotators = None if data.annotator is None else pd.Series(data.annotator).groupby(label)
        counts = None if annotators is None else annotators.nunique()
        names, first = np.unique(label, return_counts=True)
        if len(names) == 1 or first.max() == 1:
            raise DataError(
                f"{data.source}: column '{column}' has {len(names):,} different values in "
                f"{len(label):,} rows; groups must be several and repeat"
            )
        result = diagnosis.result
        grouped = fit(
            data.margin,
            annotator=label,
            **data.done,
            ties=ties,
            family=result.posterior.family,
            beta=result.posterior.beta,
            seed=seed,
        )
        table = _strength_table(grouped, grouped.choices, seed)
        table.insert(0, "column", column)
        table.insert(1, "group", grouped.choices.labels)
        if counts is not None:
            table.insert(2, "annotators", counts.loc[list(grouped.choices.labels)].to_numpy())
        tables.append(table.sort_values("mean", ascending=False))
    return pd.concat(tables, ignore_index=True) if tables else None


def effect_table(diagnosis: Diagnosis) -> pd.DataFrame | None:
    """How strength goes with each level of the columns that were given; None without any.

    Columns: those of :class:`~mixdpo_pyro.inference.people.strength_effects.LevelEffect`.
    """
    effects = diagnosis.effects
    return None if effects is None else pd.DataFrame([vars(row) for row in effects.levels])


def weight_table(posterior: Posterior) -> pd.DataFrame | None:
    r"""Everybody's strength over its mean, strongest first; None without strengths.

    Columns: `annotator`, `weight`, :math:`\mathbb{E}[\beta_g \mid \text{choices}] / m`, its
    quantiles `q05` and `q95`, and `shrinkage`, as in :func:`annotator_table`.
    """
    found = posterior.strength_summary
    if posterior.strength is not None:
        found = describe_draws(posterior.strength / posterior.mean[:, None])
    elif found:
        mean = posterior.mean.mean()
        found = {k: found[k] / (1 if k == "log_sd" else mean) for k in found}
    else:
        return None
    table = pd.DataFrame(
        {
            "annotator": posterior.annotators,
            "weight": found["mean"],
            "q05": found["q05"],
            "q95": found["q95"],
            "shrinkage": _shrinkage(posterior, found["log_sd"]),
        }
    )
    return table.sort_values("weight", ascending=False, ignore_index=True)


def differences_table(diagnosis: Diagnosis) -> pd.DataFrame | None:
    r"""In what people differ, a row for each part; None without repeated choices.

    Columns: `part`, `measure`, `value` (not a number where it was not estimated), `q05`, `q95`,
    and `share`, that of the variance of the logit :math:`\beta_g(\Delta + e) + \theta_g^\top a`
    over choices: :math:`m^2 cv^2 \overline{\Delta^2}` for strength, :math:`\sum_k T_k^2` for
    taste and :math:`m^2 (1 + cv^2) \omega^2` for errors, beside
    :math:`m^2 \overline{\Delta^2}`, which is common to everybody. Where more than a prior says the
    size of errors, :math:`m` and cv allow for them, and :math:`T_k`, which was estimated without,
    grows as :math:`m` does. Lapses have no such variance.
    """
    choices = diagnosis.choices
    if not choices.has_panels:
        return None
    rows = [_strength_part(diagnosis), *_taste_parts(diagnosis), _care_part(diagnosis)]
    rows.append(_error_part(diagnosis))
    table = pd.DataFrame(rows, columns=["part", "measure", "value", "q05", "q95", "variance"])
    mean = float(np.median(diagnosis.allowing_for_errors.posterior.mean))
    common = mean**2 * float((choices.margin**2).mean())
    variance = table.pop("variance")
    return table.assign(share=variance / (common + variance.sum()))


_Part = tuple[str, str, float, float, float, float]
"""Part, measure, value, 5% and 95% quantiles, variance of the logit."""

_UNKNOWN = (np.nan,) * 4


def _strength_part(diagnosis: Diagnosis) -> _Part:
    posterior, margin = diagnosis.allowing_for_errors.posterior, diagnosis.choices.margin
    cv, mean = float(np.median(posterior.cv)), float(np.median(posterior.mean))
    variance = (mean * cv) ** 2 * float((margin**2).mean())
    return "strength", "coefficient of variation", cv, *diagnosis.verdict.cv_interval, variance


def _taste_parts(diagnosis: Diagnosis) -> list[_Part]:
    beside = diagnosis.beside
    if beside is None or beside.taste is None:
        why = _why_not(diagnosis) or "needs attributes (--attribute, or numbers of tokens)"
        parts: list[_Part] = [("taste", why, *_UNKNOWN)]
    else:
        measure = "sd of its weight between annotators, in logits per sd of the attribute"
        allowing, exact = diagnosis.allowing_for_errors.posterior, diagnosis.result.posterior
        scale = float(np.median(allowing.mean) / np.median(exact.mean))
        parts = [
            (f"taste: {name}", measure, float(sd), np.nan, np.nan, (scale * float(sd)) ** 2)
            for name, sd in zip(beside.taste.attributes, beside.taste.sd, strict=True)
        ]
    if beside is not None and beside.shared_taste is not None:
        measure = "nats by which people who agreed elsewhere predict better than one ordering"
        gain = beside.shared_taste.gain
        parts.append(("taste: camps of annotators", measure, gain, np.nan, np.nan, np.nan))
    return parts


def _why_not(diagnosis: Diagnosis) -> str | None:
    """Why care and taste were not looked at, if they were not."""
    if diagnosis.beside is None:
        return "looked at where people differ"
    return None if diagnosis.choices.outcomes is None else "needs plain pairs"


def _care_part(diagnosis: Diagnosis) -> _Part:
    if diagnosis.beside is None:
        return "care", "looked at where people differ", *_UNKNOWN
    return "care", "mean lapse rate", diagnosis.beside.care.mean_rate, np.nan, np.nan, np.nan


def _error_part(diagnosis: Diagnosis) -> _Part:
    part = "errors of the margins"
    check = next((c for c in diagnosis.checks if c.name == PAIR_ERRORS), None)
    names = [f"error over margin, {each}" for each in ("median", "5%", "95%")]
    if check is None or names[0] not in check.numbers:
        return part, "needs pairs, and annotators who judged several", *_UNKNOWN
    middle, low, high = (check.numbers[name] for name in names)
    measure = "sd over that of the margins"
    if check.cv_interval is None:
        measure += ", by the shape of the likelihood and a prior alone"
    posterior = diagnosis.allowing_for_errors.posterior
    mean, cv = np.median(posterior.mean), np.median(posterior.cv)
    error = middle * margin_scale(diagnosis.choices)
    return part, measure, middle, low, high, float(mean**2 * (1 + cv**2) * error**2)


def _strength_table(result: Fit, choices: Choices, seed: int) -> pd.DataFrame:
    """Strengths of a fit, with how many choices annotators have, and agree with, in all."""
    assert choices.annotator is not None
    strength = _strengths(result, seed)
    annotator = choices.by_choice(choices.annotator)
    count = np.bincount(annotator)
    return pd.DataFrame(
        {
            "pairs": count,
            "agreement": np.bincount(annotator, choices.agrees) / count,
            **{name: strength[name] for name in ("mean", "sd", "q05", "q95")},
            "relative": strength["mean"] / result.posterior.mean.mean(),
            "shrinkage": _shrinkage(result.posterior, strength["log_sd"]),
        }
    )


def _shrinkage(posterior: Posterior, log_sd: np.ndarray) -> np.ndarray:
    """Variance of each log strength given the choices, over that of the distribution."""
    cv = posterior.cv
    is_gamma = posterior.family == "gamma"
    variance = (polygamma(1, cv**-2.0) if is_gamma else np.log1p(cv**2)).mean()
    return np.clip(log_sd**2 / variance, 0, 1)


def _strengths(result: Fit, seed: int) -> dict[str, np.ndarray]:
    """Every annotator's strength: from draws where they are few, or averaged over densities."""
    posterior, choices = result.posterior, result.choices
    if posterior.strength_summary:
        return posterior.strength_summary
    if posterior.strength is not None:
        return describe_draws(posterior.strength)
    table = tabulate(choices, posterior.family, posterior.flip_probability)
    if posterior.num_samples * choices.num_annotators > MAX_STRENGTHS:
        return table.summarise_strengths(posterior.mean, posterior.cv)
    mean, cv = (torch.from_numpy(x) for x in (posterior.mean, posterior.cv))
    return describe_draws(
        table.draw_strengths(mean, cv, np.random.default_rng((seed, 17))).numpy()
    )
