"""MNIST and Fashion-MNIST, and the three ways MNIST becomes binary. Their likelihoods are those of four different data sets."""

from __future__ import annotations

import gzip

import numpy
import torch
from torch import Tensor

from datamodules import files
from datamodules.base import HeldOut, Split, frozen
from models.contracts import DataSpec


class MNIST(HeldOut):
    """28 x 28 images of 256 levels (LeCun et al. 1998); ``val_size`` of the 60,000 training images, the last, are held out."""

    file_levels = 256
    published = "MNIST"
    origin = "yann.lecun.com/exdb/mnist (with data.download=true torchvision fetches it)"
    md5 = {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    }

    def __init__(
        self, spec: DataSpec, name: str, root: str, seed: int, batch_size: int, eval_batch_size: int, limit: int | None,
        val_size: int, download: bool,
    ):
        super().__init__(spec, name, root, seed, batch_size, eval_batch_size, limit, val_size)
        self.download = download

    def read(self, part: str) -> Split:
        if self.download:
            files.download(self.root, [f"{self.published}/raw/{name}" for name in self.md5], self._fetch)
        prefix = "t10k" if part == "test" else "train"
        images = self._idx(f"{prefix}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
        return Split(images, self._idx(f"{prefix}-labels-idx1-ubyte.gz", header=8).long())

    def _idx(self, name: str, header: int) -> Tensor:
        """The bytes of an IDX file [N] after its header."""
        packed = files.read(self.root, f"{self.published}/raw/{name}", f"md5:{self.md5[name]}", self.origin)
        return torch.frombuffer(bytearray(gzip.decompress(packed)), dtype=torch.uint8)[header:]

    def _fetch(self) -> None:
        from torchvision import datasets

        datasets.MNIST(self.root, download=True)


class FashionMNIST(MNIST):
    """MNIST's drop-in of clothes (Xiao et al. 2017, arXiv:1708.07747)."""

    published = "FashionMNIST"
    origin = "github.com/zalandoresearch/fashion-mnist (with data.download=true torchvision fetches it)"
    md5 = {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    }

    def _fetch(self) -> None:
        from torchvision import datasets

        datasets.FashionMNIST(self.root, download=True)


class ThresholdedMNIST(MNIST):
    """MNIST made binary once by a threshold: x = 1 where the pixel is at least 128."""

    file_levels = None

    def read(self, part: str) -> Split:
        data = super().read(part)
        return Split((data.x >= 128).to(torch.uint8), data.y)


class DynamicMNIST(MNIST):
    """MNIST binarized anew in every batch, x ~ Bernoulli(pixel / 255) (Burda et al. 2016, arXiv:1509.00519, section 5).

    Evaluation sees one draw that never changes, so that two evaluations agree.
    """

    file_levels = None
    redrawn = True

    def augment(self, x: Tensor, random: torch.Generator) -> Tensor:
        # r uniform on 0..254 is below the pixel with probability pixel / 255, exactly
        return (torch.randint(0, 255, x.shape, generator=random, dtype=torch.uint8) < x).to(torch.uint8)

    def settle(self, x: Tensor, split: str) -> Tensor:
        r = frozen("binarize", self.published, split).randint(0, 255, tuple(x.shape), dtype=numpy.uint8)
        return (torch.from_numpy(r) < x).to(torch.uint8)
