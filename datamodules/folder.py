"""A user's own images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy
import torch
from torch import Tensor

from datamodules.base import DataModule, Split, horizontal_flip
from models.contracts import DataSpec

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class ImageFolder(DataModule):
    """All images below a folder, cropped to the middle and reduced to ``data.spec.shape`` (Lanczos), kept in memory.

    A file belongs to test, val or train by a hash of its path below the folder, so that adding images moves none.
    With ``data.spec.classes=N`` its N sub-folders, sorted, are the labels.

    Args:
        path: the folder, absolute or below ``root``. val_fraction, test_fraction: expected share of each split.
        flip: mirror training images at random.
    """

    file_levels = 256

    def __init__(
        self, spec: DataSpec, name: str, root: str, seed: int, batch_size: int, eval_batch_size: int, limit: int | None,
        path: str, val_fraction: float, test_fraction: float, flip: bool,
    ):
        super().__init__(spec, name, root, seed, batch_size, eval_batch_size, limit)
        if spec.shape[0] not in (1, 3):
            raise ValueError(f"images of a folder have 1 channel (grey) or 3 (RGB); data.spec.shape asks for {spec.shape[0]}")
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ValueError("data.val_fraction and data.test_fraction must be at least 0 and leave some images to train on")
        self.path = self.root / Path(path).expanduser()
        self.val_fraction, self.test_fraction, self.flip = val_fraction, test_fraction, flip

    def load(self, split: str) -> Split:
        files = sorted(file for file in self.path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"no image under {self.path}: set data.path to a folder of images (absolute or below data.root)")
        chosen = [file for file in files if self._split_of(file) == split]
        images = numpy.zeros((len(chosen), *self.spec.shape), numpy.uint8)
        for row, file in enumerate(chosen):
            images[row] = self._image(file)
        return Split(torch.from_numpy(images), self._labels(files, chosen) if self.spec.classes else None)

    def _split_of(self, file: Path) -> str:
        digest = hashlib.sha256(file.relative_to(self.path).as_posix().encode()).digest()
        u = int.from_bytes(digest[:8], "big") / 2**64
        return "test" if u < self.test_fraction else "val" if u < self.test_fraction + self.val_fraction else "train"

    def _image(self, file: Path) -> numpy.ndarray:
        from PIL import Image, ImageOps

        channels, height, width = self.spec.shape
        try:
            with Image.open(file) as image:
                fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.LANCZOS)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{file} is not a readable image ({error}): remove or replace it") from error
        return numpy.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)

    def _labels(self, files: list[Path], chosen: list[Path]) -> Tensor:
        names = sorted({file.relative_to(self.path).parts[0] for file in files if file.parent != self.path})
        if len(names) != self.spec.classes or any(file.parent == self.path for file in files):
            raise ValueError(
                f"data.spec.classes={self.spec.classes}, but {self.path} has {len(names)} sub-folders with images"
                + (" and images beside them" if any(file.parent == self.path for file in files) else "")
                + ": labels need one sub-folder each, or set data.spec.classes=null"
            )
        return torch.tensor([names.index(file.relative_to(self.path).parts[0]) for file in chosen], dtype=torch.int64)

    def augment(self, x: Tensor, random: torch.Generator) -> Tensor:
        return horizontal_flip(x, random) if self.flip else x
