"""Can a run be trusted? A table of PASS, REVIEW and FAIL, each with its number and threshold.

The checks look at the training, the posterior and the data, not at what the verdict is.
What cannot be computed is not available, and never passes.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from mixdpo_pyro.inference.choices import agreement, read_choices
from mixdpo_pyro.inference.methods.log_joint import MAX_CV
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.inference.predictive import (
    choice_probabilities,
    draw_choice_probabilities,
    draw_margin_errors,
)
from mixdpo_pyro.reporting.run_record import FinishedRun
from mixdpo_pyro.reporting.training_tail import MIN_POINTS, TrainingTail
from mixdpo_pyro.training.strength.mean_drift import MEAN_DRIFT, why_mean_drifts

__all__ = [
    "CALIBRATION", "CALIBRATION_FAIL", "CALIBRATION_LEVEL", "DRIFT_FAIL", "DRIFT_REVIEW",
    "DROPPED_FAIL", "DROPPED_REVIEW", "MATERIAL_LOSS", "MATERIAL_PROBABILITY", "MAX_EDGE",
    "MAX_R_HAT", "MAX_SEED_DISAGREEMENT", "MIN_ANNOTATORS", "MIN_CALIBRATION_PAIRS",
    "MIN_CONTRACTION", "MIN_ESS", "MIN_STEPS", "SLOPE_LEVEL", "HealthCheck", "HealthReport",
    "Status", "check_run",
]  # fmt: skip

CALIBRATION = "predicted probabilities"
"""Name of the check of reliability."""


class Status(StrEnum):
    """The result of a check."""

    PASS = "PASS"
    REVIEW = "REVIEW"
    FAIL = "FAIL"
    NOT_AVAILABLE = "not available"
    DOES_NOT_APPLY = "does not apply"


MIN_STEPS = 40
"""The strength's rate of 0.05 moves its log cv by at most 0.05 a step with Adam, half of that on
average where the rate decays to zero: 40 steps for a factor of e, the least a learned cv needs to
get from where it starts to where it belongs."""

MATERIAL_LOSS = 0.01
"""Nats a pair: 1% in the geometric mean of the probabilities of the observed choices. A change
that is smaller is no reason to look again, however many steps show it."""

SLOPE_LEVEL = 0.01
"""Level of the two-sided test of the slope: one settled training in a hundred is to be reviewed.
A sound run has a dozen checks to pass, so that each may ask for a review only rarely."""

DRIFT_REVIEW, DRIFT_FAIL = 0.5, 2.0
"""In standard deviations. A 90% interval of a normal posterior that is off by 0.5 of them covers
the truth in 86%, by 2 of them in 36%."""

MATERIAL_PROBABILITY = 0.01
r"""A drift that moves no predicted probability by more is no reason to look again, however narrow
the guide. To second order cv moves a probability by :math:`\tfrac12 x^2 \sigma''(x)` times the
change of its square, which is at most 0.19 of it."""

_CURVATURE = 0.19

CALIBRATION_LEVEL = 0.01
"""Share of runs with right predictions whose calibration error is to be reviewed."""

CALIBRATION_FAIL = 0.1
"""Beyond the threshold, a mean error of ten points makes probabilities useless as numbers."""

MIN_CALIBRATION_PAIRS = 50
"""Five a bin."""

MIN_ANNOTATORS = 20
"""Annotators who chose repeatedly. The standard deviation of G known strengths has a relative
standard error of 1 / sqrt(2 (G - 1)), which is 16% for 20."""

DROPPED_REVIEW, DROPPED_FAIL = 0.05, 0.5
"""Shares. Leaving a share out can move any other share by as much: five points to look at. Beyond
one half, the run is about the smaller part of the data."""

MIN_CONTRACTION = 0.5
"""A variance that the data cut by less than half is largely the prior's."""

MAX_R_HAT, MIN_ESS = 1.01, 400
"""Vehtari et al., Bayesian Analysis 16:2, 2021."""

MAX_EDGE = 0.01
"""Share of draws at the largest cv that is looked at; more, and the 99% quantile is cut off."""

MAX_SEED_DISAGREEMENT = 0.5
"""Distance in standard deviations of two SVI runs; as for the drift."""

_REPLICATIONS = 400

_BINS = 10

_MAX_CHOICES = 2_000_000  # replicated at once


@dataclass(frozen=True)
class HealthCheck:
    """A row of the table.

    Attributes:
        name: What is checked.
        status: The answer.
        value: What was measured.
        threshold: What passes.
        sentence: What it means, in plain English.
    """

    name: str
    status: Status
    value: str
    threshold: str
    sentence: str


