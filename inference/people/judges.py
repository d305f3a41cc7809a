r"""Ratings from the votes of judges who differ: how strongly they judge, and how they lean.

The preference likelihood with its utilities free, as arenas and evaluations need it:

.. math:: \eta = \beta_g (u_\ell - u_r) + b_g, \qquad P(\text{left}) = \sigma(\eta - \tau),
          \quad P(\text{right}) = \sigma(-\eta - \tau)

for a vote of judge g between the items :math:`\ell` (left) and r (right), with ties in between
(Rao and Kupper, JASA 62, 1967). Judges have a strength of mean one,
:math:`\log\beta_g \sim \mathrm{Normal}(-\sigma^2/2, \sigma^2)`, a side bias
:math:`b_g = s \sinh z_g`, and a share :math:`\epsilon_g` of votes at random, whose logit is
:math:`\sinh z'_g` above that of 3%, with standard normal z and z'. The tails are heavy, so that
one judge who always says left tells little about the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixdpo_pyro.inference.choices import number_ids, read_ids

__all__ = ["OUTCOMES", "JudgesFit", "fit_judges"]

OUTCOMES = ("right", "tie", "left")
"""What a vote says, in the order of the codes 0, 1 and 2."""

_NAMES = ("cv", "side", "threshold")

_PRIOR_MEDIAN = {"cv": 0.5, "side": 0.4, "threshold": 0.5}
"""Of cv, the scale s of side biases, and the threshold of ties; their logs have standard deviation
one."""

_LAPSE = math.log(0.03 / 0.97)
"""Logit of the median share of votes at random. It is not estimated: a judge of many votes who
never lapses would otherwise say it of all."""

_ITEM_SD = 5.0
"""Of the normal prior of utilities, in logits: it only holds items that won or lost every vote."""

_NUM_NODES = 5
"""Nodes of the adaptive Gauss-Hermite rule in each of log strength, side bias and lapse: off by
less than 0.02 nats a judge."""

_NUM_DEVIATES = 3

_ROUNDS, _STEPS, _TOLERANCE = 8, 60, 1e-6

_NEWTON, _HALVINGS = 12, 6

_Z90 = 1.6449

_BOUNDS = (-12.0, 3.0)
"""Of the logs of parameters, beyond what the priors leave."""

_LOW = -30.0
"""Log of a parameter that stands for zero."""


@dataclass(frozen=True)
class JudgesFit:
    """Ratings and judges.

    Attributes:
        items: Labels of what was judged.
        rating: Utilities in logits of an average judge, mean zero.
        covariance: Their covariance, by the curvature of the marginal likelihood.
        judges: Labels of the judges; empty where all are taken as equal.
        strength: Each judge's strength, 5%, 50% and 95% quantiles; one is average.
        side: Each judge's bias to the left in logits, likewise.
        num_votes: Votes of each judge.
        lapse: Each judge's share of votes at random, likewise.
        parameters: `cv` of the strengths, `side` (scale s of the biases) and `threshold` of ties:
            median and 90% interval, those that were estimated.
        log_likelihood: Marginal log-likelihood in nats.
        unbeaten: Items that won, or lost, every vote: only the prior holds their rating.
    """

    items: tuple[str, ...]
    rating: Float[np.ndarray, " items"]
    covariance: Float[np.ndarray, "items items"]
    judges: tuple[str, ...]
    strength: Float[np.ndarray, "judges 3"]
    side: Float[np.ndarray, "judges 3"]
    lapse: Float[np.ndarray, "judges 3"]
    num_votes: Int[np.ndarray, " judges"]
    parameters: dict[str, tuple[float, float, float]]
    log_likelihood: float
    unbeaten: tuple[str, ...]

    def interval(self) -> Float[np.ndarray, "items 2"]:
        """90% intervals of the ratings."""
        half = _Z90 * np.sqrt(np.diag(self.covariance))
        return np.stack([self.rating - half, self.rating + half], 1)

    def rank_interval(self, num_draws: int = 4000, seed: int = 0) -> Int[np.ndarray, "items 2"]:
        """90% intervals of the ranks, the best item being 1."""
        rng = np.random.default_rng(seed)
        draws = rng.multivariate_normal(
            self.rating, self.covariance, num_draws, check_valid="ignore", method="eigh"
        )
        ranks = (-draws).argsort(1).argsort(1) + 1
        return np.quantile(ranks, [0.05, 0.95], axis=0, method="inverted_cdf").T.astype(int)


@dataclass(frozen=True)
class _Votes:
    """Votes as numbers, and which parameters they are described with."""

    left: Int[Tensor, " votes"]
    right: Int[Tensor, " votes"]
    code: Int[Tensor, " votes"]
    judge: Int[Tensor, " votes"]
    num_items: int
    num_judges: int
    has_ties: bool
    are_equal: bool

    @property
    def names(self) -> list[str]:
        """Parameters beside the utilities."""
        judged = [] if self.are_equal else ["cv", "side"]
        return judged + (["threshold"] if self.has_ties else [])

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return self.num_items + len(self.names)

    def values(self, vector: Float[Tensor, " unknowns"]) -> dict[str, Tensor]:
        """Utilities of mean zero, and logs of the parameters."""
        utility = vector[: self.num_items]
        logs = vector[self.num_items :].clamp(*_BOUNDS)  # a line search tries anything
        named = dict(zip(self.names, logs, strict=True))
        low = vector.new_full((), _LOW)
        return {"utility": utility - utility.mean(), **{n: named.get(n, low) for n in _NAMES}}


def fit_judges(
    left: Sequence[Any] | np.ndarray,
    right: Sequence[Any] | np.ndarray,
    winner: Sequence[str] | np.ndarray,
    judge: Sequence[Any] | np.ndarray | None = None,
    *,
    equal_judges: bool = False,
) -> JudgesFit:
    """Rate items by votes of judges who differ in strength, lean to one side, or do not look.

    The marginal likelihood integrates every judge's strength and bias by an adaptive
    Gauss-Hermite rule. It is maximised with weak priors, and its curvature gives the intervals. A
    judge who always says the same side gets a bias that explains the votes, and their votes say
    little about the items.

    Args:
        left: What stood on the left in each vote, any ids.
        right: What stood on the right.
        winner: `"left"`, `"right"` or `"tie"`.
        judge: Who voted; default, all votes are those of equal judges.
        equal_judges: Take all judges as equal and unbiased: Bradley and Terry (with ties Rao and
            Kupper).

    Returns:
        The ratings, and each judge's strength and bias.

    Raises:
        ValueError: If a vote cannot be used, or votes do not connect all items.

    Example:
        >>> fit = fit_judges(["a", "a", "b"], ["b", "b", "a"], ["left", "right", "right"])
        >>> dict(zip(fit.items, fit.rating.round(2).tolist(), strict=True))
        {'a': 0.34, 'b': -0.34}
    """
    votes, items, judges, unbeaten = _read_votes(left, right, winner, judge, equal_judges)
    vector = torch.zeros(votes.size, dtype=torch.float64)
    starts = [math.log(_PRIOR_MEDIAN[n]) for n in votes.names]
    vector[votes.num_items :] = torch.tensor(starts, dtype=torch.float64)
    nodes, last = _Nodes.at(vector, votes), math.inf
    for _ in range(_ROUNDS):
        vector, value = _maximise(vector, votes, nodes)
        nodes = _Nodes.at(vector, votes)
        if abs(last - value) < _TOLERANCE * len(votes.code):
            break
        last = value
    hessian = torch.autograd.functional.hessian(lambda v: _objective(v, votes, nodes), vector)
    covariance = torch.linalg.inv(hessian).numpy()
    centre = np.eye(votes.num_items) - 1 / votes.num_items
    values = votes.values(vector)
    strength, side, lapse = _describe_judges(values, nodes, votes)
    return JudgesFit(
        items,
        values["utility"].numpy(),
        centre @ covariance[: votes.num_items, : votes.num_items] @ centre,
        judges,
        strength,
        side,
        lapse,
        np.bincount(votes.judge.numpy()) if judges else np.zeros(0, dtype=int),
        _describe_parameters(vector, covariance, votes),
        float(_log_likelihood(vector, votes, nodes)),
        unbeaten,
    )


def _read_votes(
    left: Sequence[Any] | np.ndarray,
    right: Sequence[Any] | np.ndarray,
    winner: Sequence[str] | np.ndarray,
    judge: Sequence[Any] | np.ndarray | None,
    equal_judges: bool,
) -> tuple[_Votes, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    if not len(left) == len(right) == len(winner) or (
        judge is not None and len(judge) != len(left)
    ):
        raise ValueError("Expected as many left and right items, winners and judges")
    if not len(left):
        raise ValueError("Expected votes, got none")
    wrong = next((k for k, w in enumerate(winner) if w not in OUTCOMES), None)
    if wrong is not None:
        raise ValueError(f"Expected left, right or tie, got {winner[wrong]!r} at index {wrong}")
    items, number = number_ids(read_ids([*left, *right]))
    first, second = np.split(number, 2)
    same = np.flatnonzero(first == second)
    if len(same):
        raise ValueError(
            f"Expected two items, got {items[first[same[0]]]!r} twice at index {same[0]}"
        )
    _check_connected(first, second, items)
    code = np.array([OUTCOMES.index(w) for w in winner])
    labels: tuple[str, ...] = ()
    who = np.zeros(len(code), dtype=int)
    if judge is not None and not equal_judges:
        labels, who = number_ids(read_ids(list(judge)))
    votes = _Votes(
        torch.from_numpy(first),
        torch.from_numpy(second),
        torch.from_numpy(code),
        torch.from_numpy(who),
        len(items),
        max(len(labels), 1),
        bool((code == 1).any()),
        not labels,
    )
    return votes, items, labels, _unbeaten(first, second, code, items)


def _check_connected(
    left: Int[np.ndarray, " votes"], right: Int[np.ndarray, " votes"], items: tuple[str, ...]
) -> None:
    shape = (len(items), len(items))
    graph = coo_array((np.ones(len(left)), (left, right)), shape=shape)
    number, part = connected_components(graph, directed=False)
    if number > 1:
        one, other = items[int(np.argmax(part == 0))], items[int(np.argmax(part == 1))]
        raise ValueError(
            f"Votes do not connect all items: nothing says how {one!r} compares with {other!r}, "
            "directly or through others; rate the parts by themselves"
        )


def _unbeaten(
    left: Int[np.ndarray, " votes"],
    right: Int[np.ndarray, " votes"],
    code: Int[np.ndarray, " votes"],
    items: tuple[str, ...],
) -> tuple[str, ...]:
    count = len(items)
    won = np.bincount(left, code == 2, count) + np.bincount(right, code == 0, count)
    lost = np.bincount(left, code == 0, count) + np.bincount(right, code == 2, count)
    tied = np.bincount(left, code == 1, count) + np.bincount(right, code == 1, count)
    return tuple(items[k] for k in np.flatnonzero(((won == 0) | (lost == 0)) & (tied == 0)))


def _vote_log_prob(
    values: dict[str, Tensor], deviate: Float[Tensor, "judges nodes deviates"], votes: _Votes
) -> Float[Tensor, "votes nodes"]:
    """Log-probability of every vote at standard normal deviates of its judge."""
    scale = values["cv"].exp().square().log1p().sqrt()
    strength = torch.exp(scale * deviate[..., 0] - scale.square() / 2)
    bias = values["side"].exp() * deviate[..., 1].sinh()
    difference = values["utility"][votes.left] - values["utility"][votes.right]
    logit = strength[votes.judge] * difference[:, None] + bias[votes.judge]
    threshold = values["threshold"].exp() if votes.has_ties else values["threshold"] * 0
    sign = (votes.code - 1)[:, None]
    won = logsigmoid(sign * logit - threshold)
    if votes.has_ties:
        tie = _log_tie(logit, threshold)
        won = torch.where(sign == 0, tie, won)
    if votes.are_equal:
        return won
    lapse = (_LAPSE + deviate[..., 2].sinh())[votes.judge]
    at_random = logsigmoid(lapse) - math.log(2 + votes.has_ties)
    return torch.logaddexp(logsigmoid(-lapse) + won, at_random)


def _log_tie(logit: Tensor, threshold: Tensor) -> Tensor:
    r"""Log of :math:`1 - \sigma(\eta - \tau) - \sigma(-\eta - \tau)`, without cancellation."""
    growth = torch.log(torch.expm1(2 * threshold))
    return growth + logsigmoid(logit - threshold) + logsigmoid(-logit - threshold)


def _log_joint(
    values: dict[str, Tensor], deviate: Float[Tensor, "judges nodes deviates"], votes: _Votes
) -> Float[Tensor, "judges nodes"]:
    """Log-density of each judge's votes and deviates, up to a constant."""
    each = _vote_log_prob(values, deviate, votes)
    total = each.new_zeros(deviate.shape[:2]).index_add(0, votes.judge, each)
    return total - deviate.square().sum(-1) / 2


