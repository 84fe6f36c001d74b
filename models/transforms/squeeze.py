"""Trading resolution for channels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models.contracts import Bijection


class Squeeze(Bijection):
    """Each 2x2 block of a channel becomes four channels: [B, C, H, W] -> [B, 4C, H/2, W/2], a permutation (log-det 0).

    Channel order c, row, column, as in the released code of Glow (tfops.squeeze2d).
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(x.shape[0])

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(z, 2), z.new_zeros(z.shape[0])