@dataclass(frozen=True)
class HealthReport:
    """All checks of a run, those of convergence first.

    Attributes:
        checks: The rows of the table.
    """

    checks: list[HealthCheck]

    @property
    def status(self) -> Status:
        """FAIL before REVIEW before PASS; a check that is not available asks for a review."""
        statuses = {check.status for check in self.checks}
        if Status.FAIL in statuses:
            return Status.FAIL
        return Status.REVIEW if statuses & {Status.REVIEW, Status.NOT_AVAILABLE} else Status.PASS

    @property
    def sentence(self) -> str:
        """The status in one sentence."""
        if self.status == Status.FAIL:
            return f"The verdict is not to be trusted. Failed: {self.names(Status.FAIL)}."
        if self.status == Status.PASS:
            return "Every check that applies has passed."
        unknown = self.names(Status.NOT_AVAILABLE)
        parts = [self.names(Status.REVIEW), f"not available: {unknown}" if unknown else ""]
        return f"Before you rely on the verdict, look at {'; '.join(filter(None, parts))}."

    def names(self, status: Status) -> str:
        """Names of the checks with this status, as a phrase."""
        return ", ".join(check.name for check in self.checks if check.status == status)

    def check(self, name: str) -> HealthCheck:
        """The check of this name."""
        return next(check for check in self.checks if check.name == name)


def check_run(run: FinishedRun) -> HealthReport:
    """Check a run: its training, its posterior and its data."""
    tail = run.tail
    return HealthReport(
        [
            _parts_are_whole(run),
            _numbers_are_finite(run, tail),
            _enough_steps(run),
            _loss_has_settled(tail),
            _strength_has_settled(run, tail),
            _mean_is_anchored(run),
            _posterior_is_computed(run),
            _data_speak(run),
            _training_agrees(run),
            _accuracy(run),
            _calibration(run),
            _annotators(run),
            _dropped_pairs(run),
        ]
    )


def _parts_are_whole(run: FinishedRun) -> HealthCheck:
    name, threshold, failures = "parts of the run", "none failed", run.record.failures
    if not failures:
        sentence = "The policy, its margins and their diagnosis."
        return HealthCheck(name, Status.PASS, "0 failed", threshold, sentence)
    sentence = f"The policy is whole. {' '.join(failures)}"
    return HealthCheck(name, Status.FAIL, f"{len(failures)} failed", threshold, sentence)


# Training


def _numbers_are_finite(run: FinishedRun, tail: TrainingTail) -> HealthCheck:
    """Margins, draws and logged numbers: a single one that is not finite is a FAIL.

    A gradient that is not finite is a REVIEW: mixed precision skips such a step and goes on.
    """
    columns = [c for c in tail.table if c == "loss" or str(c).startswith("strength/")]
    counts = {
        "held-out margins": _num_bad(run.margins["margin"]),
        "posterior draws": _num_bad(run.posterior.mean) + _num_bad(run.posterior.cv),
        "logged losses and strengths": sum(_num_bad(tail.table[c]) for c in columns),
    }
    gradients = _num_bad(tail.table["grad_norm"]) if "grad_norm" in tail.table else 0
    name, threshold = "finite numbers", "every number finite"
    if bad := {k: n for k, n in counts.items() if n}:
        words = ", ".join(f"{n:,} {k}" for k, n in bad.items())
        return HealthCheck(
            name, Status.FAIL, words, threshold, "No result that uses them can be trusted."
        )
    if gradients:
        sentence = "Such a step is skipped in mixed precision; elsewhere it ruins the policy."
        return HealthCheck(
            name, Status.REVIEW, f"{gradients:,} gradient norms", threshold, sentence
        )
    sentence = "Margins, posterior draws and what was logged in training."
    return HealthCheck(name, Status.PASS, "0 not finite", threshold, sentence)


def _enough_steps(run: FinishedRun) -> HealthCheck:
    name, threshold = "steps of training", f"at least {MIN_STEPS}"
    steps = [entry["step"] for entry in run.history if isinstance(entry.get("step"), int)]
    if not steps:
        return _unavailable(name, threshold, "No step was logged.")
    sentence = f"The strength needs about {MIN_STEPS} steps to leave where it starts."
    status = Status.PASS if max(steps) >= MIN_STEPS else Status.FAIL
    return HealthCheck(name, status, f"{max(steps):,}", threshold, sentence)


