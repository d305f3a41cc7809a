"""Is the strength of preference heterogeneous? A verdict of three values, with its evidence."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import erfc

from mixdpo_pyro.inference.fitting import Fit

__all__ = ["ROPE", "Verdict", "assess_heterogeneity", "boundary_p_value"]

ROPE = 0.25
"""Upper end of the region of practical equivalence of cv; below it strengths count as equal."""

_LEVEL = 0.05


@dataclass(frozen=True)
class Verdict:
    """What the data say about differences in strength.

    Attributes:
        value: The verdict.
        cv_interval: 5% and 95% posterior quantiles of cv; where a diagnosis compared
            distributions, over those that predict about as well as the best one, and with errors
            of the margins allowed for.
        likelihood_ratio: Twice the gain in log-likelihood (with the mean's prior) over cv = 0.
        p_value: Its p-value under cv = 0.
        reason: One sentence in plain English.
        kind: In what people differ, where they do: `"strength"`, `"taste"`, `"care"`, or
            `"undetermined"`; None where the verdict is another, or the kind was not looked at.
    """

    value: Literal["heterogeneous", "homogeneous", "inconclusive"]
    cv_interval: tuple[float, float]
    likelihood_ratio: float
    p_value: float
    reason: str
    kind: Literal["strength", "taste", "care", "undetermined"] | None = None


def assess_heterogeneity(result: Fit, margins_are_exact: bool = False) -> Verdict:
    r"""Judge whether strengths differ, by a test of cv = 0 and the posterior of cv.

    .. math:: p = \tfrac12 \Pr(\chi^2_0 \ge LR) + \tfrac12 \Pr(\chi^2_1 \ge LR)

    since cv = 0 lies on the boundary (Self and Liang, JASA 82, 1987). Homogeneous needs a 95%
    upper bound of cv below 0.25. Heterogeneous needs p below 5% and annotators who chose
    repeatedly: without them the curvature of the link, noise in the margins and differences
    between annotators cannot be told apart.

    Args:
        result: A fit.
        margins_are_exact: The margins carry no error and the link is the logistic one, as in a
            simulation; then annotators who chose once suffice.
    """
    low, high = result.posterior.interval("cv")
    ratio = max(0.0, 2 * (result.maximum.penalised - result.null.penalised))
    p_value = boundary_p_value(ratio)
    is_rejected = p_value < _LEVEL
    evidence = f"cv is between {low:.2f} and {high:.2f} (90%), p = {p_value:.2g} against cv = 0"
    value: Literal["heterogeneous", "homogeneous", "inconclusive"] = "inconclusive"
    if high < ROPE:
        value = "homogeneous"
        reason = f"Strengths differ little, if at all: {evidence}."
    elif not is_rejected:
        reason = f"The data fit equal strengths and different ones: {evidence}."
    elif result.choices.has_panels or margins_are_exact:
        value = "heterogeneous"
        reason = f"Strengths differ: {evidence}."
    else:
        reason = (
            f"If the margins were exact, strengths would differ ({evidence}), but without "
            "repeated choices per annotator this cannot be told from errors in the margins or "
            "another link."
        )
    return Verdict(value, (low, high), ratio, p_value, reason)


def boundary_p_value(ratio: float) -> float:
    r"""P-value of a likelihood ratio where the null is on the boundary.

    .. math:: \tfrac12 \Pr(\chi^2_0 \ge LR) + \tfrac12 \Pr(\chi^2_1 \ge LR)
    """
    return 1.0 if ratio <= 0 else float(0.5 * erfc(np.sqrt(ratio / 2)))
