"""Scores of rival models, side by side: nats and accuracy per held-out choice of known people."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_expit, ndtri

from mixdpo_pyro.inference.people.rivals.harness import (
    ONE_STRENGTH,
    RIVALS,
    Folds,
    HeldOut,
    Rival,
    run_rival,
)
from mixdpo_pyro.inference.people.rivals.optimising import MARGIN_RIDGE, fit_logistic
from mixdpo_pyro.inference.people.rivals.records import KnownChoices

__all__ = ["RivalScore", "Worst", "compare_rivals", "find_winners", "mark_badly_served"]

_SHRINKAGE = 5.0
"""Choices of average luck that are added to everybody's before people are ordered by them."""

_BADLY_SERVED = 0.1

_FEWEST = 20
"""Held-out choices of a group below which it is not looked at as the worst one."""

_Z90 = 1.6449

_LEVEL = 0.05


@dataclass(frozen=True)
class RivalScore:
    """How well a model predicts held-out choices of known people.

    Standard errors are clustered by annotator; gains are paired, choice by choice.

    Attributes:
        model: Its name.
        inputs: `"margins"`, or `"embeddings"` beside them.
        nats: Mean log-probability of a held-out choice.
        nats_se: Its standard error.
        accuracy: Share of held-out choices that the model expected, an even chance counting half.
        accuracy_se: Its standard error.
        gain: Nats per choice above one strength.
        gain_se: Its standard error.
        gain_q05: Lower end of its 90% interval.
        gain_q95: Upper end.
        people_gain: Nats per choice above the same model of equal people: what is gained by
            people who differ.
        people_gain_se: Its standard error.
        accuracy_gain: Accuracy above one strength.
        accuracy_gain_se: Its standard error.
        macro_nats: Mean over annotators of their mean log-probability.
        macro_accuracy: The same of accuracy.
        worst_nats: Nats of the group that fares worst.
        worst_accuracy: Its accuracy.
        worst_group: Which group that is.
        parameters: Numbers that were estimated, those of each annotator included.
        setting: What held-out choices selected most often: ridges, number of types.
        seconds: Time of all fits.
    """

    model: str
    inputs: str
    nats: float
    nats_se: float
    accuracy: float
    accuracy_se: float
    gain: float
    gain_se: float
    gain_q05: float
    gain_q95: float
    people_gain: float
    people_gain_se: float
    accuracy_gain: float
    accuracy_gain_se: float
    macro_nats: float
    macro_accuracy: float
    worst_nats: float
    worst_accuracy: float
    worst_group: str
    parameters: int
    setting: dict[str, float | int]
    seconds: float


@dataclass(frozen=True)
class Worst:
    """Groups of choices of which the worst one counts.

    Attributes:
        label: Number of the group of each choice; -1 is none.
        names: Their names.
    """

    label: Int[np.ndarray, " choices"]
    names: tuple[str, ...]


def compare_rivals(
    choices: KnownChoices,
    folds: Folds,
    *,
    rivals: Sequence[Rival] = RIVALS,
    held_group: Int[np.ndarray, " choices"] | None = None,
    worst: Worst | None = None,
    seed: int = 0,
    advance: Callable[[str], object] = lambda name: None,
) -> tuple[list[RivalScore], dict[str, HeldOut]]:
    """Fit the models that the inputs allow to the same folds, and score them.

    Args:
        choices: Choices.
        folds: Folds, see :func:`make_folds`.
        rivals: Models, one strength and those of equal people among them.
        held_group: Groups that were held out whole, so that settings are selected likewise.
        worst: Groups of which the worst counts; default, the tenth of annotators whom one strength
            predicts worst in training, see :func:`mark_badly_served`.
        seed: Seed of starts and inner folds.
        advance: Called with the name of the model after each of its fits.

    Returns:
        A score of each model, and what each says of held-out choices and of people.
    """
    rivals = [r for r in rivals if r.inputs == "margins" or choices.embeddings is not None]
    found = {
        rival.name: run_rival(
            rival, choices, folds, held_group, seed, partial(advance, rival.name)
        )
        for rival in rivals
    }
    worst = worst or mark_badly_served(choices, folds)
    return [_score(rival, found, choices, folds, worst) for rival in rivals], found


