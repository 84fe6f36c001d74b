"""Activation normalisation and the 1x1 convolution after it, as one matrix product."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from models.contracts import Bijection
from models.transforms.actnorm import ActNorm, over_positions
from models.transforms.conv1x1 import Conv1x1, inverse, multiply
from models.transforms.folding import Foldable, Folded, unstack


class NormedConv1x1(Bijection, Foldable):
    """z = W (x + bias) exp(log_scale) at each position: what ``norm`` and then ``conv`` do, in one pass over x.

    Both belong to the Sequential that pairs them. Folded: matrix [C, C], shift [C] and the log-det at one position.
    """

    def __init__(self, norm: ActNorm, conv: Conv1x1):
        super().__init__()
        self.norm, self.conv = norm, conv

    def likeness(self) -> Hashable:
        return NormedConv1x1, self.conv.factors.shape

    @staticmethod
    def fold(parts: Sequence[NormedConv1x1]) -> list[Folded]:
        with torch.autocast(parts[0].conv.factors.device.type, enabled=False):
            scale, shift, log_det = ActNorm.coefficients([part.norm for part in parts])
            weight, conv_log_det = Conv1x1.coefficients([part.conv for part in parts])
            return unstack(weight * scale[:, None], (weight @ shift[..., None]).squeeze(2), log_det + conv_log_det)

    @staticmethod
    def fold_inverse(parts: Sequence[NormedConv1x1], folded: list[Folded]) -> list[Folded]:
        matrices, _, log_dets = (torch.stack(tensors) for tensors in zip(*folded))
        return unstack(inverse(matrices), -torch.stack([part.norm.bias for part in parts]), -log_dets)

    def forward(self, x: Tensor, context: Tensor | None = None, folded: Folded | None = None) -> tuple[Tensor, Tensor]:
        if self.norm.initializing:
            x, contribution = self.norm(x)
            z, log_det = self.conv(x)
            return z, contribution + log_det
        return self._apply(x, *(folded or self.fold([self])[0]))

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None, folded: Folded | None = None) -> tuple[Tensor, Tensor]:
        return self._apply(z, *(folded or self.fold_inverse([self], self.fold([self]))[0]))

    @staticmethod
    def _apply(x: Tensor, matrix: Tensor, shift: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            return multiply(matrix, x, shift), over_positions(log_det, x)
