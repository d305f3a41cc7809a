"""The strength's parameters beside the policy's in an optimizer and a scheduler of the user's."""

from typing import Any

from torch.optim.lr_scheduler import LambdaLR

__all__ = ["follow_new_group"]


def follow_new_group(scheduler: Any) -> None:
    """Let a scheduler follow the group that its optimizer was given last, as it follows the first.

    Args:
        scheduler: A scheduler of `torch.optim.lr_scheduler`, also one made of others.
    """
    for part in getattr(scheduler, "_schedulers", ()):
        follow_new_group(part)
    if not hasattr(scheduler, "base_lrs"):
        return
    group = scheduler.optimizer.param_groups[-1]
    group.setdefault("initial_lr", group["lr"])
    scheduler.base_lrs.append(group["initial_lr"])
    if isinstance(scheduler, LambdaLR):
        scheduler.lr_lambdas.append(scheduler.lr_lambdas[0])
