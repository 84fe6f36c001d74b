"""A progress bar that refreshes by the clock, not by the step."""

from __future__ import annotations

import time

from tqdm import tqdm

from callbacks.base import Callback
from callbacks.record import Record


class Progress(Callback):
    """Steps done, the latest training and validation values and the speed, at most every ``seconds``."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._bar = None

    def connect(self, record: Record, shown: str) -> None:
        """``shown`` is the name, without its ``train/`` or ``val/``, of the value to show."""
        self.record, self.shown = record, shown

    def on_train_start(self, trainer, system):
        self._next = 0.0
        if trainer.global_rank == 0:
            self._bar = tqdm(total=system.max_steps, initial=system.step, unit="step", dynamic_ncols=True, mininterval=0, smoothing=0.05)

    def on_train_batch_end(self, trainer, system, outputs, batch, batch_idx):
        now = time.monotonic()
        if self._bar is None or (now < self._next and system.step < system.max_steps):
            return
        self._next = now + self.seconds
        values = self.record.latest
        shown = {p: values[f"{p}/{self.shown}"] for p in ("train", "val", "val_ema") if f"{p}/{self.shown}" in values}
        self._bar.set_postfix({f"{p} {self.shown}": f"{v:.4g}" for p, v in shown.items()}, refresh=False)
        self._bar.update(system.step - self._bar.n)

    def teardown(self, trainer, system, stage):
        if self._bar is not None:
            self._bar.close()
