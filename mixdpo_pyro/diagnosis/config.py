"""Options of the commands that say what choices and votes tell."""

import re
from dataclasses import dataclass
from typing import Literal

from mixdpo_pyro.config_fields import (
    PSEUDONYMISE,
    SCHEDULER,
    SHOW_ANNOTATORS,
    check_kind,
    check_positive,
    check_range,
    check_seed,
    explained,
    option,
)
from mixdpo_pyro.errors import ConfigError

__all__ = [
    "CHECK_FILE",
    "DIAGNOSIS_FILE",
    "JUDGES_FILE",
    "RELIABILITY_FILE",
    "RIVALS_FILE",
    "CheckConfig",
    "DiagnoseConfig",
    "JudgesConfig",
    "PowerConfig",
    "ReliabilityConfig",
    "RivalsConfig",
    "split_formula",
]

_ANNOTATOR = "Column of annotator ids. Default: `annotator` where there is one."

_CHOICE_SET = (
    "Column of choice sets: rows of one set are one choice among several responses. Default: "
    "`choice_set` where there is one; `none` keeps rows apart."
)

_OPERATORS = re.compile(r"[*:()~|^]")
"""What other programs take in a formula beside `+`."""

_LARGEST_ERROR = 10
"""Errors of the margins beyond which these say next to nothing, relative to their size."""

CHECK_FILE = "check.json"
"""The file that makes a folder a check folder."""

DIAGNOSIS_FILE = "diagnosis.json"
"""The file that makes a folder a diagnosis folder."""

JUDGES_FILE = "judges.json"
"""The file that makes a folder one of ratings."""

RELIABILITY_FILE = "reliability.json"
"""The file that makes a folder one of a test-retest."""

RIVALS_FILE = "rivals.json"
"""The file that makes a folder one of rival models."""


@explained
@dataclass(frozen=True)
class DiagnoseConfig:
    """Is this preference data heterogeneous, for whom, and how sure are we?"""

    annotator: str | None = option(_ANNOTATOR, None)
    group: list[str] = option(
        "Columns of groups, such as topic or policy: a table each, and people who stand in one "
        "group only are compared within it.",
        [],
    )
    stratum: list[str] = option(
        "Columns of strata: the permutation test compares people within them.", []
    )
    attribute: list[str] = option(
        "Columns of differences of attributes, chosen minus rejected, such as position or number "
        "of lists: what people may want besides what the margins say. Length is one by itself.",
        [],
    )
    strength: str | None = option(
        "Columns that strengths may go with, of annotators or of choices, joined with + and "
        "nothing else, such as 'topic + age'. A column of numbers has one effect, per standard "
        "deviation; text has one for each level.",
        None,
    )
    choice_set: str | None = option(_CHOICE_SET, None)
    ties: Literal["rao-kupper", "davidson"] = option(
        "Model of ties, where there is a column `outcome` (win, tie, loss).", "rao-kupper"
    )
    second: str | None = option(
        "File with margins of another policy for the same rows, for errors in the margins.", None
    )
    family: Literal["lognormal", "gamma"] = option(
        "Distribution of the strength that the verdict rests on.", "lognormal"
    )
    beta: float | None = option(
        "Median of the mean strength's prior. Default: the one strength that fits best.", None
    )
    pseudonymise: str | None = option(PSEUDONYMISE, None)
    show_annotators: list[str] = option(SHOW_ANNOTATORS, [])
    num_samples: int = option("Posterior draws.", 1000)
    draw_strengths: bool = option(
        "Keep up to 50,000,000 draws of the annotators' strengths in `posterior.nc`, in place of "
        "2,000,000; more become mean, sd and quantiles.",
        False,
    )
    seed: int = option("Seed of everything that is drawn.", 0)
    output_dir: str | None = option(
        "Folder for tables, posterior and report. Default: print only.", None, short="-o"
    )
    overwrite: bool = option("Replace an earlier diagnosis in that folder.", False)

    def __post_init__(self) -> None:
        split_formula(self.strength)
        check_positive("beta", self.beta)
        # Independent draws: the 5% quantile is then known to 0.02 posterior standard deviations.
        reason = "every annotator has a column of them, and more change no interval"
        check_range("num_samples", self.num_samples, 100, 10_000, reason)
        check_seed(self.seed)


