"""Orders of the training data: an annotator's pairs in blocks, and batches of whole choices."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int
from torch.utils.data import Sampler

__all__ = ["AnnotatorBlockSampler", "ChoiceBatchSampler"]

_OPEN_BATCHES = 16
"""Batches in which room for the next block is looked for."""


class AnnotatorBlockSampler(Sampler[int]):
    """Random order in which pairs of one annotator stand together in blocks.

    Every epoch cuts each annotator's pairs anew into blocks and shuffles the blocks. Pairs of one
    block share a strength in the loss, which makes it a composite likelihood (Varin, Reid and
    Firth, Statistica Sinica 21, 2011): exact where a block holds all pairs of its annotator, and
    unbiased in its gradient's zero where it does not.

    Args:
        annotator: Number of each pair's annotator.
        block_size: Largest number of pairs in a block, at least 1.
        seed: Seed; with the number of the epoch it decides the order.
    """

    def __init__(self, annotator: np.ndarray, block_size: int, seed: int) -> None:
        self._annotator = annotator
        self._block_size = block_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Give the order of another epoch; the Trainer calls it, on resuming too."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._annotator)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self._seed, self._epoch))
        order = rng.permutation(len(self._annotator))
        order = order[np.argsort(self._annotator[order], kind="stable")]
        ends = np.flatnonzero(np.diff(self._annotator[order])) + 1
        blocks = [
            person[start : start + self._block_size]
            for person in np.split(order, ends)
            for start in range(0, len(person), self._block_size)
        ]
        for k in rng.permutation(len(blocks)):
            yield from blocks[k].tolist()


class ChoiceBatchSampler(Sampler[list[int]]):
    """Batches of whole choices, in random order; choices of one owner stand together in blocks.

    A batch holds at most `batch_size` rows. How many rows each batch has is settled once, so that
    all epochs have as many batches; every epoch deals the choices anew to places of their size,
    those of an owner to the owner's blocks, and shuffles blocks and batches.

    Args:
        choice: Number of each row's choice, counted from 0.
        batch_size: Largest number of rows in a batch.
        seed: Seed; with the number of the epoch it decides the order.
        owner: Number of whose block each row stands in: the annotator who chose, or the pair that
            was judged. Default, every choice is a block.
        block_size: Largest number of rows in a block, or of the rows of one choice where that is
            more; default, `batch_size`.
        drop_last: Whether several processes drop batches that are too few for all of them.

    Raises:
        ValueError: If a choice has more rows than a batch.
    """

    def __init__(
        self,
        choice: Int[np.ndarray, " rows"],
        batch_size: int,
        seed: int,
        owner: Int[np.ndarray, " rows"] | None = None,
        block_size: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.sampler = self  # where accelerate looks for `set_epoch`
        self.drop_last = drop_last
        self._seed = seed
        self._epoch = 0
        self._size = np.bincount(choice)
        if self._size.max() > batch_size:
            raise ValueError(
                f"Expected at most {batch_size} rows in a choice, got {self._size.max()}"
            )
        self._rows = np.split(np.argsort(choice, kind="stable"), self._size.cumsum()[:-1])
        first = np.unique(choice, return_index=True)[1]
        self._owner = first if owner is None else owner[first]
        self._settle(batch_size, min(block_size or batch_size, batch_size))

    def set_epoch(self, epoch: int) -> None:
        """Give the order of another epoch; the Trainer calls it, on resuming too."""
        self._epoch = epoch

    def __len__(self) -> int:
        return int(self._batch.max()) + 1

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self._seed, self._epoch))
        dealt = _deal(np.stack([self._owner, self._size]), rng)
        blocks = _members(self._block, dealt)
        batches = _members(self._batch, _deal(self._block_size[None], rng))
        for k in rng.permutation(len(batches)):
            choices = np.concatenate([blocks[block] for block in batches[k]])
            yield np.concatenate([self._rows[number] for number in choices]).tolist()

    def _settle(self, batch_size: int, block_size: int) -> None:
        """Block of each choice, and batch of each block, in a random but fixed arrangement."""
        rng = np.random.default_rng((self._seed, 2**32 - 1))
        self._block = _pack(self._size, block_size, rng, self._owner)
        self._block_size = np.bincount(self._block, self._size).astype(np.int64)
        self._batch = _pack(self._block_size, batch_size, rng)


def _pack(
    size: Int[np.ndarray, " items"],
    limit: int,
    rng: np.random.Generator,
    owner: Int[np.ndarray, " items"] | None = None,
) -> Int[np.ndarray, " items"]:
    """Number of the bin of each item, first fit in random order; bins hold one owner's items."""
    order = rng.permutation(len(size))
    owner = np.zeros_like(size) if owner is None else owner
    order = order[np.argsort(owner[order], kind="stable")]
    place = np.empty_like(size)
    room: dict[int, int] = {}
    count, last = 0, -1
    for item in order.tolist():
        if owner[item] != last:
            room, last = {}, owner[item]
        bin_ = next((k for k, left in room.items() if left >= size[item]), None)
        if bin_ is None:
            bin_, count = count, count + 1
            room[bin_] = limit
        room[bin_] -= int(size[item])
        if room[bin_] <= 0:
            del room[bin_]
        elif len(room) > _OPEN_BATCHES:
            del room[next(iter(room))]
        place[item] = bin_
    return place


def _deal(
    kind: Int[np.ndarray, "keys items"], rng: np.random.Generator
) -> Int[np.ndarray, " items"]:
    """Which item stands in each item's place: a random one of the same kind."""
    drawn = rng.permutation(kind.shape[1])
    dealt = np.empty(kind.shape[1], dtype=np.int64)
    dealt[np.lexsort(kind)] = drawn[np.lexsort(kind[:, drawn])]
    return dealt


def _members(
    place: Int[np.ndarray, " items"], item: Int[np.ndarray, " items"]
) -> list[Int[np.ndarray, " members"]]:
    """The items of each place."""
    return np.split(item[np.argsort(place, kind="stable")], np.bincount(place).cumsum()[:-1])
