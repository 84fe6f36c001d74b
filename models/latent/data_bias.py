"""Logits that start at the data's log-odds."""

import torch
from torch import Tensor

from models.contracts import DataSpec
from models.nn.data_init import DataInitialized

FLOOR = 1e-3
"""Pixel means are kept in [FLOOR, 1 - FLOOR], so that a pixel that is always 0 gets a finite logit."""


class DataBias(DataInitialized):
    """params + log(m / (1 - m)), m the mean image of the initialising batch; both [B, C, H, W].

    The shift is a constant: learning goes on in the decoder's own bias, which starts at 0, so this equals setting that
    bias once from the data mean, as the code of Burda et al. 2016 (arXiv:1509.00519) does, there over all training images.
    """

    def __init__(self, spec: DataSpec):
        super().__init__()
        self.register_buffer("logits", torch.zeros(spec.shape))

    def observe(self, x: Tensor) -> None:
        """Take the mean of ``x``, if this is the initialising pass."""
        if self.initializing:
            self.logits.copy_(torch.logit(x.to(self.logits.dtype).mean(0), eps=FLOOR))

    def forward(self, params: Tensor) -> Tensor:
        self.require_initialized()
        return params + self.logits