def _loss_has_settled(tail: TrainingTail) -> HealthCheck:
    """The slope of the loss over the last third, in nats per pair, against its noise."""
    name = "drift of the loss"
    threshold = f"no change beyond its noise and {MATERIAL_LOSS:g} nats per pair"
    found = tail.change("loss")
    if found is None:
        return _unavailable(name, threshold, _too_few(tail))
    change, error, p_value = found
    half = error * float(stats.t.ppf(1 - SLOPE_LEVEL / 2, len(tail.points) - 2))
    value = f"{change:+.3f} [{change - half:+.3f}, {change + half:+.3f}] nats"
    if p_value >= SLOPE_LEVEL or abs(change) <= MATERIAL_LOSS:
        hidden = max(half - change, 0.0)
        sentence = (
            "No change beyond the noise over the last third of the training "
            f"({1 - SLOPE_LEVEL:.0%} interval); a fall of {hidden:.2g} nats could hide in it."
        )
        return HealthCheck(name, Status.PASS, value, threshold, sentence)
    moves = "falls" if change < 0 else "rises"
    advice = "train longer" if change < 0 else "lower the learning rate"
    sentence = f"The loss still {moves} over the last third of the training: {advice}."
    return HealthCheck(name, Status.REVIEW, value, threshold, sentence)


def _strength_has_settled(run: FinishedRun, tail: TrainingTail) -> HealthCheck:
    """The guide against the exact posterior where that is known; else the drift of cv.

    The drift is that over the last third in standard deviations of the guide. It fails only where
    it is also beyond that many deviations of the held-out posterior, since the verdict rests on
    that one. Under `free` the guide is a point, and the held-out posterior is the only measure.
    """
    name, threshold = "drift of cv", f"drift up to {DRIFT_REVIEW:g} sd or {MATERIAL_PROBABILITY:g}"
    if run.record.not_learned:
        return _inapplicable(name, threshold, run.record.not_learned)
    if "exact_cv_mean" in run.training.diagnostics:
        return _guide_is_exact(run.training)
    found = tail.change("strength/cv")
    if found is None:
        return _unavailable(name, threshold, _too_few(tail))
    guide, held_out = (_spread(d.cv) for d in (run.training, run.posterior))
    scale = held_out if guide == 0 else guide
    if not (np.isfinite([scale, held_out]).all() and scale > 0):
        return _unavailable(name, threshold, "The draws of cv have no finite spread.")
    drift = abs(found[0]) / scale
    last = run.record.learned.cv
    moved = _CURVATURE * abs(last**2 - (last - found[0]) ** 2)
    is_small = drift <= DRIFT_REVIEW or moved <= MATERIAL_PROBABILITY
    status = Status.PASS if is_small else Status.REVIEW
    if abs(found[0]) > DRIFT_FAIL * max(scale, held_out):
        status = Status.FAIL
    measure = f"the guide has sd {guide:.2g}, the held-out posterior {held_out:.2g}"
    if guide == 0:
        measure = f"the guide is a point, the held-out posterior has sd {held_out:.2g}"
    sentence = (
        f"cv moved by {found[0]:+.2g} over the last third of the training, predicted "
        f"probabilities by at most {moved:.1g}; {measure}. More than {DRIFT_FAIL:g} of the larger "
        "sd fails."
    )
    return HealthCheck(name, status, f"{drift:.2f} sd", threshold, sentence)


def _guide_is_exact(training: Posterior) -> HealthCheck:
    """What training learned of cv against the exact posterior of the same margins.

    New pairs move cv as long as they come, by as much as they say: its drift is no measure here.
    """
    exact, error = (training.diagnostics[f"exact_cv_{name}"] for name in ("mean", "sd"))
    learned, name = float(training.cv.mean()), "learned cv"
    distance, moved = abs(learned - exact) / error, _CURVATURE * abs(learned**2 - exact**2)
    threshold = f"exact up to {DRIFT_REVIEW:g} sd or {MATERIAL_PROBABILITY:g}"
    if not np.isfinite(distance):
        return _unavailable(name, threshold, "The draws of cv are not finite.")
    is_close = distance <= DRIFT_REVIEW or moved <= MATERIAL_PROBABILITY
    status = Status.PASS if is_close else Status.REVIEW
    if distance > DRIFT_FAIL:
        status = Status.FAIL
    sentence = (
        f"Training learned a cv of {learned:.2f}, and the exact posterior of the margins that it "
        f"learned from has {exact:.2f} with sd {error:.2g}; the difference moves predicted "
        f"probabilities by at most {moved:.1g}. More than {DRIFT_FAIL:g} sd fails."
    )
    return HealthCheck(name, status, f"{distance:.2f} sd", threshold, sentence)


