"""Which choices share a response, and what an error of that response does to both."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import lsqr

from mixdpo_pyro.inference.choices import Choices, select_choices, typical_size

__all__ = [
    "Links",
    "chosen_is_first",
    "link_responses",
    "rows_without_recurring",
    "without_recurring",
]

_NEIGHBOURS = 6
"""Later choices of one response, in random order, that each choice is paired with."""

_NEGLIGIBLE = 0.25
"""Correlation of a choice's error with all others of its person together; that of the choices is
a third of it at most, where errors are as large as the margins."""

_TOLERANCE = 1e-3
"""Of the typical margin: how far margins may lie from differences of the responses' log-ratios."""

_MAX_STEPS = 300
"""Steps towards these log-ratios; those of prompts with few responses take ten."""


@dataclass(frozen=True)
class Links:
    """Pairs of choices by different people that share one response, or both.

    Attributes:
        first: Row of one choice.
        second: Row of the other one.
        correlation: That of the errors of both margins, each counted towards the response that
            its margin favours: 1/2 or -1/2, and 1 where both responses are the same.
        cluster: Number of the connected block of responses.
    """

    first: Int[np.ndarray, " links"]
    second: Int[np.ndarray, " links"]
    correlation: Float[np.ndarray, " links"]
    cluster: Int[np.ndarray, " links"]

    def select(self, kept: Bool[np.ndarray, " links"]) -> "Links":
        """Some of them."""
        return Links(
            self.first[kept], self.second[kept], self.correlation[kept], self.cluster[kept]
        )


def without_recurring(choices: Choices, seed: int = 0) -> Choices:
    """Choices of which no two by one person share a response, or a pair.

    Errors of responses are then independent within every person.
    """
    is_kept = rows_without_recurring(choices, seed)
    return choices if is_kept.all() else select_choices(choices, np.flatnonzero(is_kept))


def rows_without_recurring(choices: Choices, seed: int = 0) -> Bool[np.ndarray, " pairs"]:
    r"""Rows that are taken in random order, as long as nothing in them recurs within a person.

    All are kept where errors hardly add up. Those of a response that is favoured by one margin
    and not by another cancel, so that a choice's error correlates with all others of the person by

    .. math:: \frac{1}{N} \sum_{g, i} \frac{(\sum_t s_{git})^2 - n_{gi}}{2}

    together, with :math:`s_{git} = \pm 1` the side on which response i stands in each of the
    :math:`n_{gi}` choices; 1 for all where sides are not known.

    Args:
        choices: Pairs, ties or grades with annotator ids; without other ids all are kept.
        seed: Seed of the order.
    """
    assert choices.annotator is not None
    is_kept = np.ones(choices.num_pairs, dtype=bool)
    items = choices.responses
    if items is None and choices.pair is not None:
        items = choices.pair[:, None]
    if items is None or _added_up(choices, items) <= _NEGLIGIBLE:
        return is_kept
    cells = choices.annotator[:, None] * (int(items.max()) + 1) + items
    seen: set[int] = set()
    for row in np.random.default_rng((seed, 41)).permutation(choices.num_pairs):
        own = set(cells[row].tolist())
        is_kept[row] = own.isdisjoint(seen)
        if is_kept[row]:
            seen |= own
    return is_kept


def _added_up(choices: Choices, items: Int[np.ndarray, "pairs items"]) -> float:
    """Correlation of a choice's error with all others of its person together, on average."""
    assert choices.annotator is not None
    side = np.ones(items.shape)
    if items.shape[1] == 2 and chosen_is_first(choices):
        side = np.sign(choices.margin)[:, None] * [1.0, -1.0]
    cell = choices.annotator[:, None] * (int(items.max()) + 1) + items
    number = np.unique(cell, return_inverse=True)[1].ravel()
    total = np.bincount(number, side.ravel())
    each = np.bincount(number, np.square(side).ravel())
    return float(np.square(total).sum() - each.sum()) / items.shape[1] / choices.num_pairs


def chosen_is_first(choices: Choices) -> bool:
    r"""Whether the first of the two responses of each row is known to be the chosen one.

    Margins are differences of log-ratios, :math:`\Delta_{ij} = v_i - v_j`, so that they have to
    add up to zero around every circle of responses. If the first response is the chosen one in
    every row, values v exist which meet all margins; were responses in another order, a pair on
    which people disagreed, or a triangle, would contradict it. Without any circle nothing can be
    known.
    """
    if choices.responses is None:
        return False
    first, second = choices.responses.T
    num_rows, num_responses = choices.num_pairs, int(choices.responses.max()) + 1
    graph = coo_matrix((np.ones(num_rows), (first, second)), (num_responses, num_responses))
    num_parts = connected_components(graph, directed=False, return_labels=False)
    if num_rows <= num_responses - num_parts:
        return False
    row = np.arange(num_rows)
    value = np.repeat([1.0, -1.0], num_rows)
    difference = coo_matrix(
        (value, (np.tile(row, 2), np.concatenate([first, second]))), (num_rows, num_responses)
    ).tocsr()
    solution = lsqr(difference, choices.margin, atol=1e-9, btol=1e-9, iter_lim=_MAX_STEPS)[0]
    residual = np.abs(difference @ solution - choices.margin)
    return bool(residual.max() <= _TOLERANCE * typical_size(choices.margin))


def link_responses(choices: Choices, seed: int = 0) -> Links:
    """Choices by different people that share a response; of many, each with the next few.

    Args:
        choices: Pairs whose first response is the chosen one, with annotator ids.
        seed: Seed of their order.
    """
    assert choices.annotator is not None and choices.responses is not None
    # At margin zero nothing says which response was chosen.
    rows = np.flatnonzero(choices.margin != 0)
    response = choices.responses[rows].ravel()
    row = np.repeat(rows, 2)
    favours = (np.tile([1, -1], len(rows)) * np.sign(choices.margin[row])).astype(int)
    rng = np.random.default_rng((seed, 43))
    order = np.lexsort((rng.random(len(row)), response))
    response, row, favours = response[order], row[order], favours[order]
    parts = []
    for step in range(1, _NEIGHBOURS + 1):
        first, second = np.s_[:-step], np.s_[step:]
        is_link = response[first] == response[second]
        is_link &= choices.annotator[row[first]] != choices.annotator[row[second]]
        parts.append((
            row[first][is_link], row[second][is_link],
            (favours[first] * favours[second])[is_link], response[first][is_link],
        ))  # fmt: skip
    one, other, sign, response = (np.concatenate(each) for each in zip(*parts, strict=True))
    unordered = np.sort(choices.responses, axis=1)
    are_same = np.all(unordered[one] == unordered[other], axis=1)
    return Links(one, other, np.where(are_same, 1.0, 0.5 * sign), _blocks(choices)[response])


def _blocks(choices: Choices) -> Int[np.ndarray, " responses"]:
    """Number of the connected block of each response."""
    assert choices.responses is not None
    first, second = choices.responses.T
    size = int(choices.responses.max()) + 1
    graph = coo_matrix((np.ones(len(first)), (first, second)), (size, size))
    return connected_components(graph, directed=False)[1]
