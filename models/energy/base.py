"""What every energy-based model answers for."""

from __future__ import annotations

from torch import Tensor

from models.contracts import GenerativeModel, Kind, Score, check_batch
from models.energy.annealing import Path
from models.samplers.hmc import HMC


class EnergyBased(GenerativeModel):
    """p(u) = exp(-energy(u)) / Z over states u, with Z unknown; data x become states by ``relax``.

    Scores are -energy: UNNORMALIZED. Labels and their absence are ignored.
    """

    def energy(self, u: Tensor) -> Tensor:
        """States [B, *event] to nats [B]; smaller is likelier."""
        raise NotImplementedError

    def relax(self, x: Tensor) -> Tensor:
        """Data [B, C, H, W] to states."""
        raise NotImplementedError

    def quantize(self, u: Tensor) -> Tensor:
        """States to data."""
        raise NotImplementedError

    def start(self, n: int) -> Tensor:
        """``n`` states from which chains begin."""
        raise NotImplementedError

    def move(self, u: Tensor, temperature: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's Markov kernel, aimed at exp(-energy / temperature): (states, scalars to log)."""
        raise NotImplementedError

    def annealing_path(self, kernel: HMC) -> Path:
        """Densities from a normalised one to exp(-energy); ``kernel`` moves states where the model has no exact moves."""
        raise NotImplementedError

    def score(self, x: Tensor, y: Tensor | None = None) -> Score:
        check_batch(x, self.spec)
        nats = -self.energy(self.relax(x))
        return Score(nats, Kind.UNNORMALIZED, {"energy": nats})

    def sample(self, n: int, y: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """The states in which ``n`` chains of the model's kernel end: draws only as far as these chains mix."""
        return self.quantize(self.move(self.start(n), temperature)[0])
