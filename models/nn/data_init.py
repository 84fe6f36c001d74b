"""Data-dependent initialisation: one protocol for ActNorm, weight norm and whatever else looks at a first batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DataInitialized(nn.Module):
    """A module that sets parameters from the statistics of its input once, in ``initialize``'s pass, and never again.

    A subclass begins its forward with ``self.require_initialized()`` and sets its parameters where
    ``self.initializing`` is true. The flag is a persistent buffer; its Python mirror costs no device synchronisation.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("initialized", torch.tensor(False))
        self.initializing = False
        self._ready = False
        self.register_load_state_dict_post_hook(lambda module, _: module._mirror())

    def _mirror(self) -> None:
        self._ready = bool(self.initialized)

    def require_initialized(self) -> None:
        if not (self._ready or self.initializing):
            raise RuntimeError(
                f"{type(self).__name__} has not seen its initialising batch: call models.nn.data_init.initialize(model, x, y) "
                "or load a checkpoint before scoring"
            )


def initialize(model: nn.Module, x: Tensor, y: Tensor | None = None) -> bool:
    """Initialise every DataInitialized part that still waits, by one scoring pass over ``x``; True if there was one.

    Call it before the DDP wrap, with the same batch and seed on every rank: then all ranks hold the same values.
    """
    waiting = [m for m in model.modules() if isinstance(m, DataInitialized) and not m._ready]
    if not waiting:
        return False
    training = model.training
    try:
        for module in waiting:
            module.initializing = True
        model.train(False)
        with torch.no_grad():
            model.score(x, y)
    finally:
        for module in waiting:
            module.initializing = False
        model.train(training)
    for module in waiting:
        module.initialized.fill_(True)
        module._mirror()
    return True
