"""CIFAR-10: 60,000 natural images, 3 x 32 x 32."""

from __future__ import annotations

import pickle

import numpy
import torch
from torch import Tensor

from datamodules import files
from datamodules.base import HeldOut, Split, horizontal_flip
from models.contracts import DataSpec


class CIFAR10(HeldOut):
    """50,000 / 10,000 images (Krizhevsky 2009); ``val_size`` of the training images, the last, are held out.

    ``flip`` mirrors training images at random. Test bits/dim are affected: state it with the number.
    """

    file_levels = 256
    origin = "www.cs.toronto.edu/~kriz/cifar.html, cifar-10-python.tar.gz (with data.download=true torchvision fetches it)"
    md5 = {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    }

    def __init__(
        self, spec: DataSpec, name: str, root: str, seed: int, batch_size: int, eval_batch_size: int, limit: int | None,
        val_size: int, flip: bool, download: bool,
    ):
        super().__init__(spec, name, root, seed, batch_size, eval_batch_size, limit, val_size)
        self.flip, self.download = flip, download

    def read(self, part: str) -> Split:
        if self.download:
            files.download(self.root, [f"cifar-10-batches-py/{name}" for name in self.md5], self._fetch)
        batches = [self._batch(name) for name in self.md5 if name.startswith("test") == (part == "test")]
        images = numpy.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = numpy.concatenate([batch["labels"] for batch in batches])
        return Split(torch.from_numpy(images), torch.from_numpy(labels).long())

    def _batch(self, name: str) -> dict:
        # the checksum is known to be the published one before anything is unpickled
        content = files.read(self.root, f"cifar-10-batches-py/{name}", f"md5:{self.md5[name]}", self.origin)
        return pickle.loads(content, encoding="latin1")

    def _fetch(self) -> None:
        from torchvision.datasets import CIFAR10

        CIFAR10(self.root, download=True)

    def augment(self, x: Tensor, random: torch.Generator) -> Tensor:
        return horizontal_flip(x, random) if self.flip else x