def split_formula(formula: str | None) -> list[str]:
    """Columns of a formula such as `topic + age`; None has none.

    Raises:
        ConfigError: If it is anything but different columns joined with `+`.
    """
    if formula is None:
        return []
    names = [name.strip() for name in formula.split("+")]
    if not all(names) or _OPERATORS.search(formula):
        raise ConfigError(
            "strength: expected columns joined with + and nothing else, such as 'topic + age', "
            f"got {formula!r}"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"strength: expected each column once, got {twice!r} twice")
    return names


@explained
@dataclass(frozen=True)
class CheckConfig:
    """Does the fitted distribution of the strength predict these choices?"""

    annotator: str | None = option(_ANNOTATOR, None)
    group: list[str] = option("Columns of groups: a row each in the table.", [])
    choice_set: str | None = option(_CHOICE_SET, None)
    pseudonymise: str | None = option(PSEUDONYMISE, None)
    max_choices: int = option("Choices that are looked at; of more, a random subset is.", 20_000)
    num_replications: int = option("Replicated datasets, each from one posterior draw.", 500)
    seed: int = option("Seed of orientation, subset and replications.", 0)
    output_dir: str | None = option(
        "Folder for figures and `check.json`. Default: print only.", None, short="-o"
    )
    overwrite: bool = option("Replace an earlier check in that folder.", False)

    def __post_init__(self) -> None:
        check_range("max_choices", self.max_choices, 20)
        # 20,000 choices times 5,000 replications take 0.8 GB per array of float64.
        reason = "all are held in memory, and p-values are then known to 0.01"
        check_range("num_replications", self.num_replications, 50, 5_000, reason)
        check_seed(self.seed)


@explained
@dataclass(frozen=True)
class ReliabilityConfig:
    """Is the strength of a person a trait: the same over halves of their choices, over topics?"""

    annotator: str | None = option(_ANNOTATOR, None)
    group: list[str] = option(
        "Columns of groups, such as topic, over which strengths of the same people are compared "
        "too.",
        [],
    )
    choice_set: str | None = option(_CHOICE_SET, None)
    ties: Literal["rao-kupper", "davidson"] = option(
        "Model of ties, where there is a column `outcome` (win, tie, loss).", "rao-kupper"
    )
    num_splits: int = option("Random splits of everybody's choices into halves.", 10)
    num_bootstrap: int = option("Times that people are resampled.", 500)
    seed: int = option("Seed of splits and resampling.", 0)
    output_dir: str | None = option(
        "Folder for the figure and `reliability.json`. Default: print only.", None, short="-o"
    )
    overwrite: bool = option("Replace an earlier result in that folder.", False)

    def __post_init__(self) -> None:
        # A split of a thousand people takes a second, and ten differ little from a hundred.
        check_range("num_splits", self.num_splits, 1, 1_000, "each one is a fit")
        reason = "a quantile is then known to 0.02 standard deviations"
        check_range("num_bootstrap", self.num_bootstrap, 100, 10_000, reason)
        check_seed(self.seed)


@explained
@dataclass(frozen=True)
class RivalsConfig:
    """Does any model of how people differ predict their next choices better than one strength?"""

    embeddings: str | None = option(
        "safetensors file with tensors `chosen` and `rejected`, and `prompt` if there is one: an "
        "embedding for each row of the margins, in their order. Default: models on margins only.",
        None,
    )
    annotator: str | None = option(_ANNOTATOR, None)
    holdout: str | None = option(
        "Column of groups, such as topic, that are held out whole. Default: choices of each "
        "annotator at random.",
        None,
    )
    group: str | None = option(
        "Column of groups of which the worst counts. Default: the tenth of annotators whom one "
        "strength predicts worst in training.",
        None,
    )
    num_folds: int = option("Folds: each one's choices are predicted from the others.", 5)
    components: int = option("Principal components of the embeddings that are kept at most.", 64)
    max_choices: int = option(
        "Choices that are looked at; of more, those of annotators drawn at random.", 50_000
    )
    pseudonymise: str | None = option(PSEUDONYMISE, None)
    seed: int = option("Seed of folds and starts.", 0)
    output_dir: str | None = option(
        "Folder for `rivals.csv`, `types.csv`, `rivals.json` and the figure. Default: print only.",
        None,
        short="-o",
    )
    overwrite: bool = option("Replace an earlier result in that folder.", False)

    def __post_init__(self) -> None:
        check_range("num_folds", self.num_folds, 2, 20, "every model is fitted for each")
        # Newton steps and mixtures take the square of it times the choices.
        check_range(
            "components", self.components, 1, 512, "fits take its square times the choices"
        )
        check_range("max_choices", self.max_choices, 20)
        check_seed(self.seed)


