"""ImageNet at 32 x 32 and 64 x 64: two archives of the same photographs whose numbers must never share a table."""

from __future__ import annotations

import io
import os
import pickle
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor

from datamodules import files
from datamodules.base import HeldOut, Split, frozen, horizontal_flip
from models.contracts import DataSpec


class Archive:
    """One published reduction of ImageNet; it lies in the folder ``imagenet32_LABEL`` of the data root."""

    label: str
    counts: dict[str, int]

    def origin(self, size: int) -> str:
        """Where it can be got, and how it must lie."""
        raise NotImplementedError

    def images(self, folder: Path, size: int, part: str) -> Iterator[tuple[numpy.ndarray, int | None]]:
        """(image uint8 [3, size, size], label or None) of the part "train" or "test", in the archive's order."""
        raise NotImplementedError


class Small(Archive):
    """van den Oord et al. 2016 (arXiv:1601.06759): PNG files, no labels, 1,281,149 / 49,999."""

    label = "small"
    counts = {"train": 1_281_149, "test": 49_999}

    def origin(self, size: int) -> str:
        return (
            f"van den Oord et al. 2016, train_{size}x{size}.tar and valid_{size}x{size}.tar, once at image-net.org/small and now "
            f"in torrents only: put them, packed or unpacked, into imagenet{size}_small"
        )

    def images(self, folder: Path, size: int, part: str) -> Iterator[tuple[numpy.ndarray, None]]:
        from PIL import Image

        stem = f"{'train' if part == 'train' else 'valid'}_{size}x{size}"
        path = files.locate(folder, stem if (folder / stem).is_dir() else f"{stem}.tar", self.origin(size))
        with files.parsing(path, self.origin(size)):
            for content in self._unpacked(path) if path.is_dir() else self._packed(path):
                yield numpy.asarray(Image.open(content).convert("RGB")).transpose(2, 0, 1), None

    def _unpacked(self, path: Path) -> Iterator[Path]:
        yield from sorted(path.glob("*.png"))

    def _packed(self, path: Path) -> Iterator[io.BytesIO]:
        with tarfile.open(path) as tar:
            for member in sorted((m for m in tar if m.name.endswith(".png")), key=lambda m: m.name):
                yield io.BytesIO(tar.extractfile(member).read())


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain containers and arrays and refuses all else: the batches have no checksum to trust them by."""

    def find_class(self, module: str, name: str):
        if (module.replace("numpy.core", "numpy._core"), name) in {
            ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"),
            ("numpy._core.numeric", "_frombuffer"),
        }:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} does not belong into a batch of images")


class Box(Archive):
    """Chrabaszcz et al. 2017 (arXiv:1707.08819): pickled batches, box-filtered, labels, 1,281,167 / 50,000."""

    label = "box"
    counts = {"train": 1_281_167, "test": 50_000}

    def origin(self, size: int) -> str:
        return (
            f"image-net.org/download-images after registration, Imagenet{size}_train*.zip and Imagenet{size}_val.zip "
            f"(Chrabaszcz et al. 2017): unzip train_data_batch_1 to 10 and val_data into imagenet{size}_box"
        )

    def images(self, folder: Path, size: int, part: str) -> Iterator[tuple[numpy.ndarray, int]]:
        for name in [f"train_data_batch_{k}" for k in range(1, 11)] if part == "train" else ["val_data"]:
            path = files.locate(folder, name, self.origin(size))
            with files.parsing(path, self.origin(size)), open(path, "rb") as file:
                batch = _ArraysOnly(file, encoding="latin1").load()
                images = batch["data"].reshape(-1, 3, size, size)
            yield from zip(images, (int(label) - 1 for label in batch["labels"]), strict=True)  # stored 1 to 1000


class ImageNet(HeldOut):
    """The one of ``archives`` that lies under ``root``, as a memory map; its label is added to the name of every number.

    On first use it is written as .npy files beside the archive, the training images in one fixed random order, so that
    the ``val_size`` held-out ones are a random sample. Archives have no published checksums: counts and shapes are checked.

    Args:
        archives: candidates; with more than one, exactly one may be there, and a line on stderr says which.
        flip: mirror training images at random.
    """

    file_levels = 256

    def __init__(
        self, spec: DataSpec, name: str, root: str, seed: int, batch_size: int, eval_batch_size: int, limit: int | None,
        val_size: int, archives: list[Archive], flip: bool,
    ):
        size, base = spec.shape[-1], Path(root).expanduser().absolute()
        found = [a for a in archives if (base / f"imagenet{size}_{a.label}").is_dir()]
        if len(archives) == 1:
            found = archives  # its absence is reported when it is read
        if not found:
            ways = "; or ".join(a.origin(size) for a in archives)
            raise ValueError(f"no ImageNet {size} x {size} under {base}: set data.root (or LOGPX_DATA), or get {ways}")
        if len(found) > 1:
            both = " and ".join(f"imagenet{size}_{a.label}" for a in found)
            raise ValueError(
                f"{both} both lie under {base}: say which you mean with data=imagenet{size}_{found[0].label} or "
                f"data=imagenet{size}_{found[1].label}; their numbers are not comparable"
            )
        self.archive, self.size, self.flip = found[0], size, flip
        super().__init__(spec, f"{name}_{self.archive.label}", root, seed, batch_size, eval_batch_size, limit, val_size)
        if len(archives) > 1:
            print(f"data: {name} is {self.name} here, found under {base}", file=sys.stderr)

    def read(self, part: str) -> Split:
        folder = self.root / f"imagenet{self.size}_{self.archive.label}"
        path, labels = folder / f"{part}.npy", folder / f"{part}_labels.npy"
        if not path.exists():
            if not folder.is_dir():
                raise ValueError(f"{folder} is missing: set data.root (or LOGPX_DATA), or get {self.archive.origin(self.size)}")
            with files.exclusive(folder):
                if not path.exists():
                    self._convert(folder, part, path, labels)
        with files.parsing(path, "the archive beside it (delete the .npy file and it is written again)"):
            images = numpy.load(path, mmap_mode="c")
            y = torch.from_numpy(numpy.load(labels)) if labels.exists() else None
        self._count(path, part, len(images))
        return Split(torch.from_numpy(images), y)

    def _count(self, path: Path, part: str, found: int) -> None:
        if found != self.archive.counts[part]:
            what = f"{found:,} {part} images, published {self.archive.counts[part]:,}"
            raise files.damaged(path, what, self.archive.origin(self.size))

    def _convert(self, folder: Path, part: str, path: Path, labels: Path) -> None:
        """Write the images, and then their labels, under temporary names that become ``path`` and ``labels`` when complete."""
        print(f"data: writing {path} once; this takes minutes", file=sys.stderr)
        count = self.archive.counts[part]
        rows = frozen(folder.name).permutation(count) if part == "train" else numpy.arange(count)
        partial = path.with_suffix(".partial")
        images = numpy.lib.format.open_memmap(partial, "w+", numpy.uint8, (count, 3, self.size, self.size))
        y, found = numpy.full(count, -1), 0
        for image, label in self.archive.images(folder, self.size, part):
            if found < count:
                images[rows[found]] = image
                y[rows[found]] = -1 if label is None else label
            found += 1
        self._count(folder, part, found)
        images.flush()
        if y.max() >= 0:
            numpy.save(labels, y)
        os.replace(partial, path)

    def augment(self, x: Tensor, random: torch.Generator) -> Tensor:
        return horizontal_flip(x, random) if self.flip else x
