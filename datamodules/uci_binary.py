"""Binary vectors of the UCI repository, as the NADE and MADE papers use them."""

from __future__ import annotations

import numpy
import torch

from datamodules import files
from datamodules.base import DataModule, Split
from models.contracts import DataSpec


class UCIBinary(DataModule):
    """The three arrays ``train_data``, ``valid_data``, ``test_data`` [N, D] of an .npz file, as images [1, 1, D].

    Args:
        file: its path below ``root``.
        sha256: of the bytes of the three arrays in that order.
    """

    origin = "github.com/mgermain/MADE, datasets"

    def __init__(
        self, spec: DataSpec, name: str, root: str, seed: int, batch_size: int, eval_batch_size: int, limit: int | None,
        file: str, sha256: str,
    ):
        super().__init__(spec, name, root, seed, batch_size, eval_batch_size, limit)
        self.file, self.sha256 = file, sha256

    def load(self, split: str) -> Split:
        path = files.locate(self.root, self.file, self.origin)
        with files.parsing(path, self.origin):
            with numpy.load(path) as stored:
                parts = [stored[f"{part}_data"].astype(numpy.uint8) for part in ("train", "valid", "test")]
        files.verify(b"".join(part.tobytes() for part in parts), f"sha256:{self.sha256}", path, self.origin)
        rows = parts[("train", "val", "test").index(split)]
        return Split(torch.from_numpy(rows).unsqueeze(1).unsqueeze(1))