@explained
@dataclass(frozen=True)
class PowerConfig:
    """How likely is each verdict, for data of this size?"""

    pairs: int = option(
        "Number of pairs; other designs get as many choices as read the same number of responses.",
        10_000,
    )
    design: list[str] = option(
        "What is asked of annotators: `pairs`, `ties` (pairs with ties), `grades:5`, `best-of:4` "
        "or `ranking:4`, other numbers likewise. Several are compared at equal cost.",
        ["pairs"],
    )
    annotators: int = option(
        "Number of annotators, each with equally many pairs; 0 for data without ids.", 200
    )
    sd: float = option(
        "Standard deviation of mean strength times the margin between two responses.", 2.0
    )
    cv: float = option("True coefficient of variation of the strength.", 0.5)
    judges_per_pair: int = option(
        "Annotators who judge the same pair, so that errors of the margins show.", 1
    )
    pair_error: float = option(
        "Standard deviation of the errors of the margins, the same for all who judge a pair, over "
        "that of the margins.",
        0.0,
    )
    simulations: int = option("Simulated datasets.", 50)
    more: bool = option(
        "Also try twice the annotators, twice the choices of each, and both; with `--pair_error` "
        "also as many choices on pairs that four annotators judge each.",
        False,
    )
    seed: int = option("Seed of the simulations.", 0)
    jobs: int = option("Simulations at a time; the answer does not depend on it.", 1)
    scheduler: str | None = option(SCHEDULER, None)

    def __post_init__(self) -> None:
        check_range("jobs", self.jobs, 1)
        for name in self.design:
            check_kind("design", name)
        if self.annotators < 0 or self.annotators == 1:
            raise ConfigError(f"annotators: expected 0 or at least 2, got {self.annotators}")
        # A diagnosis of a million pairs takes minutes, and the verdict changes little beyond.
        reason = "each simulation is diagnosed in full, which takes minutes for as many"
        most = 250_000 if self.more else 1_000_000
        check_range("pairs", self.pairs, max(20, self.annotators), most, reason)
        check_positive("sd", self.sd)
        if not 0 <= self.cv <= 3:
            raise ConfigError(f"cv: expected 0 <= cv <= 3, got {self.cv}")
        self._check_judges()
        reason = "a probability is then known to 0.01"
        check_range("simulations", self.simulations, 2, 10_000, reason)
        check_seed(self.seed)

    def _check_judges(self) -> None:
        check_range("judges_per_pair", self.judges_per_pair, 1)
        if not 0 <= self.pair_error <= _LARGEST_ERROR:
            raise ConfigError(
                f"pair_error: expected 0 <= pair_error <= {_LARGEST_ERROR}, got {self.pair_error}"
            )
        other = next((name for name in self.design if name != "pairs"), None)
        for name, is_set in (
            ("judges_per_pair", self.judges_per_pair > 1), ("pair_error", self.pair_error > 0),
        ):  # fmt: skip
            if is_set and other is not None:
                raise ConfigError(f"{name}: expected the design pairs alone, got {other}")
        if self.judges_per_pair > 1 and not self.annotators:
            raise ConfigError(
                f"judges_per_pair: expected 1 without annotator ids, got {self.judges_per_pair}"
            )
        if self.annotators % self.judges_per_pair:
            raise ConfigError(
                f"judges_per_pair: expected a divisor of annotators ({self.annotators:,}), got "
                f"{self.judges_per_pair}"
            )


@explained
@dataclass(frozen=True)
class JudgesConfig:
    """Rate items by votes of judges who differ in strength, lean to one side, or do not look."""

    left: str = option("Column of what stood on the left.", "model_a")
    right: str = option("Column of what stood on the right.", "model_b")
    winner: str = option(
        "Column of who won: left, right, tie, the name of the column, or the item.", "winner"
    )
    judge: str | None = option(
        "Column of who voted. Default: all votes are of equal judges.", None
    )
    equal_judges: bool = option("Take all judges as equal and unbiased, to compare.", False)
    output_dir: str | None = option(
        "Folder for `ratings.csv`, `judges.csv`, `judges.json` and figures. Default: print only.",
        None,
        short="-o",
    )
    overwrite: bool = option("Replace an earlier result in that folder.", False)

    def __post_init__(self) -> None:
        named = [name for name in (self.left, self.right, self.winner, self.judge) if name]
        twice = next((name for name in named if named.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"left, right, winner, judge: column '{twice}' is named twice")
