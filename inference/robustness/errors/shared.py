"""What choices of different people on the same pair, or response, say about errors of margins."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mixdpo_pyro.inference.choices import Choices
from mixdpo_pyro.inference.likelihood.margin_errors import ERRORS, log_error_mass
from mixdpo_pyro.inference.likelihood.panels import log_likelihood_at
from mixdpo_pyro.inference.methods.log_joint import Maximum
from mixdpo_pyro.inference.robustness.errors.responses import (
    Links,
    chosen_is_first,
    link_responses,
)

__all__ = [
    "Evidence",
    "find_evidence",
    "given_others",
    "sandwich_variance",
    "shared_rows",
]

_MAX_SHARED = 20_000
"""Choices on shared pairs that are looked at; of more, those of random pairs."""

_MAX_LINKS = 60_000
"""Pairs of choices that share a response; of more, those of random blocks."""

_FEWEST_BLOCKS = 20
"""Connected blocks of responses below which nothing says how sure an estimate is."""

_PART = 2_000
"""Choices that are held at once."""

_STRENGTHS = torch.linspace(-4, 4, 61, dtype=torch.float64)
"""Nodes of a log strength, in standard deviations of its distribution."""


@dataclass(frozen=True)
class Evidence:
    """Terms of a log pseudo-likelihood of the errors' size.

    Attributes:
        source: What people have in common, `"pairs"` or `"responses"`.
        num_choices: Choices that have it in common with another person's.
        terms: Their value where errors have the size that the choices assume, at a mean and cv.
        responses: Both responses of each term, where terms that share one may depend on each
            other; else they are independent.
    """

    source: Literal["pairs", "responses"]
    num_choices: int
    terms: Callable[[Choices, Maximum], Float[np.ndarray, " terms"]]
    responses: Int[np.ndarray, "terms 2"] | None = None


def find_evidence(choices: Choices, seed: int = 0) -> Evidence | None:
    """What people judged in common: pairs where there are as many as half of shared responses."""
    rows = shared_rows(choices, seed)
    if chosen_is_first(choices):
        links = _some_links(link_responses(choices, seed), seed)
        num_linked = len(np.union1d(links.first, links.second))
        has_blocks = len(np.unique(links.cluster)) >= _FEWEST_BLOCKS
        if has_blocks and len(rows) < num_linked / 2:
            return Evidence("responses", num_linked, partial(_block_terms, links=links))
    if not len(rows):
        return None
    assert choices.pair is not None
    first = rows[np.unique(choices.pair[rows], return_index=True)[1]]
    responses = None if choices.responses is None else choices.responses[first]
    return Evidence("pairs", len(rows), partial(_pair_terms, rows=rows), responses)


def sandwich_variance(
    slope: Float[np.ndarray, " terms"], responses: Int[np.ndarray, "terms 2"] | None
) -> float:
    r"""Variance of a sum of slopes, of which those that share a response depend on each other.

    .. math:: \sum_i \Big( \sum_{p \ni i} s_p \Big)^2 - \sum_p s_p^2

    for dyads p with responses i (Aronow, Samii and Assenova, Political Analysis 23, 2015), and at
    least :math:`\sum_p s_p^2`, that of independent terms.
    """
    independent = float(np.square(slope).sum())
    if responses is None:
        return independent
    by_response = np.bincount(responses.ravel(), np.repeat(slope, 2))
    return max(independent, float(np.square(by_response).sum()) - independent)


def shared_rows(choices: Choices, seed: int = 0) -> Int[np.ndarray, " rows"]:
    """Rows on pairs that several people judged; of many, those of random pairs."""
    if choices.pair is None:
        return np.array([], dtype=int)
    assert choices.annotator is not None
    cells = np.unique(np.stack([choices.pair, choices.annotator], 1), axis=0)
    num_judges = np.bincount(cells[:, 0])
    pairs = np.random.default_rng((seed, 19)).permutation(np.flatnonzero(num_judges > 1))
    kept = pairs[: max(1, int((num_judges[pairs].cumsum() <= _MAX_SHARED).sum()))]
    # At margin zero nothing says which response was chosen.
    return np.flatnonzero(np.isin(choices.pair, kept) & (choices.margin != 0))


def _some_links(links: Links, seed: int) -> Links:
    """All links, or those of random blocks, as many as the limit allows."""
    size = np.bincount(links.cluster)
    order = np.random.default_rng((seed, 47)).permutation(len(size))
    kept = order[: max(1, int((size[order].cumsum() <= _MAX_LINKS).sum()))]
    return links.select(np.isin(links.cluster, kept))


@torch.no_grad()
def _pair_terms(
    choices: Choices, best: Maximum, rows: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, " pairs"]:
    """Log-likelihood of each shared pair, given all else, at the best mean and cv."""
    assert choices.pair is not None
    each, log_mass = given_others(choices, best, rows).log(), log_error_mass()
    number = torch.from_numpy(np.unique(choices.pair[rows], return_inverse=True)[1])
    total = torch.zeros(len(ERRORS), int(number.max()) + 1, dtype=torch.float64)
    total.index_add_(1, number, each)
    return (total + log_mass[:, None]).logsumexp(0).numpy()


@torch.no_grad()
def _block_terms(choices: Choices, best: Maximum, links: Links) -> Float[np.ndarray, " blocks"]:
    """Log-likelihood of all links in each connected block of responses, likewise."""
    rows = np.union1d(links.first, links.second)
    each = given_others(choices, best, rows)
    first, second = (np.searchsorted(rows, x) for x in (links.first, links.second))
    value = np.empty(len(links.first))
    for correlation in np.unique(links.correlation):
        at = np.flatnonzero(links.correlation == correlation)
        joint = _joint_mass(float(correlation))
        for part in np.array_split(at, len(at) // _PART + 1):
            one, other = each[:, first[part]], each[:, second[part]]
            value[part] = ((joint @ one) * other).sum(0).log().numpy()
    return np.bincount(np.unique(links.cluster, return_inverse=True)[1], value)


def given_others(
    choices: Choices, best: Maximum, rows: Int[np.ndarray, " rows"]
) -> Float[Tensor, "errors rows"]:
    """Probability of each choice at errors of its margin, its maker's strength by their others."""
    assert choices.annotator is not None
    spread = np.sqrt(np.log1p(max(best.cv, 1e-3) ** 2))
    beta = best.mean * torch.exp(spread * (_STRENGTHS - spread / 2))
    log_prior = -_STRENGTHS.square() / 2
    likelihood = log_likelihood_at(beta, choices)
    parts = []
    for part in np.array_split(rows, len(rows) // _PART + 1):
        person = torch.from_numpy(choices.annotator[part])
        margin = torch.from_numpy(choices.margin[part])
        size, sign = margin.abs(), torch.where(margin >= 0, 1.0, -1.0).double()
        moved = sign[:, None] * (size[:, None] + choices.margin_error * ERRORS)
        chosen = torch.sigmoid(moved[:, :, None] * beta)
        own = (log_error_mass().exp() @ chosen).clamp(min=1e-300)
        others = (likelihood[person] + log_prior - own.log()).softmax(1)
        parts.append((chosen @ others[:, :, None])[:, :, 0].T)
    return torch.cat(parts, 1).clamp(min=1e-300)


def _joint_mass(correlation: float) -> Float[Tensor, "errors errors"]:
    """Mass of two standard normal errors with a correlation, at the nodes of both."""
    if correlation == 1:
        return torch.diag(log_error_mass().exp())
    one, other = ERRORS[:, None], ERRORS[None, :]
    square = one.square() - 2 * correlation * one * other + other.square()
    log_density = -square / (2 * (1 - correlation**2))
    return log_density.flatten().softmax(0).view_as(square)
