"""Posterior predictive: what the fitted law says about strengths and choices, old and new."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import expit

from mixdpo_pyro.inference.choices import margin_array, number_ids, read_ids
from mixdpo_pyro.inference.fitting import Fit
from mixdpo_pyro.inference.likelihood.pairs import pair_log_prob
from mixdpo_pyro.models import Family, strength_distribution

__all__ = [
    "choice_probabilities",
    "mean_choice_probability",
    "replicate_choices",
    "sample_new_strengths",
    "sample_strengths",
]

_CELLS = 2_000_000
"""Draws times pairs held at once where the draws are only reduced."""


def choice_probabilities(
    result: Fit, margins: Any, annotator: Sequence[Any] | np.ndarray | None = None
) -> Float[np.ndarray, "samples pairs"]:
    r"""Probability that the first response of each pair is chosen, for every posterior draw.

    :math:`\sigma(\beta_g \Delta)` for an annotator of the fit, whose strength has its own draws;
    :math:`\mathbb{E}_{\beta \mid m, cv}\, \sigma(\beta \Delta)` for anybody else.

    Args:
        result: A fit.
        margins: Margins of the first over the second response, shape `(pairs,)`.
        annotator: Annotator ids, or None for people the fit has not seen.
    """
    margin = margin_array(margins)
    mean, cv = result.posterior["mean"], result.posterior["cv"]
    value = np.empty((len(mean), len(margin)))
    column = _columns(result, annotator, len(margin))
    known = column >= 0
    if known.any():
        beta = result.posterior["strength"][:, column[known]]
        value[:, known] = _flipped(expit(beta * margin[known]), result.flip_probability)
    if not known.all():
        log_prob = pair_log_prob(margin[~known], mean, cv, result.family, result.flip_probability)
        value[:, ~known] = np.exp(log_prob)
    return value


def mean_choice_probability(
    result: Fit, margins: Any, annotator: Sequence[Any] | np.ndarray | None = None
) -> Float[np.ndarray, " pairs"]:
    """Posterior mean of `choice_probabilities`, without holding all draws at once."""
    margin = margin_array(margins)
    ids = None if annotator is None else read_ids(annotator)
    parts = [
        choice_probabilities(result, margin[k], None if ids is None else ids[k]).mean(0)
        for k in _slices(len(margin), len(result.posterior["cv"]))
    ]
    return np.concatenate(parts)


def replicate_choices(
    result: Fit,
    margins: Any,
    annotator: Sequence[Any] | np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Replicated choices, True where the first response is chosen, shape `(samples, pairs)`.

    People the fit has not seen get a strength of their own in every draw, which their choices
    share; pairs without annotator ids are each another person's.
    """
    rng = np.random.default_rng(seed)
    margin = margin_array(margins)
    if annotator is None:
        probability = choice_probabilities(result, margin)
    else:
        beta = _strength_of_each_pair(result, read_ids(annotator), rng)
        probability = _flipped(expit(beta * margin), result.flip_probability)
    return rng.random(probability.shape) < probability


def sample_new_strengths(result: Fit, seed: int = 0) -> Float[np.ndarray, " samples"]:
    """Strength of a person the fit has not seen, one draw for every posterior draw."""
    rng = np.random.default_rng(seed)
    return sample_strengths(result.family, result.posterior["mean"], result.posterior["cv"], rng)


def sample_strengths(
    family: Family,
    mean: Float[np.ndarray, " *batch"],
    cv: Float[np.ndarray, " *batch"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " *batch"]:
    """Draws from the law; torch's global generator is left as it was."""
    law = strength_distribution(torch.as_tensor(mean), torch.as_tensor(cv), family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        return law.sample().numpy()


def _columns(
    result: Fit, annotator: Sequence[Any] | np.ndarray | None, num_pairs: int
) -> np.ndarray:
    """Column of each pair's annotator in the strengths of the fit; -1 for new people."""
    if annotator is None or not result.annotators:
        return np.full(num_pairs, -1)
    column = {label: k for k, label in enumerate(result.annotators)}
    return np.array([column.get(label, -1) for label in read_ids(annotator)])


def _strength_of_each_pair(result: Fit, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    people, index = number_ids(ids)
    column = _columns(result, people, len(people))
    shape = (len(result.posterior["cv"]), len(people))
    mean, cv = (np.broadcast_to(result.posterior[k][:, None], shape) for k in ("mean", "cv"))
    beta = np.empty(shape)
    known = column >= 0
    if known.any():
        beta[:, known] = result.posterior["strength"][:, column[known]]
    beta[:, ~known] = sample_strengths(result.family, mean[:, ~known], cv[:, ~known], rng)
    return beta[:, index]


def _flipped(probability: np.ndarray, flip_probability: float) -> np.ndarray:
    return flip_probability + (1 - 2 * flip_probability) * probability


def _slices(length: int, cells_each: int) -> Iterator[slice]:
    step = max(1, _CELLS // cells_each)
    return (slice(k, k + step) for k in range(0, length, step))