@dataclass(frozen=True)
class _Nodes:
    """Nodes of each judge's rule, and what their log weights are.

    Attributes:
        mode: Deviates at which a judge's posterior is largest, shape `(judges, 3)`.
        root: Roots of its covariance there, shape `(judges, 3, 3)`.
        deviate: Nodes, shape `(judges, nodes, 3)`.
        log_weight: Shape `(judges, nodes)`.
    """

    mode: Float[Tensor, "judges deviates"]
    root: Float[Tensor, "judges deviates deviates"]
    deviate: Float[Tensor, "judges nodes deviates"]
    log_weight: Float[Tensor, "judges nodes"]

    @classmethod
    def at(cls, vector: Float[Tensor, " unknowns"], votes: _Votes) -> "_Nodes":
        """The rule around the posteriors at these values."""
        values = {name: value.detach() for name, value in votes.values(vector).items()}
        mode, precision = _find_modes(values, votes)
        root = torch.linalg.cholesky(torch.linalg.inv(precision))
        if votes.are_equal:
            deviate = mode[:, None]
            return cls(mode, root, deviate, deviate.new_zeros(deviate.shape[:2]))
        node, weight = np.polynomial.hermite_e.hermegauss(_NUM_NODES)
        grid = torch.cartesian_prod(*[torch.from_numpy(node)] * _NUM_DEVIATES)
        log_share = torch.from_numpy(np.log(weight / math.sqrt(2 * math.pi)))
        log_weight = torch.cartesian_prod(*[log_share] * _NUM_DEVIATES).sum(1)
        deviate = mode[:, None] + grid @ root.mT
        log_weight = log_weight + grid.square().sum(1) / 2
        log_root = torch.diagonal(root, dim1=1, dim2=2).log().sum(1)
        return cls(mode, root, deviate, log_weight + log_root[:, None])


