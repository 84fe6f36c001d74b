"""SVHN: street view house numbers, cropped digits, 3 x 32 x 32."""

from __future__ import annotations

import io

import numpy
import torch

from datamodules import files
from datamodules.base import HeldOut, Split
from models.contracts import DataSpec


class SVHN(HeldOut):
    """73,257 / 26,032 images (Netzer et al. 2011), without the 531,131 extra ones; the last ``val_size`` are held out."""

    file_levels = 256
    origin = "ufldl.stanford.edu/housenumbers, {train,test}_32x32.mat (with data.download=true torchvision fetches them)"
    md5 = {
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    }

    def __init__(
        self, spec: DataSpec, name: str, root: str, seed: int, batch_size: int, eval_batch_size: int, limit: int | None,
        val_size: int, download: bool,
    ):
        super().__init__(spec, name, root, seed, batch_size, eval_batch_size, limit, val_size)
        self.download = download

    def read(self, part: str) -> Split:
        from scipy.io import loadmat

        if self.download:
            files.download(self.root, [f"SVHN/{name}" for name in self.md5], self._fetch)
        name = f"{part}_32x32.mat"
        data = loadmat(io.BytesIO(files.read(self.root, f"SVHN/{name}", f"md5:{self.md5[name]}", self.origin)))
        images = numpy.ascontiguousarray(data["X"].transpose(3, 2, 0, 1))  # stored [H, W, C, N]
        return Split(torch.from_numpy(images), torch.from_numpy(data["y"].reshape(-1) % 10).long())  # the digit 0 is stored as 10

    def _fetch(self) -> None:
        from torchvision import datasets

        for split in ("train", "test"):
            datasets.SVHN(self.root / "SVHN", split=split, download=True)
