"""Optimizers that torch does not offer as one object."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Muon(torch.optim.Optimizer):
    """torch's Muon for matrices and AdamW for everything else, behind one optimizer.

    Keller Jordan et al. 2024 orthogonalise the momentum of hidden weight matrices only; torch's Muon takes nothing but
    2-D parameters, so gains, biases and convolution kernels go to AdamW at ``adam_lr``. Both follow one schedule.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float, adam_lr: float):
        params = list(params)
        matrices = [p for p in params if p.dim() == 2]
        others = [p for p in params if p.dim() != 2]
        self._parts = []
        if matrices:
            self._parts.append(torch.optim.Muon(matrices, lr=lr, momentum=momentum, weight_decay=weight_decay))
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=adam_lr, weight_decay=weight_decay))
        super().__init__([{"params": part.param_groups[0]["params"]} for part in self._parts], {"lr": lr})
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def step(self, closure=None):
        """One step of both; parameters without a gradient are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]