def _find_modes(
    values: dict[str, Tensor], votes: _Votes
) -> tuple[Float[Tensor, "judges deviates"], Float[Tensor, "judges deviates deviates"]]:
    """Every judge's likeliest deviates, by Newton's method, and the precision there."""
    mode = torch.zeros(votes.num_judges, _NUM_DEVIATES, dtype=torch.float64)
    if votes.are_equal:
        return mode, torch.diag_embed(torch.ones_like(mode))
    for _ in range(_NEWTON):
        height, slope, precision = _local_shape(values, mode, votes)
        step = torch.linalg.solve(precision, slope)
        step = step / step.norm(dim=1, keepdim=True).clamp(min=1)
        for _ in range(_HALVINGS):
            with torch.no_grad():
                is_lower = _log_joint(values, (mode + step)[:, None], votes)[:, 0] < height
            step = torch.where(is_lower[:, None], step / 2, step)
        mode = mode + step
    return mode, _local_shape(values, mode, votes)[2]


def _local_shape(
    values: dict[str, Tensor], mode: Float[Tensor, "judges deviates"], votes: _Votes
) -> tuple[Tensor, Tensor, Tensor]:
    """Height, slope and a positive precision of every judge's log-density."""
    at = mode.clone().requires_grad_()
    height = _log_joint(values, at[:, None], votes)[:, 0]
    (slope,) = torch.autograd.grad(height.sum(), at, create_graph=True)
    rows = [
        torch.autograd.grad(slope[:, k].sum(), at, retain_graph=True)[0]
        for k in range(at.shape[1])
    ]
    level, direction = torch.linalg.eigh(-torch.stack(rows, 1))
    precision = direction @ torch.diag_embed(level.clamp(min=0.5)) @ direction.mT
    return height.detach(), slope.detach(), precision


