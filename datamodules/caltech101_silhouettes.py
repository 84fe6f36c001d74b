"""Caltech-101 Silhouettes: outlines of objects, 28 x 28 bits."""

import io

import numpy
import torch

from datamodules import files
from datamodules.base import DataModule, Split


class Caltech101Silhouettes(DataModule):
    """4,100 / 2,264 / 2,307 as published, split 1 (Marlin et al. 2010).

    The file has object = 0 and stores columns first; here the object is 1 and upright, as in published VAE code.
    """

    path = "Caltech101Silhouettes/caltech101_silhouettes_28_split1.mat"
    md5 = "4483e9c14b188fd09937f9ea6f9ea777"
    origin = "people.cs.umass.edu/~marlin/data.shtml, caltech101_silhouettes_28_split1.mat"

    def load(self, split: str) -> Split:
        from scipy.io import loadmat

        data = loadmat(io.BytesIO(files.read(self.root, self.path, f"md5:{self.md5}", self.origin)))
        images = 1 - data[f"{split}_data"].reshape(-1, 1, 28, 28).swapaxes(2, 3)
        labels = data[f"{split}_labels"].reshape(-1).astype(numpy.int64) - 1
        return Split(torch.from_numpy(numpy.ascontiguousarray(images)), torch.from_numpy(labels))
