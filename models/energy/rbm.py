"""The Bernoulli restricted Boltzmann machine."""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import DataSpec
from models.energy.annealing import Path
from models.energy.base import EnergyBased
from models.samplers.hmc import HMC

_MOST_UNITS = 24


class RBM(EnergyBased):
    """p(v, h) = exp(v'b + h'c + h'Wv) / Z over binary v [D] and h [H] (Smolensky 1986; Hinton 2002).

    States are v [B, D] in {0, 1}; their energy is the free energy F(v) = -v'b - sum_j softplus(c_j + (Wv)_j). The kernel is
    ``num_gibbs`` sweeps of block Gibbs sampling; chains begin at the independent units of the visible biases.
    """

    def __init__(self, spec: DataSpec, num_hidden: int, num_gibbs: int):
        super().__init__()
        if spec.levels != 2:
            raise ValueError(f"an RBM models binary data; this data has levels={spec.levels}")
        self.spec = spec
        self.num_gibbs = num_gibbs
        self.weight = nn.Parameter(0.01 * torch.randn(num_hidden, spec.dims))
        self.visible_bias = nn.Parameter(torch.zeros(spec.dims))
        self.hidden_bias = nn.Parameter(torch.zeros(num_hidden))

    def energy(self, u: Tensor) -> Tensor:
        return -u @ self.visible_bias - F.softplus(F.linear(u, self.weight, self.hidden_bias)).sum(1)

    def relax(self, x: Tensor) -> Tensor:
        return x.flatten(1).to(self.weight.dtype)

    def quantize(self, u: Tensor) -> Tensor:
        return u.to(torch.uint8).view(-1, *self.spec.shape)

    def start(self, n: int) -> Tensor:
        return torch.bernoulli(self.visible_bias.detach().sigmoid().expand(n, -1))

    @torch.no_grad()
    def sweep(self, v: Tensor, visible: float, hidden: float) -> Tensor:
        """v -> h -> v' for the machine with its visible biases scaled by ``visible``, W and c by ``hidden``: reversible."""
        h = torch.bernoulli((hidden * F.linear(v, self.weight, self.hidden_bias)).sigmoid())
        return torch.bernoulli((visible * self.visible_bias + hidden * (h @ self.weight)).sigmoid())

    def move(self, u: Tensor, temperature: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Gibbs sweeps; a temperature divides the joint energy of v and h, not the free energy."""
        for _ in range(self.num_gibbs):
            u = self.sweep(u, 1.0 / temperature, 1.0 / temperature)
        return u, {}

    @torch.no_grad()
    def log_partition(self) -> Tensor:
        """log Z [], exactly, by enumerating the smaller layer. Raises ValueError above 24 units."""
        weight, outer, inner = self.weight, self.hidden_bias, self.visible_bias
        if len(outer) > len(inner):
            weight, outer, inner = weight.T, inner, outer
        if len(outer) > _MOST_UNITS:
            raise ValueError(f"cannot enumerate 2^{len(outer)} states: the smaller layer may have at most {_MOST_UNITS} units")
        bits = torch.arange(len(outer), device=outer.device)
        parts = []
        for codes in torch.arange(2 ** len(outer), device=outer.device).split(2**14):
            states = (codes[:, None] >> bits & 1).to(outer.dtype)
            parts.append(torch.logsumexp(states @ outer + F.softplus(states @ weight + inner).sum(1), 0))
        return torch.logsumexp(torch.stack(parts), 0)

    def annealing_path(self, kernel: HMC) -> Path:
        """From independent units at the visible biases to the machine; the moves are Gibbs sweeps, ``kernel`` is not used."""
        return _HiddenPath(self)


class _HiddenPath(Path):
    """log f_beta(v) = v'b + sum_j softplus(beta (c_j + (Wv)_j)) (Salakhutdinov & Murray 2008, with the base at b)."""

    def __init__(self, rbm: RBM):
        self.rbm = rbm
        self.log_z0 = float(F.softplus(rbm.visible_bias.detach()).sum()) + len(rbm.hidden_bias) * log(2.0)
        self.space = f"probability on {{0, 1}}^{rbm.spec.dims}"

    def start(self, n: int) -> Tensor:
        return self.rbm.start(n)

    def log_density(self, x: Tensor, beta: float) -> Tensor:
        hidden = F.linear(x, self.rbm.weight, self.rbm.hidden_bias)
        return x @ self.rbm.visible_bias + F.softplus(beta * hidden).sum(1)

    def move(self, x: Tensor, beta: float, step_size: float) -> tuple[Tensor, Tensor]:
        return self.rbm.sweep(x, 1.0, beta), torch.ones((), device=x.device)