def _log_likelihood(
    vector: Float[Tensor, " unknowns"], votes: _Votes, nodes: _Nodes
) -> Float[Tensor, ""]:
    """Marginal log-likelihood of all votes; strengths and biases integrated by the rule."""
    joint = _log_joint(votes.values(vector), nodes.deviate, votes)
    return (joint + nodes.log_weight).logsumexp(1).sum()


def _objective(
    vector: Float[Tensor, " unknowns"], votes: _Votes, nodes: _Nodes
) -> Float[Tensor, ""]:
    """Negative log-posterior."""
    utility, rest = vector[: votes.num_items], vector[votes.num_items :]
    centre = vector.new_tensor([math.log(_PRIOR_MEDIAN[name]) for name in votes.names])
    prior = (utility / _ITEM_SD).square().sum() / 2 + (rest - centre).square().sum() / 2
    return prior - _log_likelihood(vector, votes, nodes)


def _maximise(
    vector: Float[Tensor, " unknowns"], votes: _Votes, nodes: _Nodes
) -> tuple[Float[Tensor, " unknowns"], float]:
    at = vector.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([at], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = _objective(at, votes, nodes)
        value.backward()
        return value

    optimiser.step(closure)
    return at.detach(), float(_objective(at.detach(), votes, nodes))


def _describe_judges(
    values: dict[str, Tensor], nodes: _Nodes, votes: _Votes
) -> list[Float[np.ndarray, "judges 3"]]:
    """Quantiles of every judge's strength, bias and lapse, normal on the scale of the deviates."""
    if votes.are_equal:
        return [np.zeros((0, 3))] * _NUM_DEVIATES
    joint = _log_joint(values, nodes.deviate, votes) + nodes.log_weight
    share = joint.softmax(1)[..., None]
    mean = (share * nodes.deviate).sum(1)
    sd = (share * (nodes.deviate - mean[:, None]).square()).sum(1).sqrt()
    deviate = mean[..., None] + sd[..., None] * torch.tensor([-_Z90, 0.0, _Z90]).double()
    scale = values["cv"].exp().square().log1p().sqrt()
    strength = torch.exp(scale * deviate[:, 0] - scale.square() / 2)
    side = values["side"].exp() * deviate[:, 1].sinh()
    lapse = _LAPSE + deviate[:, 2].sinh()
    return [value.numpy() for value in (strength, side, lapse.sigmoid())]


def _describe_parameters(
    vector: Float[Tensor, " unknowns"], covariance: Float[np.ndarray, "_ _"], votes: _Votes
) -> dict[str, tuple[float, float, float]]:
    found = {}
    for k, name in enumerate(votes.names, votes.num_items):
        half = _Z90 * math.sqrt(covariance[k, k])
        log = float(vector[k])
        found[name] = math.exp(log), math.exp(log - half), math.exp(log + half)
    return found
