"""Frey faces: 1,965 frames of one face, 28 x 20, 256 levels."""

from __future__ import annotations

import numpy
import torch

from datamodules import files
from datamodules.base import DataModule, Split, frozen
from models.contracts import DataSpec


class FreyFaces(DataModule):
    """1,565 / 200 / 200 after a shuffle (Tomczak & Welling 2018, arXiv:1705.07120; van den Berg et al. 2018, arXiv:1803.05649).

    Neighbouring frames are near duplicates, so the numbers depend on the shuffle: report several ``split_seed``.
    The checksum is of the images, since the container circulates in several forms.
    """

    path = "FreyFaces/frey_rawface.mat"
    sha256 = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"
    origin = "cs.nyu.edu/~roweis/data.html, frey_rawface.mat"

    def __init__(
        self, spec: DataSpec, name: str, root: str, seed: int, batch_size: int, eval_batch_size: int, limit: int | None,
        split_seed: int,
    ):
        super().__init__(spec, name, root, seed, batch_size, eval_batch_size, limit)
        self.split_seed = split_seed

    def load(self, split: str) -> Split:
        from scipy.io import loadmat

        path = files.locate(self.root, self.path, self.origin)
        with files.parsing(path, self.origin):
            images = numpy.ascontiguousarray(loadmat(path)["ff"].T)
        files.verify(images.tobytes(), f"sha256:{self.sha256}", path, self.origin)
        rows = frozen("freyfaces", self.split_seed).permutation(len(images))
        part = {"train": slice(1565), "val": slice(1565, 1765), "test": slice(1765, None)}[split]
        return Split(torch.from_numpy(images[rows[part]].reshape(-1, 1, 28, 20)))
