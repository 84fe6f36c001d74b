"""An exponential moving average of the weights (Polyak averaging), reported beside the raw weights."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from callbacks.base import Callback


class EMA(Callback):
    """After each optimizer step: average = decay_t * average + (1 - decay_t) * weights, with decay_t = min(decay, (1 + t) / (10 + t)).

    The average starts as a copy of the initialised weights (after data-dependent initialisation), so it is never empty.
    Only floating-point parameters are averaged; buffers are the raw ones. ``decay: null`` turns it off.
    """

    def __init__(self, decay: float | None):
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay must be in [0, 1) or null; got {decay}")
        self.decay = decay
        self.average: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer, system):
        if self.decay is None:
            return
        weights = dict(system.model.named_parameters())
        if not self.average:
            self.average = {name: p.detach().clone() for name, p in weights.items()}
        self.average = {name: value.to(weights[name].device) for name, value in self.average.items()}
        self._pairs = (list(self.average.values()), [weights[name] for name in self.average])

    def on_train_batch_end(self, trainer, system, outputs, batch, batch_idx):
        if self.decay is None or system.batches % system.accumulate:
            return
        step = system.step
        with torch.no_grad():
            torch._foreach_lerp_(*self._pairs, 1 - min(self.decay, (1 + step) / (10 + step)))

    def state_dict(self):
        return self.average

    def load_state_dict(self, state_dict):
        self.average = dict(state_dict)


@contextlib.contextmanager
def weights_of(model: nn.Module, average: dict[str, torch.Tensor]):
    """Run a block with ``average`` in the model's parameters; the raw weights come back bit for bit."""
    weights = dict(model.named_parameters())
    raw = {name: weights[name].detach().clone() for name in average}
    with torch.no_grad():
        for name, value in average.items():
            weights[name].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in raw.items():
                weights[name].copy_(value)
