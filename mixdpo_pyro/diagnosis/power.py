"""`mixdpo power`: how much data would settle it? Simulated diagnoses of data not yet collected."""

import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from scipy.stats import beta

from mixdpo_pyro.diagnosis.config import PowerConfig
from mixdpo_pyro.inference import Design, simulate
from mixdpo_pyro.inference.calibration.simulation import parse_kind
from mixdpo_pyro.inference.diagnosis import Diagnosis, diagnose_choices
from mixdpo_pyro.inference.robustness.differences import (
    compare_differences,
    known_error,
)
from mixdpo_pyro.inference.robustness.errors.pair_errors import estimate_pair_errors
from mixdpo_pyro.progress import Engine, run_tasks

__all__ = ["PowerRow", "estimate_power", "power_lines", "simulate_power", "suggestion"]

_VERDICTS = ("heterogeneous", "homogeneous", "inconclusive")

_FIRST_ANSWER = 5
"""Seconds after which a first table is shown; with the imports before, about ten."""

_MORE_JUDGES = 4
"""Judges of each pair that `more` tries where margins have errors."""

_NUM_ESTIMATED = 10
"""Datasets in which the errors of the margins are estimated whatever the verdict."""


class _Answer(NamedTuple):
    """What was found in one dataset.

    Attributes:
        verdict: The verdict.
        width: Width of the 90% interval of cv.
        kind: In what people differ, where they were found to.
        cv: Median of cv, margins taken as exact.
        cv_with_errors: The same with errors of the margins, where it was estimated.
    """

    verdict: str
    width: float
    kind: str | None = None
    cv: float = math.nan
    cv_with_errors: float | None = None


@dataclass(frozen=True)
class PowerRow:
    """Verdicts on simulated data of one design.

    Attributes:
        annotators: Number of annotators, 0 without ids.
        choices_each: Choices of each annotator; all choices without ids.
        counts: Verdict -> number of simulations.
        design: What annotators are asked for.
        width: Root mean square width of the 90% interval of cv, margins taken as exact.
        judges: How many annotators judge each pair.
        kinds: Kind of difference -> number of simulations, of those called heterogeneous.
        cv: Mean over simulations of the median of cv, margins taken as exact.
        cv_with_errors: The same with errors of the margins, over the first simulations; None where
            no pair has several judges.
    """

    annotators: int
    choices_each: int
    counts: dict[str, int]
    design: str = "pairs"
    width: float = math.nan
    judges: int = 1
    kinds: dict[str, int] = field(default_factory=dict)
    cv: float = math.nan
    cv_with_errors: float | None = None

    @property
    def name(self) -> str:
        """What annotators are asked for, and how many judge the same."""
        return self.design if self.judges == 1 else f"{self.design} by {self.judges}"

    @property
    def simulations(self) -> int:
        """Number of simulations."""
        return sum(self.counts.values())

    def probability(self, verdict: str) -> float:
        """Share of simulations with this verdict."""
        return self.counts[verdict] / self.simulations

    def interval(self, verdict: str) -> tuple[float, float]:
        """95% Jeffreys interval of the probability of this verdict."""
        count, size = self.counts[verdict], self.simulations
        low, high = beta.ppf([0.025, 0.975], count + 0.5, size - count + 0.5)
        return (0.0 if count == 0 else float(low)), (1.0 if count == size else float(high))


def simulate_power(config: PowerConfig | None = None, progress: bool = True) -> list[PowerRow]:
    """Simulate and diagnose data of the given design, and of larger ones.

    Every dataset has a seed of its own: the answer is the same for any number of jobs.

    Args:
        config: Options.
        progress: Show a progress bar with the answer so far, and a first table after ten seconds.
    """
    config = config or PowerConfig()
    return _estimate(list(_designs(config)), config, progress)


def estimate_power(config: PowerConfig, progress: bool = False) -> PowerRow:
    """Probability of each verdict for one design.

    Strengths are lognormal, differences of the two responses normal, and the link is logistic.
    Margins are exact but for `pair_error`: with errors in the margins it takes more data.

    Args:
        config: Options; `more` is not used.
        progress: Show a progress bar.
    """
    return _estimate([config], config, progress)[0]


def _estimate(
    designs: Sequence[PowerConfig], config: PowerConfig, progress: bool
) -> list[PowerRow]:
    """All designs, dataset by dataset, so that their answers become sharper together."""
    tasks = [(design, k) for k in range(config.simulations) for design in designs]
    found = run_tasks(
        _diagnose_one,
        tasks,
        Engine(config.jobs, config.scheduler),
        title="simulated diagnoses" if progress else None,
        show=_Refining(designs, config).show if progress else None,
    )
    return [_row(design, found[k :: len(designs)]) for k, design in enumerate(designs)]


