"""Where the likelihood is computed: on the CPU where that is cheaper, or where alone it can be.

Its arithmetic is float64. Apple's GPUs have none, and those of consumers little.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

__all__ = ["has_float64", "in_float64", "on_cpu"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64.

    Example:
        >>> has_float64(torch.device("cpu"))
        True
    """
    try:
        torch.ones(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):  # of Intel's GPUs and of Apple's
        return False
    return True


def on_cpu(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Compute a function of tensors on the CPU, wherever they are; gradients travel back.

    Args:
        function: Its arguments are tensors and other values, its result a tensor or a tuple of
            them. The result is moved to the device of the first tensor, as float32 at most where
            there is no float64.
    """

    @wraps(function)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        device = next(v.device for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        near: Callable[..., Any] = function
        found = near(*map(_to_cpu, args), **{k: _to_cpu(v) for k, v in kwargs.items()})
        return _to_device(found, device)

    return run


def in_float64(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """`on_cpu` where an argument stands on a device without float64; else the function itself."""
    near = on_cpu(function)

    @wraps(function)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        tensors = (v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        is_possible = all(has_float64(v.device) for v in tensors)
        return (function if is_possible else near)(*args, **kwargs)

    return run


def _to_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value


def _to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, tuple):
        return type(value)(*(_to_device(each, device) for each in value))
    must_round = value.dtype == torch.float64 and not has_float64(device)
    return (value.float() if must_round else value).to(device)
