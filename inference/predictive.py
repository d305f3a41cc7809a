"""Posterior predictive probabilities, choices and strengths."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import make_interp_spline
from scipy.special import expit

from mixdpo_pyro.inference.choices import (
    Choices,
    margin_array,
    number_ids,
    read_ids,
    typical_size,
)
from mixdpo_pyro.inference.likelihood.margin_errors import expect_over_errors
from mixdpo_pyro.inference.likelihood.observed import with_lapses
from mixdpo_pyro.inference.likelihood.pairs import pair_log_prob
from mixdpo_pyro.inference.posterior import Posterior
from mixdpo_pyro.models import Family, mixed_logit_log_prob, strength_distribution

__all__ = [
    "choice_probabilities",
    "draw_choice_probabilities",
    "draw_margin_errors",
    "mean_choice_probability",
    "replicate_choices",
    "replicate_outcomes",
    "sample_new_strengths",
    "sample_strengths",
    "with_label_noise",
]

_CELLS = 2_000_000
"""Draws times pairs held at once where the draws are only reduced."""

_NUM_NODES, _NODES_TO_MEDIAN = 65, 4.0
"""Nodes of the size of a margin, and the median size in units in which they are equally spaced."""

_TINY_CV = 1e-6
"""Stands for a cv of zero, where the distribution of the strength has no density."""


def choice_probabilities(
    posterior: Posterior, margin: Any, *, annotator: Sequence[Any] | np.ndarray | None = None
) -> Float[np.ndarray, "samples pairs"]:
    r"""Probability that the first response of each pair is chosen, for every posterior draw.

    :math:`\sigma(\beta_g \Delta)` for an annotator whose strength the posterior holds;
    :math:`\mathbb{E}_{\beta \mid m, cv}\, \sigma(\beta \Delta)` for anybody else. Errors of the
    margins are integrated out where the posterior has any.

    Args:
        posterior: A posterior.
        margin: Margins of the first over the second response, shape `(pairs,)`.
        annotator: Annotator ids, or None for new annotators.
    """
    margin = margin_array(margin)
    value = np.empty((posterior.num_samples, len(margin)))
    column = (
        np.full(len(margin), -1) if annotator is None else posterior.columns(read_ids(annotator))
    )
    known = column >= 0
    if known.any():
        beta, error = posterior.draws["strength"][:, column[known]], posterior.margin_error
        kept = (
            expit(beta * margin[known])
            if error is None
            else expect_over_errors(lambda moved: expit(beta * moved), margin[known], error)
        )
        value[:, known] = with_label_noise(kept, posterior.flip_probability)
    if not known.all():
        value[:, ~known] = _marginal(posterior, margin[~known])
    return value


def mean_choice_probability(
    posterior: Posterior, margin: Any, *, annotator: Sequence[Any] | np.ndarray | None = None
) -> Float[np.ndarray, " pairs"]:
    """Posterior mean of `choice_probabilities`, without holding all draws at once."""
    margin = margin_array(margin)
    ids = None if annotator is None else read_ids(annotator)
    parts = [
        choice_probabilities(posterior, margin[k], annotator=None if ids is None else ids[k]).mean(
            0
        )
        for k in _slices(len(margin), posterior.num_samples)
    ]
    return np.concatenate(parts)


def draw_choice_probabilities(
    posterior: Posterior,
    margin: Float[np.ndarray, " pairs"],
    rng: np.random.Generator,
    *,
    annotator: np.ndarray | None = None,
    are_new: bool = False,
    error: Float[np.ndarray, "samples pairs"] | None = None,
) -> Float[np.ndarray, "samples pairs"]:
    """Probability of the first response, the choices of an annotator sharing a drawn strength.

    Args:
        posterior: A posterior.
        margin: Margins of the first over the second response.
        rng: Source of the strengths of new annotators.
        annotator: Annotator ids; without them each pair is another annotator's.
        are_new: Draw new strengths for annotators that the posterior knows as well.
        error: Errors of the margins, as :func:`draw_margin_errors` draws them; default, where the
            posterior has any, each pair has its own.
    """
    if annotator is None and error is None:
        return _marginal(posterior, margin)
    labels, index = number_ids(read_ids(range(len(margin)) if annotator is None else annotator))
    column = np.full(len(labels), -1) if are_new else posterior.columns(labels)
    known = column >= 0
    is_once = not known.any() and len(labels) == len(margin)  # everybody is new and chooses once
    if is_once and error is None:
        return _marginal(posterior, margin)
    shape = (posterior.num_samples, int((~known).sum()))
    mean, cv = (np.broadcast_to(x[:, None], shape) for x in (posterior.mean, posterior.cv))
    beta = np.empty((posterior.num_samples, len(labels)))
    if known.any():
        beta[:, known] = posterior.draws["strength"][:, column[known]]
    beta[:, ~known] = sample_strengths(posterior.family, mean, cv, rng)
    if error is None and posterior.margin_error is not None:
        shape = (posterior.num_samples, len(margin))
        error = posterior.margin_error[:, None] * rng.standard_normal(shape)
    moved = margin if error is None else margin + np.where(margin < 0, -1, 1) * error
    return with_label_noise(expit(beta[:, index] * moved), posterior.flip_probability)


def draw_margin_errors(
    posterior: Posterior, choices: Choices, rng: np.random.Generator
) -> Float[np.ndarray, "samples pairs"] | None:
    r"""Errors of the margins, towards the response that the margin favours, for every draw.

    .. math:: e_p \sim \mathrm{Normal}(0, \omega^2) \quad\text{or}\quad e_{ij} = e_i - e_j

    They are the same for all who judge a pair, and share those of the responses where the
    posterior has a `response_error`.

    Args:
        posterior: A posterior.
        choices: Pairs; where their responses are known, the first one is the chosen one. Without
            them and without ids of pairs, nobody shares an error.
        rng: Source of the errors.

    Returns:
        None where the posterior takes margins as exact.
    """
    size = posterior.margin_error
    if size is None:
        return None

    def standard_normal(number: np.ndarray) -> np.ndarray:
        found = rng.standard_normal((len(size), int(number.max()) + 1))
        return size[:, None] * found[:, number]

    if choices.responses is None or "response_error" not in posterior.parameters:
        return standard_normal(choices.choice if choices.pair is None else choices.pair)
    of_chosen, of_other = np.split(standard_normal(choices.responses.T.ravel()), 2, axis=1)
    return np.where(choices.margin < 0, -1, 1) * (of_chosen - of_other) / np.sqrt(2)


def replicate_choices(
    posterior: Posterior,
    margin: Any,
    *,
    annotator: Sequence[Any] | np.ndarray | None = None,
    error: Float[np.ndarray, "samples pairs"] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Replicated choices, True where the first response is chosen, shape `(samples, pairs)`.

    Annotators that the posterior does not know get a strength of their own in every draw, which
    their choices share; pairs without annotator ids are each another annotator's.

    Args:
        posterior: A posterior.
        margin: Margins of the first over the second response.
        annotator: Annotator ids, or None.
        error: Errors of the margins, as :func:`draw_margin_errors` draws them; default, where the
            posterior has any, each pair has its own.
        seed: Seed of strengths and choices.
    """
    rng = np.random.default_rng(seed)
    margin = margin_array(margin)
    ids = None if annotator is None else read_ids(annotator)
    probability = draw_choice_probabilities(posterior, margin, rng, annotator=ids, error=error)
    return rng.random(probability.shape) < probability


