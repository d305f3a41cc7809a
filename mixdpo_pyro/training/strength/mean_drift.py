"""A warning where the mean strength runs away from beta."""

from mixdpo_pyro.models.pyro_models import MeanAnchor

__all__ = ["MEAN_DRIFT", "why_mean_drifts"]

MEAN_DRIFT = 2.0
"""Factor between the mean strength and beta from which a mean that is learned is warned of."""

_WHY = {
    "free": "nothing anchors it",
    "prior": "its prior counts once among all the pairs",
}


def why_mean_drifts(mean: float, beta: float, mean_anchor: MeanAnchor) -> str | None:
    """Words for a mean that left beta by more than a factor of two, or None."""
    ratio = mean / beta
    if 1 / MEAN_DRIFT <= ratio <= MEAN_DRIFT:
        return None
    return (
        f"the mean strength is {mean:.3g}, {ratio:.2g} times beta. Under mean_anchor="
        f"'{mean_anchor}' {_WHY[mean_anchor]}, and it trades off against the scale of the "
        "margins, which the data cannot tell apart: only cv is informative. mean_anchor='fixed' "
        "keeps it at beta."
    )