def find_winners(scores: list[RivalScore], over: str = "gain") -> list[str]:
    """Models that predict better than equal people, allowing for how many models were tried.

    Args:
        scores: Scores of all models.
        over: `"gain"` over one strength, or `"people_gain"` over the same model of equal people.

    Returns:
        Names, best first: the gain exceeds zero at 5% over all of them (Bonferroni).
    """
    equal = {ONE_STRENGTH} if over == "gain" else {r.equal_people for r in RIVALS}
    tried = [score for score in scores if score.model not in equal]
    least = -ndtri(_LEVEL / max(1, len(tried)))
    won = [s for s in tried if getattr(s, over) > least * getattr(s, f"{over}_se")]
    return [score.model for score in sorted(won, key=lambda s: -getattr(s, over))]


def mark_badly_served(choices: KnownChoices, folds: Folds) -> Worst:
    """Held-out choices of the tenth of annotators whom one strength predicts worst in training.

    Annotators are picked by choices that do not score, so that no model gains by who was unlucky.
    """
    label = np.full(len(choices), -1)
    for train, held in folds:
        part = choices.take(train)
        margin = part.margin[:, None]
        theta = fit_logistic(margin, np.array([MARGIN_RIDGE]))
        luck = log_expit(margin @ theta)
        mean = part.sum_by_annotator(luck - luck.mean()) / (part.count + _SHRINKAGE)
        people = np.unique(choices.annotator[held])
        is_worst = mean <= np.quantile(mean[people], _BADLY_SERVED)
        label[held[is_worst[choices.annotator[held]]]] = 0
    return Worst(label, ("people badly served",))


def _score(
    rival: Rival,
    found: Mapping[str, HeldOut],
    choices: KnownChoices,
    folds: Folds,
    worst: Worst,
) -> RivalScore:
    rows = folds.is_scored
    person = choices.annotator[rows]
    nats, one, equal = (
        found[name].log_prob[rows] for name in (rival.name, ONE_STRENGTH, rival.equal_people)
    )
    right, one_right = _accuracy(nats), _accuracy(one)
    gain, gain_se = _clustered(nats - one, person)
    group, worst_nats, worst_accuracy = _worst(nats, right, worst.label[rows])
    held = found[rival.name]
    return RivalScore(
        rival.name, rival.inputs,
        *_clustered(nats, person), *_clustered(right, person),
        gain, gain_se, gain - _Z90 * gain_se, gain + _Z90 * gain_se,
        *_clustered(nats - equal, person), *_clustered(right - one_right, person),
        _macro(nats, person), _macro(right, person),
        worst_nats, worst_accuracy, "" if group < 0 else worst.names[group],
        held.num_parameters, dict(held.setting), held.seconds,
    )  # fmt: skip


def _accuracy(log_prob: Float[np.ndarray, " scored"]) -> Float[np.ndarray, " scored"]:
    """One where the choice was expected, one half where its probability is even."""
    half = np.log(0.5)
    is_even = np.isclose(log_prob, half, rtol=0, atol=1e-12)
    return np.where(is_even, 0.5, (log_prob > half).astype(float))


def _clustered(
    value: Float[np.ndarray, " scored"], person: Int[np.ndarray, " scored"]
) -> tuple[float, float]:
    """Mean over choices, and its standard error where those of a person go together."""
    _, row = np.unique(person, return_inverse=True)
    mean = float(value.mean())
    total = np.bincount(row, value - mean)
    number = len(total)
    factor = number / max(1, number - 1)
    return mean, float(np.sqrt(factor * (total**2).sum()) / len(value))


def _macro(value: Float[np.ndarray, " scored"], person: Int[np.ndarray, " scored"]) -> float:
    _, row = np.unique(person, return_inverse=True)
    return float((np.bincount(row, value) / np.bincount(row)).mean())


def _worst(
    nats: Float[np.ndarray, " scored"],
    right: Float[np.ndarray, " scored"],
    label: Int[np.ndarray, " scored"],
) -> tuple[int, float, float]:
    """The group with the lowest nats, its nats and accuracy."""
    groups = [k for k in np.unique(label) if k >= 0 and (label == k).sum() >= _FEWEST]
    if not groups:
        return -1, float("nan"), float("nan")
    values = [(float(nats[label == k].mean()), int(k)) for k in groups]
    lowest, group = min(values)
    return group, lowest, float(right[label == group].mean())
