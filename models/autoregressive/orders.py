"""The orders in which an autoregressive model visits the pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.contracts import DataSpec
from models.seeding import generator


class Order(nn.Module):
    """Members 0..num-1 of an ensemble, each an order of the pixels (and the connectivity of a net that draws one).

    ``shape`` (C, H, W) is the image as the net sees it: position i, in raster order, holds pixel ``permutation(member)[i]`` of
    the data. At evaluation the probabilities of all ``num`` members are averaged. A training step uses one of them, or with
    ``resample`` a new one (Germain et al. 2015, arXiv:1502.03509, section 4).
    """

    def __init__(self, spec: DataSpec, num: int, resample: bool):
        super().__init__()
        if num < 1:
            raise ValueError(f"order.num must be at least 1; got {num}")
        self.spec, self.shape = spec, spec.shape
        self.num, self.resample = num, resample

    def permutation(self, member: int) -> Tensor | None:
        """[H W], or None for the data's own raster order."""
        raise NotImplementedError

    def draw(self) -> int:
        """A member for a training step; from torch's global generator where there is a choice."""
        if self.resample:
            return int(torch.randint(2**31, ())) + self.num
        return int(torch.randint(self.num, ())) if self.num > 1 else 0

    @staticmethod
    def arrange(x: Tensor, permutation: Tensor | None, shape: tuple[int, int, int]) -> Tensor:
        """The data's images [B, ., H, W] as the net sees them."""
        if permutation is None:
            return x
        return x.flatten(2)[:, :, permutation.to(x.device)].unflatten(2, shape[1:])

    @staticmethod
    def restore(x: Tensor, permutation: Tensor | None, shape: tuple[int, int, int]) -> Tensor:
        """The inverse of ``arrange``, to the data's ``shape``."""
        if permutation is None:
            return x
        return x.flatten(2)[:, :, permutation.argsort().to(x.device)].unflatten(2, shape[1:])


class Raster(Order):
    """Row by row from the top, each row from the left."""

    def permutation(self, member: int) -> None:
        return None


class Column(Order):
    """Column by column from the left, each column from the top: the net sees the transposed image."""

    def __init__(self, spec: DataSpec, num: int, resample: bool):
        super().__init__(spec, num, resample)
        channels, height, width = spec.shape
        self.shape = (channels, width, height)
        self.register_buffer("places", torch.arange(height * width).view(height, width).T.flatten(), persistent=False)

    def permutation(self, member: int) -> Tensor:
        return self.places


class Random(Order):
    """Member m visits the pixels in a random order that is a function of ``seed`` and m alone."""

    def __init__(self, spec: DataSpec, num: int, resample: bool, seed: int):
        super().__init__(spec, num, resample)
        self.seed = seed

    def permutation(self, member: int) -> Tensor:
        _, height, width = self.spec.shape
        return torch.randperm(height * width, generator=generator("order", self.seed, member))
