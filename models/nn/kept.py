"""What evaluation need not make again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Made = TypeVar("Made")


class Kept(nn.Module):
    """Called with ``tensors`` and ``make()``, which uses nothing else: what it made, kept in evaluation until one of them changes.

    In training, with gradients and in compiled graphs it is made in every call.
    """

    def __init__(self):
        super().__init__()
        self._kept = None

    def forward(self, tensors: Sequence[Tensor], make: Callable[[], Made]) -> Made:
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self._kept = None
            return make()
        if self._kept is None or not self._current(tensors):
            aliases = [tensor.detach() for tensor in tensors]
            self._kept = aliases, [alias._version for alias in aliases], make()
        return self._kept[2]

    def _current(self, tensors: Sequence[Tensor]) -> bool:
        # An alias has the tensor's version, which changes in place move on (fused optimizers' do not: hence train()); and while
        # it lives, no other storage (after .to(), in a copy of the module) can have its address.
        aliases, versions, _ = self._kept
        return len(aliases) == len(tensors) and all(
            alias._version == version and alias.data_ptr() == tensor.data_ptr()
            for alias, version, tensor in zip(aliases, versions, tensors)
        )

    def train(self, mode: bool = True) -> Kept:
        self._kept = None
        return super().train(mode)
