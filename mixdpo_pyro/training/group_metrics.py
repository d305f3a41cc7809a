"""Evaluation metrics of margins: over pairs, over groups, and of the worst group."""

from dataclasses import dataclass

import numpy as np

from mixdpo_pyro.inference.choices import agreement

__all__ = ["GroupMetrics", "decisive_rows", "evaluate_groups"]

_LEVELS = (0.05, 0.95)


# Numbers drawn at once in the bootstrap; bounds its memory.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class GroupMetrics:
    """Accuracies and mean margins with bootstrap intervals.

    Attributes:
        values: Name -> value: `micro/accuracy` (over pairs), `macro/accuracy` (mean over groups),
            `worst_group/accuracy`, the same with `margin`, and each with `_q05` and `_q95`.
        groups: Group -> `pairs`, `accuracy` and `margin`.
    """

    values: dict[str, float]
    groups: dict[str, dict[str, float]]


def evaluate_groups(
    margin: np.ndarray,
    group: np.ndarray | None = None,
    num_resamples: int = 500,
    seed: int = 0,
) -> GroupMetrics:
    r"""Accuracy :math:`\Pr(\Delta > 0)` (ties count one half) and mean margin, with 90% intervals.

    Intervals are percentiles of a stratified bootstrap: pairs are drawn anew within each group.
    The worst group is found anew in every resample, so its interval covers the choice of the
    group, and lies low where many small groups compete.

    Args:
        margin: Margins in nats, shape `(pairs,)`.
        group: A label a pair; without it all pairs are one group and only `micro` is given.
        num_resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Returns:
        The metrics; margins in nats.

    Raises:
        ValueError: If there is no pair, or not one label a pair.

    Example:
        >>> result = evaluate_groups(np.array([1.0, 2.0, -1.0, 3.0]), np.array([0, 0, 1, 1]))
        >>> result.values["micro/accuracy"], result.values["worst_group/accuracy"]
        (0.75, 0.5)
    """
    if len(margin) == 0:
        raise ValueError("Expected at least one margin, got none")
    labels = np.zeros(len(margin), dtype=int) if group is None else np.asarray(group)
    if len(labels) != len(margin):
        raise ValueError(f"Expected one group a margin, got {len(labels)} for {len(margin)}")
    names, index = np.unique(labels, return_inverse=True)
    sizes = np.bincount(index)
    order = np.argsort(index, kind="stable")
    parts = np.split(margin[order].astype(np.float64), sizes.cumsum()[:-1])
    rng = np.random.default_rng(seed)
    # Statistics first, then resamples, then groups.
    observed = np.stack([_statistics(part[None]) for part in parts], -1)
    resampled = np.stack([_resampled(part, num_resamples, rng) for part in parts], -1)
    values: dict[str, float] = {}
    for kind, summary in _SUMMARIES.items():
        if group is None and kind != "micro":
            continue
        value, draws = summary(observed, sizes)[:, 0], summary(resampled, sizes)
        low, high = np.quantile(draws, _LEVELS, axis=1)
        for k, name in enumerate(("accuracy", "margin")):
            values[f"{kind}/{name}"] = float(value[k])
            values[f"{kind}/{name}_q05"] = float(low[k])
            values[f"{kind}/{name}_q95"] = float(high[k])
    table = {
        str(name): {"pairs": int(size), "accuracy": float(accuracy), "margin": float(mean)}
        for name, size, (accuracy, mean) in zip(names, sizes, observed[:, 0].T, strict=True)
    }
    return GroupMetrics(values, table)


def decisive_rows(
    margin: np.ndarray, choice: np.ndarray | None = None, sign: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """One margin per choice, of the better over the other response, and the row it stands in.

    Args:
        margin: Margins in nats, shape `(rows,)`.
        choice: Number of each row's choice among several responses: its margin is that over the
            strongest other response, positive where the chosen one has the largest utility.
        sign: 1 where the first response was judged the better one, -1 the second; rows of 0, ties,
            are dropped.
    """
    if choice is not None:
        order = np.lexsort((margin, choice))
        rows = order[np.unique(choice[order], return_index=True)[1]]
        return margin[rows], rows
    if sign is None:
        return margin, np.arange(len(margin))
    rows = np.flatnonzero(sign)
    return sign[rows] * margin[rows], rows


def _statistics(margin: np.ndarray) -> np.ndarray:
    """Accuracy and mean of the last axis, stacked first."""
    return np.stack([agreement(margin).mean(-1), margin.mean(-1)])


def _resampled(margin: np.ndarray, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Statistics of resamples of one group, shape `(2, resamples)`."""
    rows = max(_CHUNK // len(margin), 1)
    parts = [
        _statistics(margin[rng.integers(len(margin), size=(min(rows, left), len(margin)))])
        for left in range(num_resamples, 0, -rows)
    ]
    return np.concatenate(parts, -1)


_SUMMARIES = {
    "micro": lambda values, sizes: values @ (sizes / sizes.sum()),
    "macro": lambda values, sizes: values.mean(-1),
    "worst_group": lambda values, sizes: values.min(-1),
}
