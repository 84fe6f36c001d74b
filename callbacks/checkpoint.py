"""Writes checkpoints, keeps the best, and ends a run in good order when it is asked to stop."""

from __future__ import annotations

import signal
import threading
import warnings
from pathlib import Path

import torch

from callbacks.base import Callback
from callbacks.record import at_step
from callbacks.validate import Validate
from models import checkpoints


class Checkpoint(Callback):
    """Every ``every`` steps, after the last step and when stopped: everything that a resumed run needs, in ``checkpoints/``.

    SIGTERM or Ctrl-C ends the run after the current step with its checkpoint written; ``stopped_by`` then holds the signal.
    With several ranks they agree on the step to stop at every ``agree_every`` steps. A checkpoint that cannot be
    written (a full disk) warns, leaves the previous ones alone and the training running.
    """

    def __init__(self, every: int, keep: int, agree_every: int):
        self.every, self.keep, self.agree_every = every, keep, agree_every
        self.stopped_by: int | None = None
        self.failed: str | None = None

    def connect(self, folder: Path, validate: Validate, stateful: dict[str, Callback], restored: dict | None) -> None:
        """``stateful`` callbacks travel in the checkpoint; ``restored`` is the checkpoint this run goes on from."""
        self.folder, self.validate, self.stateful = folder / "checkpoints", validate, stateful
        self.optimizer_states = None if restored is None else restored["optimizers"]
        self._best_saved = validate.best_step

    def on_train_start(self, trainer, system):
        if self.optimizer_states is not None:
            for optimizer, state in zip(trainer.optimizers, self.optimizer_states, strict=True):
                optimizer.load_state_dict(state)
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._asked_to_stop)

    def _asked_to_stop(self, number, frame):
        if self.stopped_by is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.stopped_by = number

    def on_train_batch_end(self, trainer, system, outputs, batch, batch_idx):
        if system.batches % system.accumulate:
            return
        stop = self._agreed_to_stop(trainer, system)
        # The best first: a run killed between the two goes on from before it, and finds and writes the same best again.
        if self.validate.best_step == system.step != self._best_saved:
            self._best_saved = system.step
            self._write(trainer, self.folder / "best.ckpt", self._weights(system))
        if stop or system.step == system.max_steps or at_step(system, self.every):
            self._save(trainer, system)
        if stop:
            trainer.should_stop = True

    def _agreed_to_stop(self, trainer, system) -> bool:
        if trainer.world_size == 1:
            return self.stopped_by is not None
        if not at_step(system, self.agree_every):
            return False
        asked = torch.tensor(float(self.stopped_by or 0), device=system.device)
        self.stopped_by = int(trainer.strategy.reduce(asked, reduce_op="max")) or None
        return self.stopped_by is not None

    def _weights(self, system) -> dict:
        return {"step": system.step, "model": system.model.state_dict(), "ema": self.stateful["ema"].state_dict()}

    def _save(self, trainer, system) -> None:
        per_rank = [system.rank_state()]
        if trainer.world_size > 1:
            per_rank = [None] * trainer.world_size
            torch.distributed.all_gather_object(per_rank, system.rank_state())
        state = self._weights(system) | {
            "batches": system.batches,
            "skipped": system.skipped,
            "objectives": {k: v for k, v in system.state_dict().items() if not k.startswith("model.")},
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "callbacks": {name: callback.state_dict() for name, callback in self.stateful.items()},
            "ranks": per_rank,
        }
        self._write(trainer, self.folder / f"step_{system.step:08d}.ckpt", state)

    def _write(self, trainer, path: Path, state: dict) -> None:
        if trainer.global_rank:
            return
        try:
            checkpoints.save(path, state)
            checkpoints.drop_old(self.folder, self.keep)
            self.failed = None
        except (OSError, RuntimeError) as error:
            self.failed = f"the checkpoint {path.name} could not be written ({error}); the one before it is kept"
            warnings.warn(self.failed, stacklevel=2)

    def teardown(self, trainer, system, stage):
        for number, handler in getattr(self, "_previous", {}).items():
            signal.signal(number, handler)
