"""Where the negative samples of contrastive training come from: fresh chains, or chains that go on between updates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.energy.base import EnergyBased


class Chains(nn.Module):
    """``chains(model, n) -> (states [n, *event], log)``: draws, meant to follow the model, that carry no gradient."""

    def forward(self, model: EnergyBased, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError


class ShortRun(Chains):
    """The model's own kernel from its own initial distribution, anew for every batch (Nijkamp et al. 2019, arXiv:1904.09770)."""

    def forward(self, model: EnergyBased, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        return model.move(model.start(n))


class Persistent(Chains):
    """A pool of ``size`` chains; each call moves ``n`` of them, chosen at random, on by the model's kernel and puts them back.

    Persistent contrastive divergence (Tieleman 2008) with a replay buffer (Du & Mordatch 2019, arXiv:1903.08689): before
    moving, a chosen chain starts again from the initial distribution with probability ``restart``.

    Each rank owns its pool, which is therefore no buffer (DDP would overwrite it with rank 0's) and not in the state dict:
    checkpoints keep what ``rank_state`` gives on every rank. A rank without a state starts new chains.
    """

    def __init__(self, size: int, restart: float):
        super().__init__()
        self.size = size
        self.restart = restart
        self._pool: Tensor | None = None

    def forward(self, model: EnergyBased, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Raises ValueError if the pool is smaller than the batch."""
        if n > self.size:
            raise ValueError(f"a pool of {self.size} chains cannot serve a batch of {n}: raise the size of objective.chains")
        if self._pool is None:
            self._pool = model.start(self.size)
        fresh = model.start(n)
        self._pool = self._pool.to(fresh)
        chosen = torch.randperm(self.size, device=fresh.device)[:n]
        again = torch.rand(n, *[1] * (fresh.dim() - 1), device=fresh.device) < self.restart
        x, log = model.move(torch.where(again, fresh, self._pool[chosen]))
        self._pool[chosen] = x
        return x, log

    def rank_state(self) -> dict[str, Tensor]:
        """The chains of this rank, for a checkpoint."""
        return {} if self._pool is None else {"pool": self._pool.cpu().clone()}

    def load_rank_state(self, state: dict[str, Tensor]) -> None:
        self._pool = state.get("pool")
