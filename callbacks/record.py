"""The run's own record: metrics.csv (the same bits in every repetition) and perf.csv (what the clock says)."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import torch

from callbacks.base import Callback


class Rows:
    """An append-only CSV of ``step,name,value``."""

    def __init__(self, path: Path):
        self.path = path

    def open(self, step: int) -> None:
        """Continue after ``step``: rows of later steps, and a row cut off by a kill, are dropped."""
        kept = ["step,name,value"]
        if self.path.exists():
            text = self.path.read_text()
            for line in text[: text.rfind("\n") + 1].splitlines()[1:]:
                if int(line.split(",", 1)[0]) <= step:
                    kept.append(line)
        part = self.path.with_suffix(".part")
        part.write_text("\n".join(kept) + "\n")
        os.replace(part, self.path)
        self._file = open(self.path, "a")

    def write(self, step: int, values: dict[str, float]) -> None:
        self._file.writelines(f"{step},{name},{value!r}\n" for name, value in values.items())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def at_step(system, every: int) -> bool:
    """Whether an optimizer step was just finished whose number is a multiple of ``every`` (0: never)."""
    return every > 0 and system.batches % system.accumulate == 0 and system.step % every == 0


class Record(Callback):
    """Every ``every`` steps: the mean of what was logged since, the learning rate and the speed, to CSV and to the tracker.

    Nothing is read from the device in between. The values of an unfinished window travel in the checkpoint.
    """

    def __init__(self, every: int):
        if every < 1:
            raise ValueError(f"callbacks.record.every must be at least 1; got {every}")
        self.every = every
        self.window: dict[str, list[torch.Tensor]] = {}
        self.latest: dict[str, float] = {}

    def connect(self, folder: Path, tracker, step: int, chief: bool) -> None:
        """Open the run folder's files at ``step``; only the chief rank writes."""
        self.tracker, self.chief = tracker, chief
        self.metrics, self.perf = Rows(folder / "metrics.csv"), Rows(folder / "perf.csv")
        if chief:
            self.metrics.open(step)
            self.perf.open(step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record deterministic values."""
        self.latest |= values
        if self.chief:
            self.metrics.write(step, values)
            self.tracker.log(values, step)

    def on_train_start(self, trainer, system):
        self._since, self._images = time.perf_counter(), 0

    def on_train_batch_end(self, trainer, system, outputs, batch, batch_idx):
        for name, value in system.latest.items():
            self.window.setdefault(name, []).append(value)
        self._images += len(batch[0])
        if at_step(system, self.every):
            self._flush(trainer, system, system.step)

    def _flush(self, trainer, system, step: int) -> None:
        values = {}
        for name, window in self.window.items():
            mean = torch.stack([v.detach() for v in window]).double().mean()
            if trainer.world_size > 1:
                mean = trainer.strategy.reduce(mean, reduce_op="mean")
            values[f"train/{name}"] = float(mean)
        self.window = {}
        for number, (optimizer, _) in enumerate(system.players()):
            values["train/lr" + (f"/{number}" if number else "")] = optimizer.param_groups[0]["lr"]
        if system.skipped:
            values["train/skipped_updates"] = float(system.skipped)
        self.write(step, values)
        now = time.perf_counter()
        seconds = now - self._since
        speed = {
            "perf/images_per_second": self._images * trainer.world_size / seconds,
            "perf/memory_mib": memory_mib(),
            "perf/seconds": seconds,  # of this window, validation included: they sum to the run's training time
        }
        self._since, self._images = now, 0
        if self.chief:
            self.perf.write(step, speed)
            self.tracker.log(speed, step)

    def state_dict(self):
        return {name: torch.stack([v.detach() for v in window]).cpu() for name, window in self.window.items() if window}

    def load_state_dict(self, state_dict):
        self.window = {name: list(values) for name, values in state_dict.items()}

    def teardown(self, trainer, system, stage):
        if self.chief:
            self.metrics.close()
            self.perf.close()


def memory_mib() -> float:
    """Peak memory: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
