"""How large errors of margins are at least, by the margins of a second policy."""

import numpy as np
from jaxtyping import Float, Int

__all__ = ["UnrelatedMarginsError", "implied_ratio"]

_NUM_GROUPS = 20
"""Groups of people that are left out in turn."""


class UnrelatedMarginsError(ValueError):
    """Two policies' margins do not agree, or do not predict the choices."""


def implied_ratio(
    first: Float[np.ndarray, " pairs"],
    second: Float[np.ndarray, " pairs"],
    annotator: Int[np.ndarray, " pairs"],
) -> tuple[float, float]:
    r"""Size of the first margins' errors over that of the margins, and its standard error.

    Let both margins be the truth, on scales of their own, plus errors that are independent of it,
    of each other and of the choice y. Three correlations then give the share of the first
    margins' variance that is truth, and with it the size of the errors (in the units of the
    true part, as :func:`estimate_pair_errors` has it):

    .. math:: R_1 = \frac{\rho_{12}\, \rho_{1y}}{\rho_{2y}}, \qquad
              \frac{\omega}{\mathrm{sd}} = \sqrt{\frac{1 - R_1}{R_1}}

    With margins of the chosen over the rejected response :math:`\rho_{ky}` is their mean over
    their root mean square. Errors that both policies share pass for truth, so that this is a lower
    bound. The standard error is that of a jackknife over twenty groups of people.

    Args:
        first: Margins whose errors are asked for.
        second: Those of the other policy, on any scale.
        annotator: Number of each pair's annotator.

    Raises:
        UnrelatedMarginsError: If the two do not agree, or one does not predict the choices.
    """
    whole = _ratio(first, second)
    group = annotator % min(_NUM_GROUPS, int(annotator.max()) + 1)
    parts = [_ratio(first[group != k], second[group != k]) for k in np.unique(group)]
    variance = np.square(np.array(parts) - np.mean(parts)).sum() * (len(parts) - 1) / len(parts)
    return whole, float(np.sqrt(variance))


def _ratio(first: np.ndarray, second: np.ndarray) -> float:
    size = [np.sqrt(np.mean(np.square(each))) for each in (first, second)]
    together, predicts = float(np.mean(first * second)), (first.mean(), second.mean())
    if together <= 0 or min(predicts) <= 0:
        raise UnrelatedMarginsError(
            "Expected margins of two policies that agree and predict the choices"
        )
    reliability = min(1.0, together * predicts[0] / (predicts[1] * size[0] ** 2))
    return float(np.sqrt(1 / reliability - 1))
