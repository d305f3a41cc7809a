r"""The mixed-logit likelihood of preference: one entry point over families, estimators and panels.

The random-coefficient logit of discrete choice (Train, *Discrete Choice Methods with Simulation*,
2009, chapter 6; panels: Revelt and Train, Review of Economics and Statistics 80, 1998) applied to
the margins of DPO (MixDPO, Imai et al., arXiv 2601.06180).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from mixdpo_pyro.models.devices import in_float64
from mixdpo_pyro.models.estimators import Draws, Estimator, Quadrature, Series, resolve_estimator
from mixdpo_pyro.models.families import Family, check_family, check_parameters
from mixdpo_pyro.models.gamma.series import gamma_log_prob
from mixdpo_pyro.models.monte_carlo import draw_strengths, draws_log_prob, segment_sum
from mixdpo_pyro.models.observation import Observation, observed_log_prob
from mixdpo_pyro.models.quadrature import (
    Panel,
    choice_log_prob,
    default_num_nodes,
    quadrature_log_prob,
)

__all__ = ["bounded_margin", "flat_panel", "mixed_logit_log_prob"]


@in_float64
def mixed_logit_log_prob(
    margin: Float[Tensor, "..."],
    mean: Float[Tensor, "..."] | float,
    cv: Float[Tensor, "..."] | float,
    family: Family = "lognormal",
    estimator: str | Estimator = "auto",
    annotator: Int[Tensor, " pairs"] | None = None,
    *,
    flip_probability: float = 0.0,
    observation: Observation | None = None,
    outcome: Int[Tensor, " pairs"] | None = None,
    choice_set: Int[Tensor, " pairs"] | None = None,
) -> Float[Tensor, "..."]:
    r"""Log-probability in nats of the observed choices, the strength integrated out.

    .. math:: \log \mathbb{E}_{\beta \sim p(\beta \mid m, cv)} \, \sigma(\beta \Delta)

    per pair, or with annotator ids
    :math:`\log \mathbb{E}_\beta \prod_t \sigma(\beta \Delta_t)` over the choices t of each.
    Label noise :math:`\epsilon` replaces every :math:`\sigma(u)` by
    :math:`(1-\epsilon) \sigma(u) + \epsilon \sigma(-u)`.

    As cv tends to zero at fixed mean every family tends to DPO, :math:`\log \sigma(m \Delta)`,
    which the family `"fixed"` is exactly. Differentiable twice in margin, mean and cv.

    Limits: at :math:`\Delta = \pm\infty` the log-probability is that of a strength of the same
    sign (0 and minus infinity for positive families), its derivatives zero; at 0 it is log 1/2.

    Args:
        margin: Log-ratio margins in nats, chosen minus rejected, last axis the pairs. float16 and
            bfloat16 are computed and returned as float32.
        mean: Mean strength m, positive, broadcastable with `margin`; with ids, with the annotators
            in ascending order of their ids on the last axis.
        cv: Coefficient of variation, positive, shaped as `mean`; not used by `"fixed"`.
        family: `"gamma"`, `"lognormal"`, `"normal"` (strengths may be negative) or `"fixed"`.
        estimator: `"auto"`, `"series"`, `"quadrature"`, `"draws"`, or a `Series`, `Quadrature` or
            `Draws` with its options; see `resolve_estimator`.
        annotator: Ids of the annotators, shape `(pairs,)`, in any order.
        flip_probability: Probability :math:`\epsilon` in [0, 1/2) that a label was flipped.
        observation: What annotators did where it is not a choice from each pair: best of a set,
            a ranking, ties, grades; see `observed_log_prob`, which takes over.
        outcome: With `observation`: what was done, per row.
        choice_set: With `observation`: ids of the sets, per row.

    Returns:
        Log-probabilities in nats, one per pair, or one per annotator in the order of their ids;
        with sets, one per set in the order of their ids.

    Raises:
        ValueError: If the family or estimator is unknown or they do not fit, a parameter is not
            positive, or a shape does not match.

    References:
        | MixDPO (Imai et al., 2026), https://arxiv.org/abs/2601.06180
        | Discrete Choice Methods with Simulation (Train, 2009), chapter 6

    Example:
        >>> margin = torch.tensor([10.0, -10.0, 30.0])
        >>> mixed_logit_log_prob(margin, 0.1, 0.5, "gamma")
        tensor([-0.3284, -1.2733, -0.0914])
        >>> mixed_logit_log_prob(margin, 0.1, 0.5, "gamma", annotator=torch.tensor([7, 7, 3]))
        tensor([-0.0914, -1.6409])
    """
    if observation is not None:
        if flip_probability:
            raise ValueError(f"Expected Lapse for a flip_probability of {observation}")
        return observed_log_prob(
            observation,
            margin,
            mean,
            cv,
            family,
            estimator,
            outcome=outcome,
            choice_set=choice_set,
            annotator=annotator,
        )
    if outcome is not None or choice_set is not None:
        raise ValueError("Expected an observation model for an outcome or a choice_set")
    check_family(family)
    chosen = resolve_estimator(estimator, family, panel=annotator is not None)
    if not 0 <= flip_probability < 0.5:
        raise ValueError(f"Expected 0 <= flip_probability < 0.5, got {flip_probability}")
    if annotator is not None and annotator.shape != margin.shape[-1:]:
        raise ValueError(
            f"Expected one annotator per pair, got {annotator.shape} for margins {margin.shape}"
        )
    dtype = torch.promote_types(margin.dtype, torch.float32)
    mean, cv = check_parameters(margin, mean, cv, family)
    if annotator is None:
        value = _noisy_pair(margin.to(dtype), mean, cv, family, chosen, flip_probability)
    else:
        value = _panel(margin.double(), mean, cv, family, chosen, annotator, flip_probability)
    return value.to(dtype)


def _noisy_pair(
    margin: Tensor,
    mean: Tensor,
    cv: Tensor,
    family: Family,
    estimator: Estimator,
    flip_probability: float,
) -> Tensor:
    kept = _pair(margin, mean, cv, family, estimator)
    if flip_probability == 0.0:
        return kept
    flipped = _pair(-margin, mean, cv, family, estimator)
    return torch.logaddexp(
        math.log1p(-flip_probability) + kept, math.log(flip_probability) + flipped
    )


def _pair(
    margin: Tensor, mean: Tensor, cv: Tensor, family: Family, estimator: Estimator
) -> Tensor:
    if family == "gamma" and isinstance(estimator, Series):
        return gamma_log_prob(margin, mean, cv)
    infinite = margin.isinf()
    finite = margin.masked_fill(infinite, 0.0)
    if family == "fixed":
        value = logsigmoid(mean * finite)
    elif isinstance(estimator, Quadrature):
        value = _pair_quadrature(finite.double(), mean, cv, family, estimator)
    else:
        assert isinstance(estimator, Draws)
        beta = draw_strengths(mean, cv, family, estimator, margin.shape)
        value = draws_log_prob(beta, finite.double())
    return torch.where(infinite, _at_infinity(margin, cv, family), value)


def _pair_quadrature(
    margin: Tensor, mean: Tensor, cv: Tensor, family: Family, rule: Quadrature
) -> Tensor:
    """Positive strengths: the smaller side Q by quadrature, the other as log1p(-Q)."""
    shape = torch.broadcast_shapes(margin.shape, mean.shape, cv.shape)
    margin = bounded_margin(margin, mean)
    margin, mean, cv = (value.expand(shape).reshape(-1) for value in (margin, mean, cv))
    num_nodes = rule.num_nodes or default_num_nodes(family, cv, pair=True)
    if family == "normal":
        return quadrature_log_prob(Panel(margin, mean, cv), family, num_nodes).view(shape)
    # Not -abs: its derivative at 0 is 0, and training starts at margin 0.
    lower = torch.where(margin < 0, margin, -margin)
    log_q = quadrature_log_prob(Panel(lower, mean, cv), family, num_nodes)
    log_p = torch.log1p(-log_q.exp())
    return torch.where(margin < 0, log_q, log_p).view(shape)


def _at_infinity(margin: Tensor, cv: Tensor, family: Family) -> Tensor:
    """Log-probability that the strength has the sign of an infinite margin."""
    if family == "normal":
        return torch.special.log_ndtr(margin.sign() / cv.detach())
    return torch.where(margin > 0, 0.0, -math.inf)


def _panel(
    margin: Tensor,
    mean: Tensor,
    cv: Tensor,
    family: Family,
    estimator: Estimator,
    annotator: Tensor,
    flip_probability: float,
) -> Tensor:
    ids, group = annotator.unique(return_inverse=True)
    # No positive strength chooses against an infinite margin: zero stands in for it.
    impossible = (margin == -math.inf) & (family != "normal" and flip_probability == 0.0)
    certainty = torch.zeros_like(margin).masked_fill(impossible, -math.inf)
    margin = bounded_margin(margin.masked_fill(impossible, 0.0), mean)
    value = _finite_panel(margin, mean, cv, family, estimator, group, len(ids), flip_probability)
    return value + segment_sum(certainty, group, len(ids))


def _finite_panel(
    margin: Tensor,
    mean: Tensor,
    cv: Tensor,
    family: Family,
    estimator: Estimator,
    group: Tensor,
    num_groups: int,
    flip_probability: float,
) -> Tensor:
    if family == "fixed":
        choices = choice_log_prob(mean * margin, flip_probability)
        return segment_sum(choices, group, num_groups)
    if isinstance(estimator, Draws):
        beta = draw_strengths(mean, cv, family, estimator, torch.Size([num_groups]))
        return draws_log_prob(beta, margin, group, num_groups, flip_probability)
    assert isinstance(estimator, Quadrature)
    panel, shape = flat_panel(margin, mean, cv, group, num_groups, flip_probability)
    num_nodes = estimator.num_nodes or default_num_nodes(family, panel.cv)
    return quadrature_log_prob(panel, family, num_nodes).view(shape)


def bounded_margin(margin: Float[Tensor, "..."], mean: Float[Tensor, "..."]) -> Tensor:
    """Margins kept where no utility of a mean strength exceeds 1e300; derivative zero beyond."""
    bound = 1e300 / mean.detach().clamp(min=1.0).max()
    return margin.clamp(-bound, bound)


def flat_panel(
    margin: Tensor,
    mean: Tensor,
    cv: Tensor,
    group: Tensor,
    num_groups: int,
    flip_probability: float = 0.0,
) -> tuple[Panel, torch.Size]:
    """Sort the choices by group; leading batch dimensions become groups of their own."""
    shape = torch.broadcast_shapes((*margin.shape[:-1], 1), mean.shape, cv.shape, (num_groups,))
    order = group.argsort(stable=True)
    replicate = torch.arange(math.prod(shape[:-1]), device=group.device).unsqueeze(-1)
    return (
        Panel(
            margin[..., order].expand(*shape[:-1], -1).reshape(-1),
            mean.expand(shape).reshape(-1),
            cv.expand(shape).reshape(-1),
            (replicate * num_groups + group[order]).reshape(-1),
            flip_probability,
        ),
        shape,
    )
