"""Keeps the batch whose update was skipped, so that it can be replayed."""

from __future__ import annotations

from pathlib import Path

import torch

from callbacks.base import Callback


class Skipped(Callback):
    """Writes ``skipped/step_N_rank_R.pt`` (x, y, step) for each skipped update; load it with ``torch.load(weights_only=True)``."""

    def connect(self, folder: Path) -> None:
        self.folder = folder / "skipped"
        self.count = 0

    def on_train_start(self, trainer, system):
        self.count = system.skipped

    def on_train_batch_end(self, trainer, system, outputs, batch, batch_idx):
        if system.skipped > self.count:
            self.count = system.skipped
            self.folder.mkdir(exist_ok=True)
            x, y = batch
            path = self.folder / f"step_{system.step:08d}_rank_{trainer.global_rank}.pt"
            torch.save({"x": x.cpu(), "y": None if y is None else y.cpu(), "step": system.step}, path)
