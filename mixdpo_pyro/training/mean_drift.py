"""A warning where the mean strength runs away from beta."""

__all__ = ["MEAN_DRIFT", "why_mean_drifts"]

MEAN_DRIFT = 2.0
"""Factor between the mean strength and beta from which a free mean is warned of."""


def why_mean_drifts(mean: float, beta: float) -> str | None:
    """Words for a free mean that left beta by more than a factor of two, or None."""
    ratio = mean / beta
    if 1 / MEAN_DRIFT <= ratio <= MEAN_DRIFT:
        return None
    return (
        f"the mean strength is {mean:.3g}, {ratio:.2g} times beta. Under mean_anchor='free' it "
        "trades off against the scale of the margins, which the data cannot tell apart: only cv "
        "is informative. Use mean_anchor='prior' or 'fixed' to anchor it."
    )