def _mean_is_anchored(run: FinishedRun) -> HealthCheck:
    name = "drift of the mean"
    threshold = f"within a factor of {MEAN_DRIFT:g}"
    mean, beta, anchor = run.record.learned.mean, run.record.beta, run.record.mean_anchor
    if run.record.family == "fixed" or anchor == "fixed":
        return _inapplicable(name, threshold, "The mean was fixed at beta.")
    words = why_mean_drifts(mean, beta, anchor)
    value = f"{mean / beta:.2g} times beta"
    if words is None:
        return HealthCheck(
            name, Status.PASS, value, threshold, "The mean was learned and did not run away."
        )
    return HealthCheck(name, Status.REVIEW, value, threshold, f"{words[0].upper()}{words[1:]}")


# Posterior


def _posterior_is_computed(run: FinishedRun) -> HealthCheck:
    """Diagnostics of the method that drew the held-out posterior."""
    name = "computation of the posterior"
    method = run.posterior.method
    check = {"laplace": _lattice, "nuts": _chains, "svi": _two_guides}.get(method)
    if check is None:
        return _unavailable(name, "by method", f"There are no diagnostics of method '{method}'.")
    try:
        status, value, threshold, sentence = check(run.posterior)
    except KeyError as error:
        return _unavailable(name, "by method", f"posterior.nc lacks {error} of {method}.")
    return HealthCheck(name, status, value, threshold, sentence)


def _lattice(posterior: Posterior) -> tuple[Status, str, str, str]:
    """Independent draws from a lattice that carries the exact log joint, up to cv = 10.

    What can go wrong is that the posterior reaches beyond it.
    """
    at_edge = float(np.mean(posterior.cv > 0.95 * MAX_CV))
    is_good = at_edge <= MAX_EDGE
    if posterior.margin_error is None:  # else draws come from the lattices of many sizes of errors
        is_good &= bool(np.isfinite(posterior.sample_stats["lp"]).all())
    threshold = f"at most {MAX_EDGE:.0%} at the edge"
    sentence = (
        f"{posterior.num_samples:,} independent draws by quadrature over mean and cv, which "
        f"looks at cv up to {MAX_CV:g}."
    )
    return _pass_or_fail(is_good), f"{at_edge:.1%} of draws", threshold, sentence


def _chains(posterior: Posterior) -> tuple[Status, str, str, str]:
    found = posterior.diagnostics
    latent = ("cv",) if posterior.mean_anchor == "fixed" else ("mean", "cv")
    r_hat = max(found[f"r_hat_{name}"] for name in latent)
    ess = min(found[f"ess_{name}"] for name in latent)
    diverging = int(np.sum(posterior.sample_stats["diverging"]))
    is_good = r_hat <= MAX_R_HAT and ess >= MIN_ESS and diverging == 0
    value = f"R-hat {r_hat:.3f}, ess {ess:.0f}, {diverging} divergences"
    threshold = f"at most {MAX_R_HAT}, at least {MIN_ESS}, none"
    return _pass_or_fail(is_good), value, threshold, "NUTS, the worse of mean and cv."


def _pass_or_fail(is_good: bool) -> Status:
    return Status.PASS if is_good else Status.FAIL


def _two_guides(posterior: Posterior) -> tuple[Status, str, str, str]:
    distance = float(posterior.diagnostics["seed_disagreement_in_sd"])
    is_converged = bool(posterior.diagnostics["converged"])
    status = Status.REVIEW if is_converged else Status.FAIL
    if is_converged and distance <= MAX_SEED_DISAGREEMENT:
        status = Status.PASS
    sentence = (
        f"Two runs of SVI from different starts {'have' if is_converged else 'have not'} "
        "converged; the distance of their means."
    )
    return status, f"{distance:.2f} sd", f"at most {MAX_SEED_DISAGREEMENT:g} sd", sentence


def _data_speak(run: FinishedRun) -> HealthCheck:
    name, threshold = (
        "information about cv",
        f"variance at least {MIN_CONTRACTION:.0%} below the prior's",
    )
    value = run.posterior.contraction()["cv"]
    if not np.isfinite(value):
        return _unavailable(name, threshold, "The posterior's draws are not finite.")
    sentence = "Share of the prior's variance of cv that the held-out pairs took away."
    if value < MIN_CONTRACTION:
        sentence += " The interval is largely the prior's."
    status = Status.PASS if value >= MIN_CONTRACTION else Status.REVIEW
    return HealthCheck(name, status, f"{max(value, 0):.0%}", threshold, sentence)


