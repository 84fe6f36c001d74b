"""The absolute value: a model of what is symmetric."""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import sum_event
from models.distributions.normal import full_precision
from models.transforms.surjection import Surjection


class Absolute(Surjection):
    """z = |x| in the first ``num`` channels (None: in all) of [B, C, ...], contribution sum log p(sign | z).

    Nielsen et al. 2020 (arXiv:2007.02731), sec. 3.2 and table 3. Signs are fair, log 1/2 each, or with logits
    ``classifier(channels, num)`` of z. The residual is the signs, +-1. What comes after must be a density over z >= 0, as a Box
    is; a z below 0 is decoded as -z. ValueError for a ``num`` that is no number of channels.
    """

    term = "sign"

    def __init__(self, channels: int, num: int | None, classifier: Callable[[int, int], nn.Module] | None):
        super().__init__()
        self.kept, self.num = channels, channels if num is None else num
        if not 1 <= self.num <= channels:
            raise ValueError(f"num must be 1 to the number of channels, {channels}, or null for all; got {num}")
        self.classifier = None if classifier is None else classifier(channels, self.num)
        self.reparameterised = classifier is None

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, signs = self.encode(x)
        if self.classifier is None:
            return z, z.new_full((len(z),), -log(2) * signs[0].numel())
        return z, sum_event(F.logsigmoid(signs * full_precision(self.classifier(z))))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        folded, rest = x[:, : self.num], x[:, self.num :]
        return torch.cat([folded.abs(), rest], 1), torch.where(folded < 0, -1.0, 1.0).to(x.dtype)

    def decode(self, z: Tensor, residual: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        folded, rest = z[:, : self.num], z[:, self.num :]
        if residual is None:
            logits = torch.zeros_like(folded) if self.classifier is None else full_precision(self.classifier(z))
            residual = logits + torch.logit(torch.rand_like(logits))
        return torch.cat([torch.where(residual < 0, -folded.abs(), folded.abs()), rest], 1)
