"""Where the negative samples of contrastive training come from: fresh chains, or chains that go on between updates."""

from __future__ import annotations

import torch
import torch.distributed as dist
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

    Each rank owns its pool. It is therefore no buffer (DDP would overwrite it with rank 0's) but part of the state dict
    as extra state [ranks, size, *event]. With several ranks, call ``gather`` on all of them right before the state dict
    is taken; otherwise that raises RuntimeError. A rank for which the state holds no chains starts new ones.
    """

    def __init__(self, size: int, restart: float):
        super().__init__()
        self.size = size
        self.restart = restart
        self._pool: Tensor | None = None
        self._gathered: Tensor | None = None

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
        self._gathered = None
        return x.clone(), log

    def gather(self) -> None:
        """Collect the pools of all ranks for the next state dict (a collective: every rank calls it)."""
        if self._pool is not None and dist.is_available() and dist.is_initialized():
            pools = [torch.empty_like(self._pool) for _ in range(dist.get_world_size())]
            dist.all_gather(pools, self._pool)
            self._gathered = torch.stack(pools)

    def get_extra_state(self) -> Tensor:
        if self._pool is None:
            return torch.empty(0)
        if self._gathered is not None:
            return self._gathered.clone()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise RuntimeError("the chains of the other ranks are missing: call Persistent.gather() on every rank before saving")
        return self._pool[None].clone()

    def set_extra_state(self, state: Tensor) -> None:
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        self._pool = state[rank].clone() if rank < len(state) else None
        self._gathered = None
