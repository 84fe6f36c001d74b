"""The LightningModule of one model, one objective and one optimizer; and what it shares with ``Game``."""

from __future__ import annotations

from collections.abc import Callable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from models.contracts import GenerativeModel, Objective
from models.schedules import Schedule
from models.seeding import seed_torch


class Fitted(pl.LightningModule):
    """A model being fitted: the step count, the noise of each batch, the learning rate and the skip rule.

    Noise is a pure function of (seed, batch, rank) and the learning rate one of the step, so a resumed run needs no
    generator or scheduler state. ``batches`` counts the batches consumed, ``accumulate`` of them make one step.
    """

    def __init__(self, model: GenerativeModel, seed: int, max_steps: int, accumulate: int, skip_above: float | None, skip_budget: int):
        super().__init__()
        self.model = model
        self.seed = seed
        self.max_steps = max_steps
        self.accumulate = accumulate
        self.skip_above = skip_above
        self.skip_budget = skip_budget
        self.batches = 0
        self.skipped = 0
        self.latest: dict[str, Tensor] = {}
        """What the objective logged at the last batch, by name."""

    @property
    def step(self) -> int:
        """Optimizer steps done, skipped ones included."""
        return self.batches // self.accumulate

    def players(self) -> list[tuple[torch.optim.Optimizer, Schedule]]:
        """Optimizers with their schedules, in a fixed order."""
        raise NotImplementedError

    def rank_state(self) -> dict:
        """What this rank alone knows (chains of a sampler), from every part that offers ``rank_state``."""
        parts = {name: m for name, m in self.named_modules() if m is not self and hasattr(m, "rank_state")}
        return {name: part.rank_state() for name, part in parts.items()}

    def load_rank_state(self, states: list[dict], rank: int) -> None:
        """Give each part back what it knew on this rank; a rank that was not there before starts afresh."""
        if rank < len(states):
            for name, state in states[rank].items():
                self.get_submodule(name).load_rank_state(state)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        x, y = batch
        return x.to(device, non_blocking=True), None if y is None else y.to(device, non_blocking=True)

    def on_train_batch_start(self, batch, batch_idx):
        seed_torch("train", self.seed, self.batches, self.global_rank)
        for optimizer, schedule in self.players():
            factor = schedule(self.step, self.max_steps)
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("base_lr", group["lr"]) * factor

    def play(self, batch) -> Tensor | None:
        """The work of one batch: the loss to minimise, or None where the optimizers were stepped by hand."""
        raise NotImplementedError

    def training_step(self, batch, batch_idx):
        loss = self.play(batch)
        self.batches += 1
        return loss

    def clip_or_skip(self, parameters: list[nn.Parameter], clip_norm: float | None) -> Tensor:
        """Scale gradients down to ``clip_norm``, or drop them (VD-VAE's rule, arXiv:2011.10650) if they are not finite or too large.

        The norm is that of the gradients after reduction, so all ranks decide alike. A dropped gradient is None, which
        every optimizer takes as "leave this parameter and its state alone". Returns the norm.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        size = float(norm)
        if size != size or size == float("inf") or (self.skip_above is not None and size > self.skip_above):
            for parameter in parameters:
                parameter.grad = None
            self.skipped += 1
            if self.skipped > self.skip_budget:
                raise RuntimeError(
                    f"{self.skipped} updates were skipped (gradient norm {size:.3g} at step {self.step}); the budget is "
                    f"system.skip_budget={self.skip_budget}. Lower optimizer.lr or set system.clip_norm; the batches are in skipped/"
                )
        elif clip_norm is not None and size > clip_norm:
            torch._foreach_mul_(gradients, clip_norm / size)
        return norm


class System(Fitted):
    """One model, one objective, one optimizer: automatic optimization."""

    def __init__(
        self,
        model: GenerativeModel,
        objective: Objective,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Schedule,
        seed: int,
        max_steps: int,
        accumulate: int,
        clip_norm: float | None,
        skip_above: float | None,
        skip_budget: int,
    ):
        super().__init__(model, seed, max_steps, accumulate, skip_above, skip_budget)
        self.objective = objective
        self.schedule = schedule
        self.clip_norm = clip_norm
        self._make_optimizer = optimizer
        self._parameters_to_fit = [p for p in self.parameters() if p.requires_grad]

    def players(self) -> list[tuple[torch.optim.Optimizer, Schedule]]:
        return [(self.trainer.optimizers[0], self.schedule)]

    def configure_optimizers(self):
        return self._make_optimizer(self._parameters_to_fit)

    def play(self, batch) -> Tensor:
        loss = self.objective(self.model, batch, self.step)
        self.latest = loss.log
        return loss.value

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.latest["grad_norm"] = self.clip_or_skip(self._parameters_to_fit, self.clip_norm)
