"""Each distinct response of a batch run once: best of K takes K rows of a forward, not 2 (K - 1).

TRL's batch has two rows per pair. The chosen response of a set stands in each of its pairs, and a
pair that several people judged stands there as often; their rows are equal, and so is all that the
model computes from them. Hooks hand the model the distinct rows and hand on its outputs row by row
as if all had been run, so that TRL's loss and metrics need not know.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

__all__ = ["distinct_rows_only"]


@contextmanager
def distinct_rows_only(models: Iterable[nn.Module]) -> Iterator[None]:
    """Let these models run the distinct rows of each batch only, within the context.

    Gradients of a row that stands in a batch several times add up. A batch without equal rows is
    run as it is. With dropout equal rows share their mask. Inputs are keywords, as TRL gives them.
    """
    with ExitStack() as stack:
        for model in models:
            rows = _Rows()
            for handle in (
                model.register_forward_pre_hook(rows.merge, with_kwargs=True),
                model.register_forward_hook(rows.expand, with_kwargs=True),
            ):
                stack.callback(handle.remove)
        yield


class _Rows:
    """The hooks of one model, and which distinct row each row of the batch is."""

    def __init__(self) -> None:
        self._place: Int[Tensor, " rows"] | None = None

    def merge(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Keep the first of equal rows in all inputs."""
        self._place = None
        if args or not {"input_ids", "attention_mask"} <= kwargs.keys():
            return None
        names = ("input_ids", "attention_mask", "labels")  # older trl hands on no labels
        seen = torch.cat([kwargs[name] for name in names if name in kwargs], 1)
        distinct, place = seen.unique(dim=0, return_inverse=True)
        number = len(seen)
        if len(distinct) == number:
            return None
        row = torch.arange(number, device=place.device)
        first = place.new_full((len(distinct),), number).scatter_reduce(0, place, row, "amin")
        self._place = place
        return args, {
            name: value[first] if _has_rows(value, number) else value
            for name, value in kwargs.items()
        }

    def expand(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any
    ) -> Any:
        """Give every row what was computed of its first equal."""
        place, self._place = self._place, None
        if place is None:
            return None
        number = len(kwargs["input_ids"])
        found = {k: v[place] if _has_rows(v, number) else v for k, v in outputs.items()}
        return type(outputs)(**found)


def _has_rows(value: Any, number: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == number
