"""Maximum likelihood of models with continuous flows."""

from __future__ import annotations

import torch
from torch import Tensor

from models.contracts import GenerativeModel, Loss
from models.objectives.likelihood import MaximumLikelihood
from models.transforms.continuous import count_evaluations


class ContinuousLikelihood(MaximumLikelihood):
    """Maximum likelihood that also logs ``evaluations``: calls of the vector fields while scoring the batch, all flows together.

    They grow as training makes the dynamics harder (Grathwohl et al. 2019, arXiv:1810.01367, sec. 5.2). The gradient's, of an
    adjoint about as many, are not among them.
    """

    def forward(self, model: GenerativeModel, batch: tuple[Tensor, Tensor | None], step: int) -> Loss:
        loss = super().forward(model, batch, step)
        loss.log["evaluations"] = torch.tensor(float(count_evaluations(model)), device=loss.value.device)
        return loss
