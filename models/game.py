"""The LightningModule of several players on one model: flow contrastive estimation, the divergence triangle and the like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from models.contracts import GenerativeModel, Objective
from models.schedules import Schedule
from models.system import Fitted


@dataclass
class Player:
    """One player: it fits the parameters of ``model.<submodule>`` to its objective, in every ``every``-th step, ``repeats`` times."""

    submodule: str
    objective: Objective
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule: Schedule
    every: int
    repeats: int
    clip_norm: float | None


class Game(Fitted):
    """Players move in the order they are written; a step is one round of all of them (manual optimization).

    While a player moves, only its own parameters take gradients. Gradient accumulation is refused: a round has several losses.
    """

    def __init__(
        self,
        model: GenerativeModel,
        players: dict[str, Player],
        seed: int,
        max_steps: int,
        accumulate: int,
        skip_above: float | None,
        skip_budget: int,
    ):
        if accumulate != 1:
            raise ValueError(f"system=game takes one batch a step; set trainer.accumulate=1 (got {accumulate})")
        super().__init__(model, seed, max_steps, accumulate, skip_above, skip_budget)
        self.automatic_optimization = False
        self.roster = players
        self.objectives = nn.ModuleDict({name: player.objective for name, player in players.items()})
        self._parameters_of = {name: list(model.get_submodule(p.submodule).parameters()) for name, p in players.items()}

    def players(self) -> list[tuple[torch.optim.Optimizer, Schedule]]:
        return [(o, p.schedule) for o, p in zip(self.trainer.optimizers, self.roster.values(), strict=True)]

    def configure_optimizers(self):
        return [player.optimizer(self._parameters_of[name]) for name, player in self.roster.items()]

    def play(self, batch) -> None:
        self.latest = {}
        everything = list(self.model.parameters())
        trainable = [p.requires_grad for p in everything]
        for (name, player), optimizer in zip(self.roster.items(), self.trainer.optimizers, strict=True):
            if self.step % player.every:
                continue
            for parameter in everything:
                parameter.requires_grad_(False)
            for parameter in self._parameters_of[name]:
                parameter.requires_grad_(True)
            for _ in range(player.repeats):
                loss = player.objective(self.model, batch, self.step)
                optimizer.zero_grad(set_to_none=True)
                self.manual_backward(loss.value)
                norm = self.clip_or_skip(self._parameters_of[name], player.clip_norm)
                optimizer.step()
            self.latest |= {f"{name}/{k}": v for k, v in loss.log.items()} | {f"{name}/grad_norm": norm}
            optimizer.zero_grad(set_to_none=True)
        for parameter, flag in zip(everything, trainable, strict=True):
            parameter.requires_grad_(flag)
