"""Pictures of samples through training."""

from __future__ import annotations

import contextlib

import torch

from callbacks.base import Callback
from callbacks.ema import EMA, weights_of
from callbacks.record import at_step
from models.pictures import save_grid
from models.seeding import isolated


class Samples(Callback):
    """Every ``every`` steps (0: never), ``num`` samples of the averaged weights (raw if there are none), always under one seed."""

    def __init__(self, every: int, num: int, temperature: float):
        self.every, self.num, self.temperature = every, num, temperature

    def connect(self, folder, seed: int, tracker, ema: EMA) -> None:
        self.folder, self.seed, self.tracker, self.ema = folder, seed, tracker, ema

    def on_train_batch_end(self, trainer, system, outputs, batch, batch_idx):
        if not at_step(system, self.every) or trainer.global_rank:
            return
        model = system.model
        training = model.training
        model.eval()
        swap = weights_of(model, self.ema.average) if self.ema.average else contextlib.nullcontext()
        with swap, torch.no_grad(), isolated("samples", self.seed):
            classes = model.spec.classes
            y = None if classes is None else torch.arange(self.num, device=system.device) % classes
            images = model.sample(self.num, y, self.temperature)
        model.train(training)
        path = self.folder / "samples" / f"step_{system.step:08d}.png"
        save_grid(images, model.spec, path)
        self.tracker.image("samples", path, system.step)
