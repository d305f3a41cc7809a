"""`mixdpo reliability`: is a person's strength the same in halves of their choices, and topics?"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mixdpo_pyro.diagnosis.config import RELIABILITY_FILE, ReliabilityConfig
from mixdpo_pyro.errors import DataError
from mixdpo_pyro.inference import Fit, fit
from mixdpo_pyro.inference.choices import read_choices
from mixdpo_pyro.inference.people.reliability import Reliability, estimate_reliability
from mixdpo_pyro.inference.robustness.scale import anchor_strength
from mixdpo_pyro.margins.table import MarginData, read_margins
from mixdpo_pyro.reporting.figures.annotators import plot_correlations
from mixdpo_pyro.reporting.html import encode_images, write_images
from mixdpo_pyro.reporting.records import write_record

__all__ = [
    "ReliabilityRecord", "measure_reliability", "reliability_lines", "write_reliability",
]  # fmt: skip


@dataclass(frozen=True)
class ReliabilityRecord:
    """Content of `reliability.json`.

    Attributes:
        source: Name of the file.
        choices: What the choices are, in words.
        annotators: Number of annotators.
        parts: How well strengths of the same people agree, over halves and every column of groups.
        config: Options of the command.
    """

    source: str
    choices: str
    annotators: int
    parts: list[Reliability]
    config: dict[str, Any]


def measure_reliability(
    path: str | Path, config: ReliabilityConfig | None = None
) -> ReliabilityRecord:
    """Compare strengths of the same people over halves of a file's choices, and over groups.

    Args:
        path: Margins, as `mixdpo diagnose` reads them.
        config: Options.

    Raises:
        DataError: Naming the file, column and row that cannot be used.
    """
    config = config or ReliabilityConfig()
    data = read_margins(path, config.annotator, config.group, config.choice_set)
    try:
        result = _fit(data, config)
        over: dict[str, Any] = {"halves": None, **data.groups}
        parts = [
            estimate_reliability(
                result, labels, name=name, num_splits=config.num_splits,
                num_bootstrap=config.num_bootstrap, seed=config.seed,
            )
            for name, labels in over.items()
        ]  # fmt: skip
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    choices = result.choices
    return ReliabilityRecord(
        data.source, choices.describe(), choices.num_annotators, parts, asdict(config)
    )


def _fit(data: MarginData, config: ReliabilityConfig) -> Fit:
    if data.annotator is None:
        raise ValueError(
            "Expected annotator ids; name their column with --annotator: how stable a person's "
            "strength is shows in several choices of each"
        )
    choices = read_choices(
        data.margin, data.annotator, **data.done, ties=config.ties, **data.judged
    )
    if not choices.has_panels:
        raise ValueError(
            f"Expected several choices of each annotator, got one in column "
            f"{data.annotator_column!r}"
        )
    beta = anchor_strength(choices)
    return fit(choices, beta=beta, draw_strengths=False, num_samples=100, seed=config.seed)


def write_reliability(found: ReliabilityRecord, folder: Path) -> None:
    """Write `reliability.json` and `figures/` into a folder."""
    intervals = {each.parts: (each.correlation, *each.cautious_interval) for each in found.parts}
    write_images(encode_images({"correlations": plot_correlations(intervals)}), folder)
    write_record(found, folder / RELIABILITY_FILE)


def reliability_lines(found: ReliabilityRecord) -> list[str]:
    """The result in a few lines of text."""
    lines = [f"{found.source}: {found.choices}, {found.annotators:,} annotators", ""]
    for each in found.parts:
        lines += [f"{each.parts}: {each.value}. {each.reason}", f"  {_numbers(each)}"]
        if each.observed is not None and each.whole is not None:
            lines.append(
                f"  estimates of halves correlate with {_interval(each.observed)}, those of all "
                f"choices would with {_interval(each.whole)}"
            )
    return [
        *lines,
        "",
        "What is stable need not be strength: annotators who are careless, or want something "
        "else, are so in both halves. mixdpo diagnose looks at that.",
    ]


def _numbers(found: Reliability) -> str:
    low, high = found.bootstrap
    what = "halves" if found.parts == "halves" else "groups"
    drawn = "" if found.num_drawn is None else f"; {found.num_drawn:,} annotators drawn at random"
    return (
        f"sd of log strength between annotators {found.sd_between:.2f}, within them "
        f"{found.sd_within:.2f}; posterior {found.interval[0]:.2f} to {found.interval[1]:.2f}, "
        f"annotators resampled {low:.2f} to {high:.2f}; {found.num_people:,} annotators with "
        f"choices in two or more of {found.num_parts:,} {what}{drawn}"
    )


def _interval(value: tuple[float, float, float]) -> str:
    middle, low, high = value
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
