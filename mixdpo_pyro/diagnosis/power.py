"""`mixdpo power`: how much data would settle it? Simulated diagnoses of data not yet collected."""

import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import beta

from mixdpo_pyro.diagnosis.config import PowerConfig
from mixdpo_pyro.inference import Design, simulate
from mixdpo_pyro.inference.calibration.simulation import parse_kind
from mixdpo_pyro.inference.diagnosis import diagnose_choices
from mixdpo_pyro.progress import Engine, run_tasks

__all__ = ["PowerRow", "estimate_power", "power_lines", "simulate_power", "suggestion"]

_VERDICTS = ("heterogeneous", "homogeneous", "inconclusive")

_FIRST_ANSWER = 5
"""Seconds after which a first table is shown; with the imports before, about ten."""

_Answer = tuple[str, float]
"""Verdict on a dataset, and the width of its interval of cv."""


@dataclass(frozen=True)
class PowerRow:
    """Verdicts on simulated data of one design.

    Attributes:
        annotators: Number of annotators, 0 without ids.
        choices_each: Choices of each annotator; all choices without ids.
        counts: Verdict -> number of simulations.
        design: What annotators are asked for.
        width: Root mean square width of the 90% interval of cv.
    """

    annotators: int
    choices_each: int
    counts: dict[str, int]
    design: str = "pairs"
    width: float = math.nan

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

    Strengths are lognormal, differences of the two responses normal, the link is logistic and the
    margins are exact: with errors in the margins it takes more data.

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
    return Design(config.annotators or num_choices, each, config.sd, 1.0, kind), each


def _diagnose_one(task: tuple[PowerConfig, int]) -> _Answer:
    """Verdict on a simulated dataset, and the width of its interval of cv."""
    config, number = task
    design, each = _shape(config)
    world = simulate(
        1.0, config.cv, "lognormal", design, np.random.default_rng((config.seed, number))
    )
    diagnosis = diagnose_choices(
        world.margin,
        annotator=world.annotator if each > 1 else None,
        **world.done,
        families=("lognormal", "gamma"),
        num_samples=500,
        max_units=500,
        num_permutations=499,
        seed=config.seed,
        thorough=False,
    )
    return diagnosis.verdict.value, float(np.diff(diagnosis.verdict.cv_interval)[0])


def _row(config: PowerConfig, answers: Sequence[_Answer]) -> PowerRow:
    counts = dict.fromkeys(_VERDICTS, 0) | Counter(verdict for verdict, _ in answers)
    width = float(np.sqrt(np.mean(np.square([width for _, width in answers]))))
    design, each = _shape(config)
    shown = each if config.annotators else design.num_annotators
    return PowerRow(config.annotators, shown, counts, config.design[0], width)


def _designs(config: PowerConfig) -> Iterator[PowerConfig]:
    for name in config.design:
        yield replace(config, design=[name], more=False)
    if not config.more:
        return
    pairs, annotators = config.pairs, config.annotators
    for name in config.design:
        larger = replace(config, design=[name], pairs=2 * pairs, more=False)
        yield replace(larger, annotators=2 * annotators)
        if annotators:
            yield larger
            yield replace(larger, pairs=4 * pairs, annotators=2 * annotators)


def power_lines(rows: list[PowerRow], config: PowerConfig) -> list[str]:
    """The probabilities with their Monte Carlo intervals, and what to collect."""
    lines = [
        f"true cv {config.cv:g}, sd(mean strength * margin) {config.sd:g}, "
        f"{config.simulations} simulations; 95% Monte Carlo intervals",
        "",
        *_table_lines(rows),
    ]
    return [*lines, "", *_compared(rows[: len(config.design)]), suggestion(rows, config)]


def _table_lines(rows: Sequence[PowerRow]) -> list[str]:
    lines = [
        f"{'design':12}{'annotators':>10} {'choices each':>12} {'width of cv':>11}   "
        + "".join(f"{v:24}" for v in _VERDICTS)
    ]
    for row in rows:
        cells = "".join(f"{_cell(row, verdict):24}" for verdict in _VERDICTS)
        lines.append(
            f"{row.design:12}{row.annotators or 'no ids':>10} {row.choices_each:>12} "
            f"{row.width:>11.2f}   {cells}"
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
            f"Collect {enough.design} of {enough.annotators or 'no ids,'} annotators with "
            f"{enough.choices_each} choices each: {wanted} in {share:.0f}%."
        )
    if config.annotators == 0 and wanted == "heterogeneous":
        return (
            "Without annotator ids the verdict is never heterogeneous: collect ids, and several "
            "choices of each annotator."
        )
    more = "" if config.more else "; --more tries larger designs"
    return (
        "This design does not settle it in 8 of 10 datasets: collect more choices of each "
        f"annotator, more annotators, or pairs whose responses differ more (larger sd){more}."
    )


def _wanted(config: PowerConfig) -> str:
    """The verdict that would settle it: cv is called small below 0.25."""
    return "homogeneous" if config.cv < 0.25 else "heterogeneous"


def _cell(row: PowerRow, verdict: str) -> str:
    low, high = row.interval(verdict)
    return f"{100 * row.probability(verdict):.0f}% [{100 * low:.0f}, {100 * high:.0f}]"
