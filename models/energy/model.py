"""The energy model: a net, a temperature, and a Markov chain that samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.contracts import DataSpec
from models.energy.annealing import Path
from models.energy.base import EnergyBased
from models.energy.initial import Initial
from models.samplers.hmc import HMC
from models.samplers.langevin import Sampler


class EnergyModel(EnergyBased):
    """p(u) = exp(-net(u) / temperature) / Z over real states u [B, C, H, W].

    Integers x become states u = 2 x / (K - 1) - 1 in [-1, 1]; continuous data are states as they are. The density is one of
    this relaxation, in nats: it says nothing about the probability of the integers and never becomes bits per dimension.

    Published short-run chains take unit steps along the gradient of the net with noise epsilon. That is Langevin dynamics
    of step epsilon^2 / 2 at temperature epsilon^2 / 2 (Nijkamp et al. 2019, arXiv:1903.12370), which is how
    to state them here: then energies, and the AIS estimate, belong to the density that the chains follow.

    ``sampler`` moves chains that begin in ``initial``. Samples are rounded to the nearest level.
    """

    def __init__(self, spec: DataSpec, net: nn.Module, temperature: float, initial: Initial, sampler: Sampler):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"an energy needs a temperature above 0; got {temperature}")
        self.spec = spec
        self.net = net
        self.temperature = temperature
        self.initial = initial
        self.sampler = sampler

    def energy(self, u: Tensor) -> Tensor:
        return self.net(u) / self.temperature

    def _dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    def relax(self, x: Tensor) -> Tensor:
        u = x.to(self._dtype())
        return u if self.spec.levels is None else 2.0 * u / (self.spec.levels - 1) - 1.0

    def quantize(self, u: Tensor) -> Tensor:
        if self.spec.levels is None:
            return u
        top = self.spec.levels - 1
        return ((u + 1.0) * (top / 2)).round().clamp(0, top).to(torch.uint8)

    def start(self, n: int) -> Tensor:
        return self.initial.draw(next(self.net.parameters()).new_empty(n, *self.spec.shape))

    def move(self, u: Tensor, temperature: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        return self.sampler(lambda state: self.energy(state) / temperature, u)

    def annealing_path(self, kernel: HMC) -> Path:
        return _GeometricPath(self, kernel)


class _GeometricPath(Path):
    """log f_beta = (1 - beta) log p_initial - beta energy, moved by HMC inside the initial distribution's cube."""

    log_z0 = 0.0

    def __init__(self, model: EnergyModel, kernel: HMC):
        self.model = model
        self.kernel = kernel
        box = model.initial.box
        where = "all reals" if box is None else f"[{box[0]:g}, {box[1]:g}]"
        self.space = f"density of the continuous relaxation on {where}^{model.spec.dims}"

    def start(self, n: int) -> Tensor:
        return self.model.start(n)

    def log_density(self, x: Tensor, beta: float) -> Tensor:
        return (1.0 - beta) * self.model.initial.log_prob(x) - beta * self.model.energy(x)

    def move(self, x: Tensor, beta: float, step_size: float) -> tuple[Tensor, Tensor]:
        x, log_ = self.kernel.move(lambda u: -self.log_density(u, beta), x, step_size, self.model.initial.box)
        return x, log_["acceptance"]