@dataclass
class _Refining:
    """The answer so far: the first design's in the bar, and a table of all after ten seconds."""

    designs: Sequence[PowerConfig]
    config: PowerConfig
    started: float = field(default_factory=time.monotonic)
    is_shown: bool = False

    def __post_init__(self) -> None:
        self.answers: list[list[_Answer]] = [[] for _ in self.designs]

    def show(self, number: int, answer: _Answer) -> str:
        """The answer with one more dataset."""
        self.answers[number % len(self.designs)].append(answer)
        if not self.is_shown and time.monotonic() - self.started > _FIRST_ANSWER:
            self._show_table()
        wanted = _wanted(self.config)
        first = self.answers[0]
        return f"{wanted} {_cell(_row(self.designs[0], first), wanted)}" if first else ""

    def _show_table(self) -> None:
        from tqdm import tqdm

        count = min(map(len, self.answers))
        if count in (0, self.config.simulations):
            return
        self.is_shown = True
        rows = [_row(design, self.answers[k]) for k, design in enumerate(self.designs)]
        named = f"{count} dataset{'s' if count > 1 else ''} of each design"
        lines = [f"first answer, from {named}; more follow", *_table_lines(rows), ""]
        tqdm.write("\n".join(lines), file=sys.stderr)


def _shape(config: PowerConfig) -> tuple[Design, int]:
    """The shape of a dataset, and the choices of each annotator; 1 without ids."""
    kind = config.design[0]
    size = parse_kind(kind)[1]
    num_choices = max(2 * config.pairs // size, config.annotators, 2)
    each = num_choices // config.annotators if config.annotators else 1
    judged = config.judges_per_pair, config.pair_error
    return Design(config.annotators or num_choices, each, config.sd, 1.0, kind, *judged), each


def _diagnose_one(task: tuple[PowerConfig, int]) -> _Answer:
    """What a diagnosis says of a simulated dataset."""
    config, number = task
    design, each = _shape(config)
    world = simulate(
        1.0, config.cv, "lognormal", design, np.random.default_rng((config.seed, number))
    )
    diagnosis = diagnose_choices(
        world.margin,
        annotator=world.annotator if each > 1 else None,
        pair=world.pair if config.judges_per_pair > 1 else None,
        **world.done,
        families=("lognormal", "gamma"),
        num_samples=500,
        max_units=500,
        num_permutations=499,
        seed=config.seed,
        thorough=False,
    )
    value, kind = diagnosis.verdict.value, None
    if value == "heterogeneous":
        size = known_error(diagnosis.checks, diagnosis.choices)
        kind = compare_differences(diagnosis.result, {}, size).kind
    with_errors = None
    if config.judges_per_pair > 1 and config.pair_error and number < _NUM_ESTIMATED:
        with_errors = _cv_with_errors(diagnosis)
    width = float(np.diff(diagnosis.verdict.cv_interval)[0])
    return _Answer(
        value, width, kind, float(np.median(diagnosis.result.posterior.cv)), with_errors
    )


def _cv_with_errors(diagnosis: Diagnosis) -> float:
    """Median of cv with errors of the margins; no check did it where another came first."""
    errors = diagnosis.errors or estimate_pair_errors(diagnosis.result)
    return float(np.median(errors.cv))


def _row(config: PowerConfig, answers: Sequence[_Answer]) -> PowerRow:
    counts = dict.fromkeys(_VERDICTS, 0) | Counter(answer.verdict for answer in answers)
    kinds = Counter(answer.kind for answer in answers if answer.kind is not None)
    design, each = _shape(config)
    with_errors = [a.cv_with_errors for a in answers if a.cv_with_errors is not None]
    return PowerRow(
        annotators=config.annotators,
        choices_each=each if config.annotators else design.num_annotators,
        counts=counts,
        design=config.design[0],
        width=float(np.sqrt(np.mean(np.square([answer.width for answer in answers])))),
        judges=config.judges_per_pair,
        kinds=dict(kinds.most_common()),
        cv=float(np.mean([answer.cv for answer in answers])),
        cv_with_errors=float(np.mean(with_errors)) if with_errors else None,
    )


def _designs(config: PowerConfig) -> Iterator[PowerConfig]:
    for name in config.design:
        yield replace(config, design=[name], more=False)
    if not config.more:
        return
    pairs, annotators = config.pairs, config.annotators
    may_share = config.pair_error > 0 and config.judges_per_pair == 1 and annotators > 0
    if may_share and annotators % _MORE_JUDGES == 0:
        yield replace(config, judges_per_pair=_MORE_JUDGES, more=False)
    for name in config.design:
        larger = replace(config, design=[name], pairs=2 * pairs, more=False)
        yield replace(larger, annotators=2 * annotators)
        if annotators:
            yield larger
            yield replace(larger, pairs=4 * pairs, annotators=2 * annotators)


def power_lines(rows: list[PowerRow], config: PowerConfig) -> list[str]:
    """The probabilities with their Monte Carlo intervals, and what to collect."""
    errors = f"errors of the margins {config.pair_error:g} times as large as they, "
    lines = [
        f"true cv {config.cv:g}, sd(mean strength * margin) {config.sd:g}, "
        f"{errors * (config.pair_error > 0)}"
        f"{config.simulations} simulations; 95% Monte Carlo intervals",
        "",
        *_table_lines(rows),
        "",
    ]
    if config.pair_error:
        lines += [_attenuated(row, config) for row in rows]
    return [*lines, *_compared(rows[: len(config.design)]), suggestion(rows, config)]


def _attenuated(row: PowerRow, config: PowerConfig) -> str:
    """What the errors of the margins do to cv."""
    shape = f"{row.name} of {row.annotators or 'no ids,'} annotators"
    lead = f"{shape}: with margins taken as exact cv is {row.cv:.2f} in place of {config.cv:g}"
    if row.cv_with_errors is None:
        return f"{lead}; nothing tells how large errors are, since no pair has several judges."
    count = min(config.simulations, _NUM_ESTIMATED)
    return (
        f"{lead}, with their errors estimated {row.cv_with_errors:.2f} (mean of medians; the "
        f"latter over {count} datasets)."
    )


def _table_lines(rows: Sequence[PowerRow]) -> list[str]:
    lines = [
        f"{'design':12}{'annotators':>10} {'choices each':>12} {'width of cv':>11}   "
        + "".join(f"{v:24}" for v in _VERDICTS)
        + "kinds of the heterogeneous"
    ]
    for row in rows:
        cells = "".join(f"{_cell(row, verdict):24}" for verdict in _VERDICTS)
        kinds = ", ".join(f"{kind} {count}" for kind, count in row.kinds.items()) or "-"
        lines.append(
            f"{row.name:12}{row.annotators or 'no ids':>10} {row.choices_each:>12} "
            f"{row.width:>11.2f}   {cells}{kinds}"
        )
    return lines


def _compared(rows: list[PowerRow]) -> list[str]:
    """What each design is worth beside the first, by the widths of the intervals of cv."""
    first = rows[0]
    worth = {row.design: (first.width / row.width) ** 2 for row in rows[1:]}
    return [
        f"{design}: narrows cv as {value:.1f} times as many {first.design} would, for the same "
        "number of responses read."
        for design, value in worth.items()
    ]


def suggestion(rows: list[PowerRow], config: PowerConfig) -> str:
    """What to collect, in one sentence."""
    wanted = _wanted(config)
    enough = next((row for row in rows if row.probability(wanted) >= 0.8), None)
    if enough is not None and enough is rows[0]:
        return f"This design settles it: {wanted} in {100 * enough.probability(wanted):.0f}%."
    if enough is not None:
        share = 100 * enough.probability(wanted)
        return (
            f"Collect {enough.name} of {enough.annotators or 'no ids,'} annotators with "
            f"{enough.choices_each} choices each: {wanted} in {share:.0f}%."
        )
    if config.annotators == 0 and wanted == "heterogeneous":
        return (
            "Without annotator ids the verdict is never heterogeneous: collect ids, and several "
            "choices of each annotator."
        )
    more = "" if config.more else "; --more tries larger designs"
    shared = ""
    if config.pair_error and config.judges_per_pair == 1:
        shared = "let several annotators judge the same pairs (--judges_per_pair), "
    return (
        f"This design does not settle it in 8 of 10 datasets: {shared}collect more choices of "
        f"each annotator, more annotators, or pairs whose responses differ more (larger sd){more}."
    )


def _wanted(config: PowerConfig) -> str:
    """The verdict that would settle it: cv is called small below 0.25."""
    return "homogeneous" if config.cv < 0.25 else "heterogeneous"


def _cell(row: PowerRow, verdict: str) -> str:
    low, high = row.interval(verdict)
    return f"{100 * row.probability(verdict):.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
