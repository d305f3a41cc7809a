"""Weights that a model's files lack, or that are no numbers: refused, by name."""

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging as library_logging

from mixdpo_pyro.errors import ConfigError

__all__ = [
    "TELL_ALL", "load_quietly", "refuse_missing", "refuse_missing_adapter", "refuse_not_finite",
]  # fmt: skip

TELL_ALL: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Options of `from_pretrained` under which it names what is missing, for `refuse_missing`."""

_NAMED = 5
"""Tensors that a message names."""


def refuse_missing(info: dict[str, Any], what: str) -> None:
    """Refuse a model some of whose weights are not in its files: they would be random.

    Args:
        info: What `from_pretrained(..., **TELL_ALL)` tells; tied weights count as present.
        what: The model, for the message.

    Raises:
        ConfigError: Naming the tensors.
    """
    for key, words in {"missing_keys": "lacks", "mismatched_keys": "has another shape of"}.items():
        names = sorted(str(k[0] if isinstance(k, tuple) else k) for k in info[key])
        if names:
            raise ConfigError(
                f"{what}: its file {words} {_listed(names)}; random weights would take that place"
            )


@contextmanager
def refuse_missing_adapter(what: str) -> Iterator[None]:
    """Refuse an adapter that is loaded in this block with weights missing; peft only warns.

    Raises:
        ConfigError: With peft's words.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            words = str(warning.message).splitlines()[0]
            raise ConfigError(f"{what}: {words}")


def refuse_not_finite(model: nn.Module, what: str) -> None:
    """Refuse a model, adapters included, with a weight that is NaN or infinite.

    Raises:
        ConfigError: Naming the tensor, and how many of its numbers are bad.
    """
    for name, parameter in model.named_parameters():
        value = _local(parameter.detach())
        if value.is_meta or not value.is_floating_point() or value.numel() == 0:
            continue
        if value.element_size() > 1 and not torch.stack(value.aminmax()).isfinite().all():
            bad = int((~value.isfinite()).sum())
            raise ConfigError(
                f"{what}: tensor '{name}' holds {bad:,} of {value.numel():,} numbers that are not "
                "finite"
            )


@contextmanager
def load_quietly() -> Iterator[None]:
    """No bar and no report of a load that only looks at names."""
    verbosity, has_bar = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(verbosity)
        if has_bar:
            library_logging.enable_progress_bar()


def _local(value: Tensor) -> Tensor:
    """This process's part of a tensor that is sharded."""
    return value.to_local() if hasattr(value, "to_local") else value


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in list(names)[:_NAMED])
    more = len(names) - _NAMED
    return f"{shown} and {more:,} more" if more > 0 else shown
