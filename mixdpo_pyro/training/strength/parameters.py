"""The strength's parameters in whatever optimizer trains the model."""

from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mixdpo_pyro.config_fields import check_positive
from mixdpo_pyro.errors import ConfigError
from mixdpo_pyro.inference.methods.running_panels import PanelObjective
from mixdpo_pyro.training.learned_strength import Strength

__all__ = ["join_optimizer", "strength_parameter_groups"]

_BETAS = (0.9, 0.98)
"""Of Adam for the strength, where whole panels are kept: their gradients grow as choices come in,
and have little noise, so that sizes of long ago would only make the steps small."""


def strength_parameter_groups(
    strength: Strength | nn.Module, learning_rate: float = 0.05
) -> list[dict[str, Any]]:
    """Parameter groups of a strength, for an optimizer that trains a model too.

    The strength has a learning rate of its own, since its parameters are logarithms that move by
    tenths while weights move by thousandths, and no weight decay, which would draw them to zero.

    Args:
        strength: A strength, or an objective of :mod:`mixdpo_pyro.inference`.
        learning_rate: Learning rate of the strength's parameters, > 0.

    Returns:
        One group; none where nothing is learned (`family="fixed"`).

    Raises:
        ConfigError: If the learning rate is not positive.

    Example:
        >>> import torch
        >>> from mixdpo_pyro.training.learned_strength import StrengthConfig
        >>> model = nn.Linear(3, 1)
        >>> groups = strength_parameter_groups(Strength(StrengthConfig("gamma")))
        >>> optimizer = torch.optim.AdamW([{"params": model.parameters()}, *groups], lr=1e-5)
        >>> [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        [(1e-05, 0.01), (0.05, 0.0)]
    """
    check_positive("learning_rate", learning_rate)
    objective = strength.objective if isinstance(strength, Strength) else strength
    parameters = list(objective.parameters())
    if not parameters:
        return []
    group = {"params": parameters, "lr": learning_rate, "weight_decay": 0.0}
    if isinstance(objective, PanelObjective):
        group["betas"] = _BETAS
    return [group]


def join_optimizer(
    optimizer: Optimizer, strength: Strength, learning_rate: float, scheduler: Any = None
) -> None:
    """Give an optimizer the strength's parameters, unless it has them.

    Args:
        optimizer: The optimizer of the model.
        strength: The strength.
        learning_rate: Its learning rate.
        scheduler: A scheduler that was made for the optimizer before; it follows the new group.

    Raises:
        ConfigError: If the optimizer takes no step that could move the strength.
    """
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for group in strength_parameter_groups(strength, learning_rate):
        if id(group["params"][0]) in known:
            continue
        if type(optimizer).__name__.endswith("DummyOptimizer"):
            raise ConfigError(
                f"optim: {type(optimizer).__name__} updates each layer within the backward pass "
                "and would leave the strength as it starts; take one that is not layer-wise"
            )
        if len(optimizer.defaults.get("betas") or ()) != len(_BETAS):
            group.pop("betas", None)
        optimizer.add_param_group(group)
        if scheduler is not None:
            _follow_new_group(scheduler)


def _follow_new_group(scheduler: Any) -> None:
    """Let a scheduler follow the group that its optimizer was given last, as it follows the first.

    Args:
        scheduler: A scheduler of `torch.optim.lr_scheduler`, also one made of others.
    """
    for part in getattr(scheduler, "_schedulers", ()):
        _follow_new_group(part)
    if not hasattr(scheduler, "base_lrs"):
        return
    group = scheduler.optimizer.param_groups[-1]
    group.setdefault("initial_lr", group["lr"])
    scheduler.base_lrs.append(group["initial_lr"])
    if isinstance(scheduler, LambdaLR):
        scheduler.lr_lambdas.append(scheduler.lr_lambdas[0])
