"""What every data module is: three splits of integers, one training order for all ranks, each example evaluated once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy
import torch
from torch import Tensor

from models.contracts import DataSpec
from models.seeding import generator, key

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Examples ``x`` [N, C, H, W] (uint8; float for continuous data), in memory or memory-mapped, and labels ``y`` int64 [N]."""

    x: Tensor
    y: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> Split:
        return Split(self.x[rows], None if self.y is None else self.y[rows])

    def to(self, device: torch.device | str) -> tuple[Tensor, Tensor | None]:
        """(x, y) on the device."""
        return self.x.to(device), None if self.y is None else self.y.to(device)


def frozen(*parts: int | str) -> numpy.random.RandomState:
    """A random stream for what a number rests on (splits, fixed binarizations): NumPy never changes RandomState's streams."""
    return numpy.random.RandomState(key(*parts) & 0xFFFFFFFF)


def horizontal_flip(x: Tensor, random: torch.Generator) -> Tensor:
    """Mirror each image [B, C, H, W] with probability 1/2."""
    flips = torch.randint(0, 2, (len(x), 1, 1, 1), generator=random, dtype=torch.bool)
    return torch.where(flips, x.flip(-1), x)


class DataModule:
    """Splits of one data set and the batches drawn from them.

    A subclass answers ``load(split)`` from its files and may change training batches in ``augment``. The order of
    epoch e is a function of (seed, e) alone and augmentation of (seed, batch index), both over the batch of all ranks:
    a run that starts in the middle, or on another number of ranks, sees the same batches.

    Args:
        spec: what one example is. With ``classes: null`` the labels are dropped. Fewer levels than the files hold (a
            power of two, Glow's "5-bit": 32) keep the upper bits, and the name says so: ``cifar10_5bit``.
        name: how results are labelled; sets whose numbers must not share a table have different names.
        root: folder of the files. seed: key of order and augmentation (not of the splits).
        batch_size: training batch over all ranks together. eval_batch_size: examples in one evaluation batch.
        limit: at most so many examples of each split, a fixed random subset; null for all.
    """

    file_levels: int | None = None
    """Number of levels in the files, where a spec may ask for fewer."""

    redrawn: bool = False
    """Whether ``augment`` and ``settle`` draw the integers from what is stored (dynamic binarization)."""

    def __init__(
        self, spec: DataSpec, name: str, root: str, seed: int, batch_size: int, eval_batch_size: int, limit: int | None
    ):
        for what, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size), ("limit", limit)):
            if value is not None and value < 1:
                raise ValueError(f"data.{what} must be at least 1; got {value}")
        self.spec, self.name, self.root, self.seed = spec, name, Path(root).expanduser().absolute(), seed
        self.batch_size, self.eval_batch_size, self.limit = batch_size, eval_batch_size, limit
        if self._dropped_levels > 1:
            self.name = f"{name}_{(spec.levels - 1).bit_length()}bit"
        self._sources: dict[str, Split] = {}
        self._splits: dict[str, Split] = {}
        self._checksums: dict[str, str] = {}
        self._order: tuple[int, Tensor] | None = None

    def load(self, split: str) -> Split:
        """The stored examples of ``split``; an empty ``val`` means that none is held out."""
        raise NotImplementedError

    def augment(self, x: Tensor, random: torch.Generator) -> Tensor:
        """Training batch [B, C, H, W] of all ranks to what the model sees, integers to integers, all noise from ``random``."""
        return x

    def settle(self, x: Tensor, split: str) -> Tensor:
        """Stored examples to what evaluation sees: where ``augment`` draws anew, one draw fixed for ever."""
        return x

    @cached_property
    def _dropped_levels(self) -> int:
        """How many levels of the files make one level of the spec."""
        if self.file_levels is None or self.spec.levels is None or self.spec.levels == self.file_levels:
            return 1
        if self.file_levels % self.spec.levels or self.spec.levels & (self.spec.levels - 1):
            raise ValueError(
                f"the files of this data set hold {self.file_levels} levels; data.spec.levels must be a power of two "
                f"up to that, not {self.spec.levels}"
            )
        return self.file_levels // self.spec.levels

    def _source(self, split: str) -> Split:
        """What ``load`` gave, checked against the spec and limited."""
        if split not in SPLITS:
            raise ValueError(f"a split is one of {', '.join(SPLITS)}; got {split!r}")
        if split not in self._sources:
            source = self.load(split)
            if tuple(source.x.shape[1:]) != self.spec.shape:
                found = tuple(source.x.shape[1:])
                raise ValueError(f"{self.name} holds images {found} but data.spec.shape says {self.spec.shape}")
            if self.spec.classes is None:
                source = Split(source.x)
            elif source.y is None:
                raise ValueError(f"{self.name} has no labels: set data.spec.classes=null")
            if self.limit is not None and len(source) > self.limit:
                rows = frozen("limit", split, len(source)).permutation(len(source))[: self.limit]
                source = source[torch.from_numpy(numpy.sort(rows))]
            if self._dropped_levels > 1:
                source = Split(source.x // self._dropped_levels, source.y)
            levels = self.spec.levels
            if levels is not None and levels < 256 and not self.redrawn and len(source) and source.x.max() >= levels:
                raise ValueError(f"{self.name} holds level {source.x.max()} but data.spec.levels is {levels}")
            self._sources[split] = source
        return self._sources[split]

    def split(self, split: str) -> Split:
        """The examples of ``train``, ``val`` or ``test`` as evaluation sees them, without augmentation."""
        if split not in self._splits:
            source = self._source(split)
            self._splits[split] = Split(self.settle(source.x, split), source.y)
        return self._splits[split]

    def num_examples(self, split: str) -> int:
        return len(self._source(split))

    def checksum(self, split: str) -> str:
        """SHA-256 over the spec, the images and the labels of ``self.split(split)``: equal means the same evaluation data."""
        if split not in self._checksums:
            data = self.split(split)
            digest = hashlib.sha256(f"{self.spec.shape} {self.spec.levels} {self.spec.classes}\n".encode())
            for part in (data.x, data.y):
                if part is not None:
                    digest.update(numpy.ascontiguousarray(part.numpy()))
            self._checksums[split] = digest.hexdigest()
        return self._checksums[split]

    @property
    def batches_per_epoch(self) -> int:
        """Whole training batches in one pass; the incomplete one is dropped."""
        count = self.num_examples("train") // self.batch_size
        if count == 0:
            raise ValueError(
                f"data.batch_size={self.batch_size} is more than the {self.num_examples('train')} training examples of "
                f"{self.name}: set a smaller data.batch_size"
            )
        return count

    def _rows(self, epoch: int) -> Tensor:
        """The order of one epoch: a permutation of the training examples [N]."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, torch.randperm(self.num_examples("train"), generator=generator("order", self.seed, epoch))
        return self._order[1]

    def train_batches(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor | None]]:
        """This rank's part (x [b, C, H, W], y [b] or None) of the batches ``start`` to ``stop - 1`` since training began.

        The ranks' parts, one after the other, are the batch of one rank. Raises ValueError if the batch does not
        divide by the number of ranks or is larger than the training split.
        """
        if self.batch_size % world:
            raise ValueError(
                f"data.batch_size={self.batch_size} (over all ranks) does not divide by {world} ranks: "
                f"choose a multiple of {world}"
            )
        part = self.batch_size // world
        return self._train_batches(range(start, stop), self.batches_per_epoch, slice(rank * part, (rank + 1) * part))

    def _train_batches(self, indices: range, per_epoch: int, mine: slice) -> Iterator[tuple[Tensor, Tensor | None]]:
        source = self._source("train")
        for index in indices:
            epoch, batch = divmod(index, per_epoch)
            rows = self._rows(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
            x = self.augment(source.x.index_select(0, rows), generator("augment", self.seed, index))[mine]
            yield x, None if source.y is None else source.y[rows[mine]]

    def eval_batches(
        self, split: str, rank: int = 0, world: int = 1, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """(index [b], x [b, C, H, W], y [b] or None), each example exactly once over all ranks; an empty split gives nothing.

        Batch k of the split goes to rank k modulo ``world``, so a batch holds the same examples on any number of ranks.
        """
        data, size = self.split(split), batch_size or self.eval_batch_size
        for start in range(rank * size, len(data), world * size):
            part = data[start : start + size]
            yield torch.arange(start, start + len(part)), part.x, part.y


class HeldOut(DataModule):
    """A data set published in a training and a test part: the last ``val_size`` training examples become ``val``.

    With ``val_size=0`` all are trained on and ``val`` is empty: there is nothing to validate or select on.
    """

    def __init__(
        self, spec: DataSpec, name: str, root: str, seed: int, batch_size: int, eval_batch_size: int, limit: int | None,
        val_size: int,
    ):
        super().__init__(spec, name, root, seed, batch_size, eval_batch_size, limit)
        self.val_size = val_size

    def read(self, part: str) -> Split:
        """All examples of the published part, "train" or "test"."""
        raise NotImplementedError

    @cached_property
    def _training(self) -> Split:
        return self.read("train")

    def load(self, split: str) -> Split:
        if split == "test":
            return self.read("test")
        full = self._training
        if not 0 <= self.val_size < len(full):
            raise ValueError(f"data.val_size must be 0 to {len(full) - 1} for {self.name}; got {self.val_size}")
        cut = len(full) - self.val_size
        return full[:cut] if split == "train" else full[cut:]
