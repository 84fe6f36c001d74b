"""OMNIGLOT at 28 x 28: the file of Burda et al., which the literature's numbers use, and a stand-in which they must not meet."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from datamodules import files
from datamodules.base import HeldOut, Split, frozen


class Omniglot(HeldOut):
    """24,345 / 8,070 images of probabilities, binarized anew in every batch (Burda et al. 2016, arXiv:1509.00519, section 5).

    Evaluation sees one draw that never changes. ``val_size`` training images, by a fixed permutation, are held out.
    """

    origin = "github.com/yburda/iwae, datasets/OMNIGLOT/chardata.mat"
    redrawn = True
    counts = {"train": 24_345, "test": 8_070}

    def read(self, part: str) -> Split:
        from scipy.io import loadmat

        path = files.locate(self.root, "OMNIGLOT/chardata.mat", self.origin)
        with files.parsing(path, self.origin):
            stored = loadmat(path)["data" if part == "train" else "testdata"]
        if stored.shape != (784, self.counts[part]) or not 0 <= stored.min() <= stored.max() <= 1:
            raise files.damaged(path, f"{part} is {stored.shape}, published (784, {self.counts[part]}) in [0, 1]", self.origin)
        images = stored.T.reshape(-1, 1, 28, 28).swapaxes(2, 3)  # column-major
        if part == "train":
            images = images[frozen("omniglot").permutation(len(images))]
        return Split(torch.from_numpy(numpy.ascontiguousarray(images, dtype=numpy.float32)))

    def augment(self, x: Tensor, random: torch.Generator) -> Tensor:
        return (torch.rand(x.shape, generator=random) < x).to(torch.uint8)

    def settle(self, x: Tensor, split: str) -> Tensor:
        uniform = frozen("binarize", "OMNIGLOT", split).random_sample(tuple(x.shape))
        return torch.from_numpy((uniform < x.numpy()).astype(numpy.uint8))


class Omniglot28NN(HeldOut):
    """Lake et al. 2015's drawings reduced to 28 x 28 hard bits by nearest neighbour: another data set than ``Omniglot``.

    Training: the background set, 964 characters of 20 drawings; test: the evaluation set, 659 characters. Characters in
    the order of their numbers, so that the held-out ones are the last of the background set.
    """

    origin = "the drawings of github.com/brendenlake/omniglot, reduced: `images` [1623, 20, 28, 28] uint8, 1 is ink"
    sha256 = "0af7d7da73fce8b77233b6df35f73ca7db62eb28e5902efd06b4c909ba95c066"

    def read(self, part: str) -> Split:
        path = files.locate(self.root, "Omniglot28nn/omniglot_28x28_nearest.npz", self.origin)
        with files.parsing(path, self.origin):
            images = numpy.load(path)["images"]
        files.verify(images.tobytes(), f"sha256:{self.sha256}", path, self.origin)
        characters = images[:964] if part == "train" else images[964:]
        return Split(torch.from_numpy(characters.reshape(-1, 1, 28, 28)))
