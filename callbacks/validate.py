"""Validation during training, on the raw and on the averaged weights, with noise of its own."""

from __future__ import annotations

import contextlib

from callbacks.base import Callback
from callbacks.ema import EMA, weights_of
from callbacks.record import Record, at_step
from models.evaluators.base import Context, Evaluator


class Validate(Callback):
    """Every ``trainer.val_every`` steps and after the last: ``evaluator`` on the validation split, as ``val/*`` and ``val_ema/*``.

    ``best`` tells the checkpoint callback whether ``monitor`` (smaller is better), on the weights a user would report
    (averaged if there are any), has just improved. ``evaluator: null`` turns validation off.
    """

    def __init__(self, evaluator: Evaluator | None, monitor: str):
        self.evaluator = evaluator
        self.monitor = monitor
        self.best_value = float("inf")
        self.best_step: int | None = None

    def connect(self, folder, datamodule, seed: int, every: int, record: Record, ema: EMA) -> None:
        self.folder, self.datamodule, self.seed, self.every = folder, datamodule, seed, every
        self.record, self.ema = record, ema

    def on_train_batch_end(self, trainer, system, outputs, batch, batch_idx):
        if self.evaluator is None or not (at_step(system, self.every) or system.step == system.max_steps):
            return
        if system.batches % system.accumulate or not self.datamodule.num_examples("val"):
            return
        for weights in ("raw", "ema") if self.ema.average else ("raw",):
            values = self._values(trainer, system, weights)
            prefix = "val_ema" if weights == "ema" else "val"
            self.record.write(system.step, {f"{prefix}/{name}": value for name, value in values.items()})
        if (value := values.get(self.monitor)) is not None and value < self.best_value:
            self.best_value, self.best_step = value, system.step

    def _values(self, trainer, system, weights: str) -> dict[str, float]:
        model = system.model
        training = model.training
        model.eval()
        swap = weights_of(model, self.ema.average) if weights == "ema" else contextlib.nullcontext()
        with swap:
            context = Context(
                model=model, datamodule=self.datamodule, split="val", folder=self.folder, seed=self.seed, weights=weights,
                rank=trainer.global_rank, world=trainer.world_size, device=system.device, progress=False,
            )  # fmt: skip
            records = self.evaluator(context)
        model.train(training)
        return {record["metric"]: float(record["value"]) for record in records}

    def state_dict(self):
        return {"best_value": self.best_value, "best_step": self.best_step}

    def load_state_dict(self, state_dict):
        self.best_value, self.best_step = state_dict["best_value"], state_dict["best_step"]