def _training_agrees(run: FinishedRun) -> HealthCheck:
    name, threshold = "training against held-out pairs", "90% intervals of cv overlap"
    if run.record.not_learned:
        return _inapplicable(name, threshold, run.record.not_learned)
    low, high = run.training.interval("cv")
    other_low, other_high = run.posterior.interval("cv")
    if not np.isfinite([low, high, other_low, other_high]).all():
        return _unavailable(name, threshold, "Draws of cv are not finite.")
    learned = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
    value = f"{learned} against {other_low:.2f} to {other_high:.2f}"
    sentence = run.disagreement or "What training learned lies where the held-out pairs put cv."
    return HealthCheck(
        name, Status.REVIEW if run.disagreement else Status.PASS, value, threshold, sentence
    )


# Data


def _accuracy(run: FinishedRun) -> HealthCheck:
    """Share of choices that agree with a Jeffreys interval, choices taken as independent."""
    kind = "pairs" if run.pair_margins is not None else "choices"
    name, chance = "held-out accuracy", run.chance
    threshold = f"90% interval above {chance:.2g}, {kind} independent"
    number = len(run.agrees)
    if number == 0:
        return _unavailable(name, threshold, "No held-out margin is finite.")
    right = run.accuracy * number
    low, high = stats.beta.ppf([0.05, 0.95], right + 0.5, number - right + 0.5)
    value = f"{run.accuracy:.3f} [{low:.3f}, {high:.3f}]"
    status, sentence = _judge_accuracy(run.agrees, chance, low, high)
    return HealthCheck(name, status, value, threshold, sentence)


def _judge_accuracy(
    agrees: np.ndarray, chance: float, low: float, high: float
) -> tuple[Status, str]:
    if agrees.min() >= 0.5:
        return Status.REVIEW, "Every choice agrees: only the prior gives the mean an upper bound."
    if high < chance:
        return Status.FAIL, "The policy prefers what annotators reject; are the columns swapped?"
    if low > chance:
        return Status.PASS, "The policy's margins say which response annotators choose."
    return Status.REVIEW, "The policy's margins may be noise, and noise has no strength to learn."


def _calibration(run: FinishedRun) -> HealthCheck:
    r"""Expected calibration error of the probability that a choice agrees with its margin's sign.

    .. math:: \sum_b \frac{n_b}{n} \, | \text{observed}_b - \text{predicted}_b |

    over ten bins of the margin's size with equal numbers of pairs. It is positive even where the
    predictions are right, so it is compared with choices replicated from the distribution, the
    choices of an annotator sharing their strength.
    """
    name = CALIBRATION
    unknown = f"below the {1 - CALIBRATION_LEVEL:.0%} quantile of right predictions"
    margin = run.pair_margins
    if margin is None:
        sentence = "These choices are no plain pairs; mixdpo check looks at their outcomes."
        return _inapplicable(name, unknown, sentence)
    mean, cv = (float(np.median(draws)) for draws in (run.posterior.mean, run.posterior.cv))
    if len(margin) < MIN_CALIBRATION_PAIRS or not np.isfinite([mean, cv]).all():
        sentence = f"It takes {MIN_CALIBRATION_PAIRS} held-out pairs and a finite posterior."
        return _unavailable(name, unknown, sentence)
    observed, replicated = _calibration_errors(run, margin, run.posterior.at(mean, cv))
    low, high, limit = np.quantile(replicated, [0.05, 0.95, 1 - CALIBRATION_LEVEL])
    status = Status.PASS if observed <= limit else Status.REVIEW
    if observed > limit + CALIBRATION_FAIL:
        status = Status.FAIL
    sentence = (
        f"Mean distance of observed and predicted frequencies in {_BINS} bins; right predictions "
        f"give {low:.3f} to {high:.3f} (90%). It was fitted to these pairs, so this tests "
        "its shape."
    )
    return HealthCheck(name, status, f"{observed:.3f}", f"at most {limit:.3f}", sentence)


