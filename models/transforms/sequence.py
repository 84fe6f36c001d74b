"""Bijections one after another, as one bijection."""

from __future__ import annotations

from functools import reduce
from operator import or_

import torch
from torch import Tensor, nn

from models.contracts import Bijection, Kind
from models.transforms.actnorm import ActNorm
from models.transforms.conv1x1 import Conv1x1
from models.transforms.folding import Folding
from models.transforms.fused import NormedConv1x1
from models.transforms.recompute import recomputed, run


class Sequential(Bijection):
    """z = (T_k o ... o T_1)(x); the contributions add up. Raises TypeError for a part that is not a Bijection.

    An ActNorm runs as one with the Conv1x1 after it, and like parts fold together (see ``Foldable``). With ``recompute``
    training keeps none of the parts' activations: the backward pass computes them again, from z, by the inverse (see
    ``recomputed``). Parts with dropout raise ValueError then.
    """

    def __init__(self, parts: list[Bijection], recompute: bool = False):
        super().__init__()
        self.recompute = recompute
        steps: list[Bijection] = []
        for part in parts:
            if not isinstance(part, Bijection):
                raise TypeError(f"Sequential chains bijections; {type(part).__name__} is none (a Flow takes any Transform)")
            if isinstance(part, Conv1x1) and steps and isinstance(steps[-1], ActNorm):
                part = NormedConv1x1(steps.pop(), part)
            steps.append(part)
        self.parts = nn.ModuleList(parts)
        self._folding = Folding(steps)
        if recompute and any(isinstance(part, nn.Dropout) and part.p > 0 for part in self.modules()):
            raise ValueError("recompute=true runs a net twice, with different dropout each time: set dropout to 0 or recompute to false")

    @property
    def kind(self) -> Kind:
        """That of all parts together: a continuous flow's trace may be an estimate."""
        return reduce(or_, (part.kind for part in self.parts), Kind.EXACT)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        folded = self._folding.fold()
        if self.recompute and torch.is_grad_enabled():
            return recomputed(self._folding, folded, x, context)
        return run(self._folding.parts, folded, x, context)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_dets, folded = [], self._folding.fold_inverse()
        for part, last in zip(reversed(self._folding.parts), reversed(folded), strict=True):
            z, log_det = part.inverse_and_log_det(z, context, *last)
            log_dets.append(log_det)
        return z, torch.stack(log_dets).sum(0)
