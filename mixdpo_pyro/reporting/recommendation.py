"""What to do with a verdict, in one sentence, and what different strengths gain."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixdpo_pyro.inference.choices import Choices
from mixdpo_pyro.inference.diagnosis import Diagnosis
from mixdpo_pyro.inference.robustness.checks import LEVEL, PREDICTION, RobustnessCheck
from mixdpo_pyro.inference.robustness.errors.shared import shared_rows
from mixdpo_pyro.inference.verdict import Verdict

__all__ = ["Advice", "Design", "advise", "headline", "recommend"]

_HEADLINES = {
    "strength": "People differ in how strongly they prefer",
    "taste": "People want different things",
    "care": "Some people answer at random",
    "undetermined": "People differ, and it is not known in what",
    "homogeneous": "People are alike: one strength fits all",
    "inconclusive": "No answer yet",
}
"""Kind or verdict -> plain words."""


@dataclass(frozen=True)
class Design:
    """What of the data decides what to do next.

    Attributes:
        choices: Number of choices.
        annotators: Number of annotators; 0 without ids.
        sd: Root mean square of mean strength times the margin.
        has_panels: Whether annotators chose repeatedly.
        has_shared_pairs: Whether several annotators judged the same pair.
        margins_predict: Whether the margins predict the choices.
        looks_cut: Whether rows look like parts of choices among several responses.
        cv: Middle of its interval, margins being taken as exact, as they are in a simulation.
    """

    choices: int
    annotators: int = 0
    sd: float = 2.0
    has_panels: bool = False
    has_shared_pairs: bool = False
    margins_predict: bool = True
    looks_cut: bool = False
    cv: float = 0.5


@dataclass(frozen=True)
class Advice:
    """What to do with a verdict, and what different strengths gain over one strength.

    Attributes:
        recommendation: What to do, in one sentence.
        nats: Gain in log predictive density per held-out choice, in words.
        accuracy: Gain in accuracy, in words.
    """

    recommendation: str
    nats: str
    accuracy: str

    @property
    def lines(self) -> list[str]:
        """The same for a screen."""
        return [
            f"what to do: {self.recommendation}",
            f"gain per held-out choice over one strength: {self.nats}; accuracy: {self.accuracy}",
        ]


def advise(diagnosis: Diagnosis, looks_cut: bool = False) -> Advice:
    """What to do after a diagnosis.

    Accuracy cannot change where choices are pairs, or the best of a set: as long as strengths are
    positive, the response with the larger margin is the likelier one for everybody.

    Args:
        diagnosis: What was found.
        looks_cut: Whether rows look like parts of choices among several responses.
    """
    choices, posterior = diagnosis.choices, diagnosis.result.posterior
    design = Design(
        choices=choices.num_choices,
        annotators=choices.num_annotators,
        sd=float(np.median(posterior.mean) * np.sqrt((choices.margin**2).mean())),
        has_panels=choices.has_panels,
        has_shared_pairs=_are_shared(choices),
        margins_predict=diagnosis.margin_p_value < LEVEL,
        looks_cut=looks_cut,
        cv=sum(posterior.interval("cv")) / 2,
    )
    accuracy = "not measured"
    if posterior.family != "normal" and _are_ordered(choices):
        accuracy = "no change, since strengths above zero predict the same response as one does"
    nats = _nats(diagnosis.checks, design.choices)
    return Advice(recommend(diagnosis.verdict, design), nats, accuracy)


def headline(verdict: Verdict) -> str:
    """The verdict and its kind in plain words."""
    if verdict.value == "heterogeneous":
        return _HEADLINES[verdict.kind or "undetermined"]
    return _HEADLINES[verdict.value]


def recommend(verdict: Verdict, design: Design) -> str:
    """What to do now, in one sentence.

    Args:
        verdict: The verdict, with its kind.
        design: What of the data decides.
    """
    if verdict.value == "heterogeneous":
        return _of_kind(verdict, design)
    if verdict.value == "homogeneous":
        return (
            "Use plain DPO: one strength fits everybody, and neither MixDPO nor annotator ids "
            "promise a gain."
        )
    return _how_to_settle(verdict, design)


def _of_kind(verdict: Verdict, design: Design) -> str:
    if verdict.kind == "strength" and design.has_panels:
        return (
            "Use MixDPO with annotator ids (annotator_column); in a simulated world of people who "
            "differ a lot (cv 1.5) it won 51.3% against DPO at equal KL, and 50.1% without ids, "
            "while a language model showed no gain."
        )
    if verdict.kind == "strength":
        return (
            "Collect annotator ids, several choices of each, before you use MixDPO: without ids "
            "it gained nothing in simulated worlds."
        )
    if verdict.kind == "taste":
        return (
            "Do not train one policy with annotator ids, which served the minority worse than "
            "plain DPO in a simulated world: compare models of types first (mixdpo rivals)."
        )
    if verdict.kind == "care":
        return (
            "Do not learn strengths from these ids: look at the careless annotators (column "
            "p_careless of annotators.csv), drop them or allow for wrong labels "
            "(flip_probability), and use plain DPO."
        )
    remedy = "let several people judge the same pairs, and name attributes (--attribute)"
    if design.has_shared_pairs:
        remedy = "name attributes that people may want (--attribute), or collect more of each"
    return (
        "Do not train with annotator ids yet, since people differ and it is not known in what: "
        f"{remedy}, then diagnose again."
    )


def _how_to_settle(verdict: Verdict, design: Design) -> str:
    if design.looks_cut:
        return (
            "Name the column of the choice sets (--choice_set), or say that each pair was judged "
            "by itself (--choice_set none), and diagnose again."
        )
    if not design.margins_predict:
        return (
            "Get margins that predict the choices first, from a policy that learned from such "
            "data and was not trained on these pairs: no amount of choices replaces them."
        )
    if not design.has_panels:
        return (
            "Use plain DPO for now, and collect annotator ids with several choices of each, some "
            "of them on the same pairs: without repeated choices no number of pairs settles it."
        )
    shared = "" if design.has_shared_pairs else ", several people on the same pairs,"
    return (
        f"Use plain DPO for now, and collect more choices of each person{shared} if it matters; "
        f"how many settle it says: {_power_command(design)}"
    )


def _power_command(design: Design) -> str:
    """The command that simulates twice the choices of these people at the cv in question."""
    cv = min(max(design.cv, 0.1), 3.0)
    pairs = min(max(2 * design.choices, 20), 1_000_000)
    return (
        f"mixdpo power --pairs {pairs} --annotators {design.annotators} --sd {design.sd:.2g} "
        f"--cv {cv:.2g}"
    )


def _nats(checks: Sequence[RobustnessCheck], num_choices: int) -> str:
    """Gain of different strengths over one strength for each choice of those left out."""
    numbers = next((check.numbers for check in checks if check.name == PREDICTION), {})
    gain, error = (numbers.get(name, math.nan) / num_choices for name in ("elpd_difference", "se"))
    if not (math.isfinite(gain) and math.isfinite(error)):
        return "not measured"
    likelier = f"{100 * abs(math.expm1(gain)):.1f}% {'likelier' if gain >= 0 else 'less likely'}"
    words = f"{gain:+.4f} nats (standard error {error:.4f}): what was chosen is {likelier}"
    return words if numbers.get("is_reliable", 1.0) else f"{words}; the estimate is unreliable"


def _are_ordered(choices: Choices) -> bool:
    """Whether the larger margin is the likelier choice at every positive strength."""
    return choices.outcomes is None or choices.outcomes.are_sets


def _are_shared(choices: Choices) -> bool:
    """Whether a pair was judged by several annotators."""
    return choices.annotator is not None and len(shared_rows(choices)) > 0