def replicate_outcomes(
    posterior: Posterior, choices: Choices, *, seed: int = 0, are_new: bool = False
) -> np.ndarray:
    """Replicated outcomes of choices that are not plain pairs, shape `(samples, choices)`.

    Of a judgement the outcome as the model codes it, from 0, the strongest preference against the
    first response; of a set the place of the chosen response, 0 being the one with the largest
    utility. Thresholds are those of each draw.

    Args:
        posterior: A posterior of such choices.
        choices: Choices with outcomes, see `read_choices`.
        seed: Seed of strengths and outcomes.
        are_new: Draw new strengths for annotators that the posterior knows as well.

    Raises:
        ValueError: If the choices are plain pairs, see :func:`replicate_choices`.
    """
    outcomes = with_lapses(choices, posterior.flip_probability).outcomes
    if outcomes is None:
        raise ValueError("Expected choices with outcomes, got pairs: use replicate_choices")
    rng = np.random.default_rng(seed)
    labels = choices.labels or [str(k) for k in range(choices.num_choices)]
    owner = (
        np.arange(choices.num_choices)
        if choices.annotator is None
        else choices.by_choice(choices.annotator)
    )
    is_known = bool(choices.labels) and not are_new
    column = posterior.columns(labels) if is_known else np.full(len(labels), -1)
    shape = (posterior.num_samples, len(labels))
    mean, cv = (np.broadcast_to(x[:, None], shape) for x in (posterior.mean, posterior.cv))
    beta = sample_strengths(posterior.family, mean, cv, rng)
    if (column >= 0).any():
        beta[:, column >= 0] = posterior.draws["strength"][:, column[column >= 0]]
    if not posterior.thresholds:
        cells = choices.num_choices * int(outcomes.sizes.max())
        parts = _slices(posterior.num_samples, cells)
        return np.concatenate(
            [outcomes.sample(choices.margin, beta[part][:, owner], rng) for part in parts]
        )
    return np.stack(
        [
            outcomes.at(posterior.thresholds, k).sample(choices.margin, beta[k, owner], rng)
            for k in range(posterior.num_samples)
        ]
    )


