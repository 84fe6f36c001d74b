"""The statically binarized MNIST that is a benchmark of its own, in three text files."""

import gzip
import zlib

import torch

from datamodules import files
from datamodules.base import DataModule, Split


class StaticMNIST(DataModule):
    """50,000 / 10,000 / 10,000 binary images without labels (Larochelle & Murray 2011, after Salakhutdinov & Murray 2008).

    Train and validation are a random permutation of MNIST's training images; the test file is sorted by digit.
    """

    origin = "www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist (binarized_mnist_{train,valid,test}.amat)"
    sha256 = {
        "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
        "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
        "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
    }

    def load(self, split: str) -> Split:
        part = "valid" if split == "val" else split
        name = f"BinarizedMNIST/binarized_mnist_{part}.amat"
        packed = (self.root / f"{name}.gz").exists()
        path = files.locate(self.root, f"{name}.gz" if packed else name, self.origin)
        text = path.read_bytes()
        if packed:
            try:
                text = gzip.decompress(text)
            except (OSError, EOFError, zlib.error) as error:
                raise files.damaged(path, str(error), self.origin) from error
        files.verify(text, f"sha256:{self.sha256[part]}", path, self.origin)
        digits = torch.frombuffer(bytearray(text), dtype=torch.uint8)[::2]  # "0 1 0 ... 1\n": a digit, then a separator
        return Split((digits - ord("0")).reshape(-1, 1, 28, 28))
