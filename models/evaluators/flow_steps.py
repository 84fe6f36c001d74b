"""A picture of points on their way through a flow, step by step from the base to the data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from models.build import ConfigError
from models.contracts import Transform
from models.evaluators.base import Context, Evaluator
from models.flow.flow import Flow
from models.pictures import save_scatter
from models.transforms.sequence import Sequential


class FlowSteps(Evaluator):
    """``num`` draws of a flow over the plane: in its base, after every step of its inverse, and as data; no number.

    A point keeps the colour of its direction from the base's centre. Of more than ``panels`` states those evenly spaced are
    shown. Written to samples/flow_steps_WEIGHTS.png. Raises ConfigError for any other model or data.
    """

    def __init__(self, num: int, panels: int):
        if num < 1 or panels < 2:
            raise ValueError(f"evaluators.flow_steps needs num >= 1 and panels >= 2; got num={num}, panels={panels}")
        self.num, self.panels = num, panels

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        model = context.model
        if not isinstance(model, Flow) or model.spec.levels is not None or model.spec.dims != 2:
            raise ConfigError("flow_steps draws flows over points of the plane (data=toy2d): take it out of evaluators")
        if context.rank:
            return []
        with context.noise("flow_steps"):
            states = list(self._states(model))
        angle = torch.atan2(*states[0][1].unbind(1)[::-1])
        last = len(states) - 1
        shown = sorted({round(i * last / (self.panels - 1)) for i in range(self.panels)})
        panels = {name if i in (0, last) else f"{i} of {last}: {name}": points for i, (name, points) in enumerate(states) if i in shown}
        save_scatter(panels, angle, context.folder / "samples" / f"flow_steps_{context.weights}.png")
        return []

    def _states(self, model: Flow) -> Iterator[tuple[str, Tensor]]:
        """(what was done last, points [num, 2]) of every state with two numbers."""
        z = model.base(None).rsample(self.num)
        yield "base", z.flatten(1)
        steps = list(_atoms(model.transforms))
        for step in reversed(steps):
            before, z = z, step.inverse(z)
            if z[0].numel() == 2 and (step is steps[0] or z.shape != before.shape or not torch.equal(z, before)):
                yield "data" if step is steps[0] else type(step).__name__, z.flatten(1)


def _atoms(transforms) -> Iterator[Transform]:
    for transform in transforms:
        if isinstance(transform, Sequential):
            yield from _atoms(transform.parts)
        else:
            yield transform