def sample_new_strengths(posterior: Posterior, seed: int = 0) -> Float[np.ndarray, " samples"]:
    """Strength of a new annotator, one draw for every posterior draw."""
    rng = np.random.default_rng(seed)
    return sample_strengths(posterior.family, posterior.mean, posterior.cv, rng)


def sample_strengths(
    family: Family,
    mean: Float[np.ndarray, " *batch"],
    cv: Float[np.ndarray, " *batch"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " *batch"]:
    """Draws from the strength's distribution; torch's global generator is left as it was."""
    parameters = torch.tensor(mean), torch.tensor(np.maximum(cv, _TINY_CV))
    distribution = strength_distribution(*parameters, family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        return distribution.sample().numpy()


def with_label_noise(probability: np.ndarray, flip_probability: float) -> np.ndarray:
    r"""Probability of a choice whose label may be flipped: :math:`\epsilon + (1-2\epsilon) P`."""
    return flip_probability + (1 - 2 * flip_probability) * probability


def _marginal(posterior: Posterior, margin: np.ndarray) -> Float[np.ndarray, "samples pairs"]:
    """Probabilities for new annotators, the strength integrated out, and errors of margins."""
    cv, error = np.maximum(posterior.cv, _TINY_CV), posterior.margin_error
    family, flip = posterior.family, posterior.flip_probability
    if error is None:
        return np.exp(pair_log_prob(margin, posterior.mean, cv, family, flip))
    point = (torch.from_numpy(x)[:, None] for x in (posterior.mean, cv))
    mean, cv_column = point

    def chosen(moved: np.ndarray) -> np.ndarray:
        log_prob = mixed_logit_log_prob(
            torch.from_numpy(moved), mean, cv_column, family, flip_probability=flip
        )
        return log_prob.exp().numpy()

    # The probability is smooth in the size of the margin, and one minus it of the other response.
    unit, size = typical_size(margin) / _NODES_TO_MEDIAN, np.abs(margin)
    place = np.linspace(0, np.arcsinh(size.max() / unit), _NUM_NODES)
    at_nodes = expect_over_errors(chosen, unit * np.sinh(place), error)
    value = make_interp_spline(place, at_nodes, axis=1)(np.arcsinh(size / unit))
    return np.where(margin < 0, 1 - value, value)


def _slices(length: int, cells_each: int) -> Iterator[slice]:
    step = max(1, _CELLS // cells_each)
    return (slice(k, k + step) for k in range(0, length, step))
