"""Callbacks of both kinds get their hooks: logpx's in the order of the config, then Lightning's."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from callbacks.base import Callback, for_lightning


def noted(base: type, name: str, calls: list[str]):
    """A callback that notes its hooks in ``calls``."""

    class Noted(base):
        def on_train_start(self, trainer, system):
            calls.append(f"{name} start")

        def on_train_batch_end(self, trainer, system, outputs, batch, batch_idx):
            calls.append(f"{name} batch {batch_idx}")

        def teardown(self, trainer, system, stage):
            calls.append(f"{name} end")

    return Noted()


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        return self.weight * batch.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_own_callbacks_in_order_then_lightnings():
    calls = []
    callbacks = [noted(Callback, "a", calls), noted(pl.Callback, "x", calls), noted(Callback, "b", calls)]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=for_lightning(callbacks),
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(torch.ones(2, 1)))
    hooks = ["start", "batch 0", "batch 1", "end"]
    assert calls == [f"{name} {hook}" for hook in hooks for name in "abx"]


def test_own_callbacks_end_also_after_an_error():
    class Broken(Line):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("planted")

    calls = []
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=for_lightning([noted(Callback, "a", calls)]),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="planted"):
        trainer.fit(Broken(), DataLoader(torch.ones(2, 1)))
    assert calls == ["a start", "a end"]
