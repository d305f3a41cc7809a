"""A device without float64 where there is none: the name is that of `meta`, the numbers are real.

A tensor on it holds its numbers on the CPU. Every operation that would make a float64 tensor there
is refused, as MPS refuses it, and so are operations on tensors of two devices.
"""

from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from mixdpo_pyro.models.devices import has_float64

FLOAT32_DEVICE = torch.device("meta")
"""Autograd runs a backward pass on it without an accelerator's streams."""

_TAKES_TWO = {"_to_copy", "copy_", "index", "index_put"}
"""Operations that tensors of two devices may meet in."""


class _OnDevice(torch.Tensor):
    """A tensor of the device."""

    @staticmethod
    def __new__(cls, value):
        if value.dtype == torch.float64:
            raise TypeError("Cannot convert to float64: the device does not support it")
        found = torch.Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), dtype=value.dtype, device=FLOAT32_DEVICE,
            dispatch_sizes_strides_policy="sizes",
        )  # fmt: skip
        found.value = value
        return found

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})

    def item(self):
        """The number, which tensors called `meta` refuse."""
        return self.value.item()


class _Device(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _compute(function, args, kwargs or {})


def _compute(function, args, kwargs):
    tensors = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
    are_there = [isinstance(v, _OnDevice) for v in tensors]
    name = function.__name__.partition(".")[0]
    if any(are_there) and any(
        not there and v.dim() > 0 for v, there in zip(tensors, are_there, strict=True)
    ):
        if name not in _TAKES_TWO:
            raise RuntimeError(f"Expected all tensors to be on the same device in {name}")
    device = kwargs.get("device")
    if device == FLOAT32_DEVICE:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    near = [tree_map(lambda v: getattr(v, "value", v), each) for each in (args, kwargs)]
    result = function(*near[0], **near[1])
    if name.endswith("_") and not name.startswith("_"):  # in place
        return args[0]
    stays = any(are_there) if device is None else device == FLOAT32_DEVICE
    return tree_map(lambda v: _moved(v) if stays else v, result)


def _moved(value):
    return _OnDevice(value) if isinstance(value, torch.Tensor) else value


@contextmanager
def float32_device():
    """Let the device be there within the block."""
    has_float64.cache_clear()
    make = torch.tensor

    def make_tensor(data, *, device=None, **kwargs):  # on `meta` it forgets the numbers
        found = make(data, **kwargs)
        return found if device is None else found.to(device)

    try:
        with _Device(), patch("torch.tensor", make_tensor):
            yield FLOAT32_DEVICE
    finally:
        has_float64.cache_clear()
