"""The moments of a training that logpx's callbacks use, and the one Lightning callback that serves them all."""

from __future__ import annotations

from collections.abc import Iterable

import pytorch_lightning as pl


class Callback:
    """What goes on beside a training. Any other hook of Lightning's needs a ``pl.Callback``, which a config may name as well."""

    def on_train_start(self, trainer, system) -> None:
        """Before the first batch of this process."""

    def on_train_batch_end(self, trainer, system, outputs, batch, batch_idx) -> None:
        """After each batch; ``system.batches`` and ``system.step`` count it already."""

    def teardown(self, trainer, system, stage) -> None:
        """When the training has ended without an error."""


class Together(pl.Callback):
    """Several callbacks in their order. Lightning spends time on each of its own at every hook of a step, used or not."""

    def __init__(self, parts: Iterable[Callback]):
        self.parts = list(parts)

    def on_train_start(self, trainer, system):
        for part in self.parts:
            part.on_train_start(trainer, system)

    def on_train_batch_end(self, trainer, system, outputs, batch, batch_idx):
        for part in self.parts:
            part.on_train_batch_end(trainer, system, outputs, batch, batch_idx)

    def teardown(self, trainer, system, stage):
        for part in self.parts:
            part.teardown(trainer, system, stage)

    def on_exception(self, trainer, system, exception):
        self.teardown(trainer, system, "fit")  # Lightning itself leaves it out after an error


def for_lightning(callbacks: Iterable[Callback | pl.Callback]) -> list[pl.Callback]:
    """``callbacks`` as a Trainer takes them: logpx's as one, then Lightning's."""
    callbacks = list(callbacks)
    return [Together(c for c in callbacks if isinstance(c, Callback)), *(c for c in callbacks if isinstance(c, pl.Callback))]