def _calibration_errors(
    run: FinishedRun, margin: np.ndarray, point: Posterior
) -> tuple[float, Float[np.ndarray, " replications"]]:
    """The observed error, and that of choices drawn from the distribution."""
    size = np.abs(margin)
    order = np.argsort(size, kind="stable")
    predicted = choice_probabilities(point, size[order])[0]
    edges = np.linspace(0, len(size), _BINS + 1).astype(int)[:-1]
    expected = np.add.reduceat(predicted, edges)
    annotator = _ids(run, run.record.data.annotator_column)[order]
    judged = None
    if point.margin_error is not None:
        judged = read_choices(size[order], pair=_ids(run, "pair")[order])
    rng = np.random.default_rng((run.record.seed, 5))

    def errors(agrees: np.ndarray) -> np.ndarray:
        counts = np.add.reduceat(agrees, edges, axis=1, dtype=float)
        return np.abs(counts - expected).sum(1) / len(size)

    def replicate(number: int) -> np.ndarray:
        repeated = point.at(point.mean[0], point.cv[0], number)
        error = None if judged is None else draw_margin_errors(repeated, judged, rng)
        chance = draw_choice_probabilities(
            repeated, size[order], rng, annotator=annotator, error=error
        )
        return errors(rng.random(chance.shape) < chance)

    at_once = int(np.clip(_MAX_CHOICES // len(size), 1, _REPLICATIONS))
    numbers = [min(at_once, _REPLICATIONS - k) for k in range(0, _REPLICATIONS, at_once)]
    observed = errors(agreement(margin)[order][None])
    return float(observed[0]), np.concatenate([replicate(n) for n in numbers])


def _ids(run: FinishedRun, column: str | None) -> np.ndarray:
    """The annotator, or pair, of each finite margin; where it is not known, one for each."""
    is_finite = np.isfinite(run.margins["margin"].to_numpy(np.float64))
    if column is None or column not in run.margins:
        return np.arange(int(is_finite.sum()))
    return run.margins[column][is_finite].astype(str).to_numpy()


def _annotators(run: FinishedRun) -> HealthCheck:
    name = "repeated choices"
    threshold = f"at least {MIN_ANNOTATORS} annotators with two"
    column = run.record.data.annotator_column
    if column is None:
        sentence = "No annotator ids: the verdict cannot be better than inconclusive."
        return _inapplicable(name, threshold, sentence)
    if column not in run.margins:
        return _unavailable(name, threshold, f"margins.parquet has no column '{column}'.")
    person = run.margins[column].astype(str).to_numpy()
    counts = np.unique(
        person if run.held_out_choices is None else run.held_out_choices.by_choice(person),
        return_counts=True,
    )[1]
    repeated = int((counts >= 2).sum())
    status = Status.PASS if repeated >= MIN_ANNOTATORS else Status.REVIEW
    median = float(np.median(counts))
    sentence = (
        f"Of {len(counts):,} annotators with a median of {median:g} held-out pairs; only those "
        "with two or more tell differences between annotators from a bent link."
    )
    return HealthCheck(name, status, f"{repeated:,} annotators", threshold, sentence)


def _dropped_pairs(run: FinishedRun) -> HealthCheck:
    name, threshold = "dropped pairs", f"at most {DROPPED_REVIEW:.0%}"
    data = run.record.data
    dropped = sum(data.dropped.values())
    share = dropped / max(dropped + data.train + data.test, 1)
    status = Status.PASS if share <= DROPPED_REVIEW else Status.REVIEW
    if share > DROPPED_FAIL:
        status = Status.FAIL
    sentence = "The run says nothing about them; the reasons are listed under the run."
    if dropped == 0:
        sentence = "Every pair was used."
    return HealthCheck(name, status, f"{share:.1%} ({dropped:,})", threshold, sentence)


# Helpers


def _unavailable(name: str, threshold: str, sentence: str) -> HealthCheck:
    return HealthCheck(name, Status.NOT_AVAILABLE, "", threshold, sentence)


def _inapplicable(name: str, threshold: str, sentence: str) -> HealthCheck:
    return HealthCheck(name, Status.DOES_NOT_APPLY, "", threshold, sentence)


def _too_few(tail: TrainingTail) -> str:
    return (
        f"{len(tail.points)} points were logged over the last third of the training, and it takes "
        f"{MIN_POINTS} finite ones; lower logging_steps."
    )


def _spread(draws: Any) -> float:
    """Standard deviation; not a number where a draw is not finite, zero where all are equal."""
    array = np.asarray(draws, dtype=float)
    if not np.isfinite(array).all():
        return float("nan")
    return 0.0 if np.ptp(array) == 0 else float(array.std())


def _num_bad(values: Any) -> int:
    return int((~np.isfinite(np.asarray(values, dtype=float))).sum())
