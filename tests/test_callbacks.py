"""Callbacks of both kinds get their hooks: logpx's in the order of the config, then Lightning's."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from callbacks.base import Callback, for_lightning
from callbacks.checkpoint import Checkpoint
from callbacks.ema import EMA


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


def test_the_best_is_written_before_the_step_that_remembers_it(tmp_path, monkeypatch):
    """A kill between the two files must not leave a run that believes in a best checkpoint that is not there."""
    system = SimpleNamespace(batches=4, accumulate=1, step=4, max_steps=9, model=torch.nn.Linear(1, 1), skipped=0)
    system.state_dict, system.rank_state = dict, dict
    validate = SimpleNamespace(best_step=None)
    checkpoint = Checkpoint(every=4, keep=2, agree_every=1)
    checkpoint.connect(tmp_path, validate, {"ema": EMA(decay=None)}, None)
    validate.best_step = 4
    written = []
    monkeypatch.setattr(checkpoint, "_write", lambda trainer, path, state: written.append(path.name))
    checkpoint.on_train_batch_end(SimpleNamespace(world_size=1, optimizers=[]), system, None, None, 3)
    assert written == ["best.ckpt", "step_00000004.ckpt"]
