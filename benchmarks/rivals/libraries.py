"""Flows of other libraries over vectors, as ``benchmarks.training`` calls a contestant."""

from __future__ import annotations

from torch import Tensor, nn


class Zuko(nn.Module):
    """A flow of zuko, which makes its distribution when it is called."""

    def __init__(self, flow: nn.Module):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.flow().log_prob(x.flatten(1))

    def sample(self, n: int) -> Tensor:
        return self.flow().sample((n,))


class NFlows(nn.Module):
    """A flow of nflows."""

    def __init__(self, flow: nn.Module):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.flow.log_prob(x.flatten(1))

    def sample(self, n: int) -> Tensor:
        return self.flow.sample(n)
