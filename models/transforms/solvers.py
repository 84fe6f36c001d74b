"""Solvers of ordinary differential equations from time 0 to 1, by torchdiffeq."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

State = tuple[Tensor, ...]


class Solver:
    """state(1), given state(0) and d state / ds = rates(s, state).

    Gradients: with ``adjoint``, from a second equation solved backwards in time, whose memory does not grow with the number of
    steps (Chen et al. 2018, arXiv:1806.07366), else through the steps themselves. They agree up to the solver's error.
    """

    def __init__(self, method: str, known: Sequence[str], adjoint: bool):
        if method not in known:
            raise ValueError(f"method must be one of {', '.join(known)}; got {method}")
        self.method, self.adjoint = method, adjoint

    def settings(self, like: Tensor) -> dict:
        """What torchdiffeq is told besides the method."""
        raise NotImplementedError

    def refined(self, factor: int) -> Solver:
        """This solver with ``factor`` times smaller tolerances, or as many times more steps."""
        raise NotImplementedError

    def __call__(self, rates: Callable[[Tensor, State], State], state: State, parameters: Sequence[nn.Parameter]) -> State:
        """``parameters`` are all that ``rates`` depends on besides ``state``."""
        times, settings = state[0].new_tensor([0.0, 1.0]), self.settings(state[0])
        if self.adjoint and torch.is_grad_enabled():
            # Its steps follow the error of the state and its adjoint; the parameters' gradients are plain integrals
            # (Kidger et al. 2021, arXiv:2009.09457).
            backward = settings.get("options", {}) | {"norm": "seminorm"}
            solve = partial(odeint_adjoint, adjoint_params=tuple(parameters), adjoint_options=backward)
        else:
            solve = odeint
        try:
            path = solve(rates, state, times, method=self.method, **settings)
        except AssertionError as error:  # torchdiffeq's words for a state that is not finite or a step too short for the clock
            raise FloatingPointError(
                f"{self.method} cannot solve these dynamics ({error}): lower optimizer.lr, or raise the solver's rtol and atol"
            ) from error
        return tuple(part[-1] for part in path)


class Adaptive(Solver):
    """Steps as long as keep the error of each one, in root mean square over the batch, below ``atol`` + ``rtol`` |state|.

    The released FFJORD: dopri5, 1e-5 and 1e-5. An example's result depends on its batch, within the tolerance. Raises
    FloatingPointError when the state is not finite or no step is short enough.
    """

    def __init__(self, method: str, rtol: float, atol: float, adjoint: bool):
        super().__init__(method, ("dopri5", "dopri8", "bosh3", "adaptive_heun"), adjoint)
        if min(rtol, atol) <= 0:
            raise ValueError(f"rtol and atol must be positive; got {rtol} and {atol}")
        self.rtol, self.atol = rtol, atol

    def refined(self, factor: int) -> Adaptive:
        return Adaptive(self.method, self.rtol / factor, self.atol / factor, self.adjoint)

    def settings(self, like: Tensor) -> dict:
        # a last step that ends where the solve ends, instead of one that runs past it
        return {"rtol": self.rtol, "atol": self.atol, "options": {"step_t": like.new_tensor([0.0, 1.0])}}


class FixedSteps(Solver):
    """``num_steps`` equal steps, whatever their error."""

    def __init__(self, method: str, num_steps: int, adjoint: bool):
        super().__init__(method, ("euler", "midpoint", "rk4"), adjoint)
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1; got {num_steps}")
        self.num_steps = num_steps

    def refined(self, factor: int) -> FixedSteps:
        return FixedSteps(self.method, self.num_steps * factor, self.adjoint)

    def settings(self, like: Tensor) -> dict:
        steps = self.num_steps + 1
        return {"options": {"grid_constructor": lambda rates, state, t: torch.linspace(t[0], t[-1], steps).to(t)}}
