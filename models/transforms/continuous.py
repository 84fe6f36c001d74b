"""The continuous normalizing flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod, sqrt

import torch
from torch import Tensor, nn

from models.contracts import Bijection, Kind
from models.distributions.normal import full_precision
from models.transforms.divergence import Divergence, Exact
from models.transforms.solvers import Solver, State


class ContinuousFlow(Bijection):
    """z = x(T), dx/dt = v(x, t), x(0) = x, over events of ``shape``; log |det dz/dx| is the integral of tr(dv/dx).

    FFJORD, Grathwohl et al. 2019 (arXiv:1810.01367), eqs. 1 to 3. ``net(channels)`` makes v, called as ``net(x, t)``; T starts
    at ``time`` and is learned, as in the released code. Both hold within the solver's error.

    ``divergence`` gives the trace in training and, where the event has more than ``exact_up_to`` numbers, in evaluation;
    below, evaluation takes the exact one. The kind of the contribution is NOISY or EXACT accordingly. A context is ignored.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        net: Callable[[int], nn.Module],
        divergence: Divergence,
        exact_up_to: int,
        solver: Solver,
        time: float,
    ):
        super().__init__()
        if time <= 0:
            raise ValueError(f"time must be positive; got {time}")
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.net = net(shape[0])
        self.solver = solver
        self.root_time = nn.Parameter(torch.tensor(sqrt(time)))
        self.training_divergence = divergence
        self.evaluation_divergence = Exact() if prod(shape) <= exact_up_to else divergence
        self.evaluations = 0
        """How often the last solve, not counting its adjoint's, called the net."""

    @property
    def divergence(self) -> Divergence:
        return self.training_divergence if self.training else self.evaluation_divergence

    @property
    def kind(self) -> Kind:
        return self.divergence.kind

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._solve(x, self.divergence, backwards=False)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._solve(z, self.divergence, backwards=True)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self._solve(z, None, backwards=True)[0]

    def _solve(self, x: Tensor, divergence: Divergence | None, backwards: bool) -> State:
        """The path's other end and, given a divergence, its integral [B] in the direction of travel."""
        with torch.autocast(x.device.type, enabled=False):
            x = full_precision(x)
            rates = Rates(self, divergence, None if divergence is None else divergence.draw(x), backwards)
            state = (x,) if divergence is None else (x, x.new_zeros(len(x)))
            state = self.solver(rates, state, tuple(self.parameters()))
        self.evaluations = rates.calls
        return state


class Rates:
    """d(x, log-det)/ds along one solve, s from 0 to 1 while t runs from 0 to T or, ``backwards``, from T to 0."""

    def __init__(self, flow: ContinuousFlow, divergence: Divergence | None, noise: Tensor | None, backwards: bool):
        self.flow, self.divergence, self.noise, self.backwards, self.calls = flow, divergence, noise, backwards, 0

    def __call__(self, s: Tensor, state: State) -> State:
        self.calls += 1
        x, time = state[0], self.flow.root_time.square()
        t, speed = (time * (1 - s), -time) if self.backwards else (time * s, time)
        if self.divergence is None:
            return (speed * self.flow.net(x, t),)
        recorded = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if recorded and x.requires_grad else x.detach().requires_grad_()
            velocity = self.flow.net(x, t)
            divergence = self.divergence(velocity, x, self.noise, recorded)
        if not recorded:
            velocity, divergence = velocity.detach(), divergence.detach()
        return speed * velocity, speed * divergence


def continuous_flows(model: nn.Module) -> list[ContinuousFlow]:
    """Those inside a model."""
    return [module for module in model.modules() if isinstance(module, ContinuousFlow)]


def count_evaluations(model: nn.Module) -> int:
    """Calls of the vector fields in the last solve of each continuous flow, together."""
    return sum(flow.evaluations for flow in continuous_flows(model))
