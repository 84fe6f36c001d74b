"""What evaluation need not make again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Made = TypeVar("Made")


class Kept(nn.Module):
    """``make()`` of the ``tensors()`` it uses and nothing else: what it made, kept in evaluation until one of them changes.

    In training, with gradients, in compiled graphs and under ``torch.func.vmap`` it is made in every call. Changes through
    ``tensor.data`` leave no trace: write to the tensor itself, under ``torch.no_grad()``.
    """

    def __init__(self):
        super().__init__()
        self._kept = None

    def forward(self, tensors: Callable[[], Sequence[Tensor]], make: Callable[[], Made]) -> Made:
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._kept = None
            return make()
        found = tensors()
        addresses = _addresses(found)
        if addresses is None:
            self._kept = None
            return make()
        # An alias has the tensor's version, which changes in place move on (fused optimizers' do not: hence train()); and while
        # it lives, no other storage (after .to(), in a copy of the module) can have its address.
        if self._kept is None or self._kept[0] != addresses or self._kept[1] != [alias._version for alias in self._kept[2]]:
            aliases = [tensor.detach() for tensor in found]
            self._kept = addresses, [alias._version for alias in aliases], aliases, make()
        return self._kept[3]

    def train(self, mode: bool = True) -> Kept:
        self._kept = None
        return super().train(mode)


def _addresses(tensors: Sequence[Tensor]) -> list[int] | None:
    try:
        return [tensor.data_ptr() for tensor in tensors]
    except RuntimeError:  # batched tensors have none
        return None
