"""Computing in more precision than the weights have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class _Bound(nn.Module):
    """A method of ``module``, called as a module."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *arguments: Any) -> Any:
        return self.method(*arguments)


def in_float64(module: nn.Module, method: Callable[..., Any], *arguments: Any) -> Any:
    """method(*arguments) of ``module`` in float64, from its weights as they are and with gradients in them.

    Real tensors of the result, or in a list that it is, come back in the module's own dtype, or in float32 where that has fewer
    digits. On a device without float64 (MPS) all is in the module's own dtype.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    reals = {f"module.{name}": t for name, t in tensors if t.is_floating_point()}
    own = next(iter(reals.values()), None)
    if own is None or own.dtype == torch.float64 or own.device.type == "mps":
        return method(*arguments)
    wide = {name: t.double() for name, t in reals.items()}
    result = functional_call(_Bound(module, method), wide, tuple(_reals_to(torch.float64, a) for a in arguments))
    return _reals_to(torch.promote_types(own.dtype, torch.float32), result)


def _reals_to(dtype: torch.dtype, value: Any) -> Any:
    if isinstance(value, list):
        return [_reals_to(dtype, part) for part in value]
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
