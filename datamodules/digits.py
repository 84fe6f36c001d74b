"""The 8 x 8 handwritten digits that scikit-learn carries: 1,797 images of 17 levels, no file to find."""

from functools import cached_property

import torch

from datamodules.base import DataModule, Split, frozen


class Digits(DataModule):
    """1,293 / 144 / 360 by one permutation that never changes (Alpaydin & Kaynak 1998, UCI optdigits, its test part)."""

    @cached_property
    def _shuffled(self) -> Split:
        from sklearn.datasets import load_digits

        data = load_digits()
        rows = frozen("digits").permutation(len(data.images))
        return Split(torch.tensor(data.images[rows]).to(torch.uint8).unsqueeze(1), torch.tensor(data.target[rows]).long())

    def load(self, split: str) -> Split:
        return self._shuffled[{"test": slice(360), "val": slice(360, 504), "train": slice(504, None)}[split]]
