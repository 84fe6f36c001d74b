"""What a flow's own arithmetic loses between an image and its latents and back."""

from __future__ import annotations

import copy
from math import inf

import torch
from torch import Tensor

from models.build import ConfigError
from models.evaluators.base import Context, Evaluator, evenly_spaced, record
from models.flow.flow import Flow, flow_over_data
from models.pictures import heat, rgb, save_labelled

COLUMNS = 3
"""Images in a row, each beside its map."""

FORMS = {"float32": (torch.float32, False), "precise": (torch.float32, True), "float64": (torch.float64, False)}
"""Dtype of weights and latents, and whether the arithmetic between them is float64 all the same."""


class RoundTrip(Evaluator):
    """|v - decode(encode(v))| in levels before rounding, for ``num`` images of the split, v the midpoints of their bins.

    FORM is float32 or float64 throughout, or precise: weights and latents in float32 and ``precise`` arithmetic between them
    (see ``Flow.encode``), which leaves what rounding the latents costs. ``round_trip_FORM_levels`` is the largest error of a
    sub-pixel, ``round_trip_FORM_mean_levels`` their mean, ``round_trip_FORM_exact`` the share of integers that come back, for
    which the error must stay below 1/2. An error that is not finite is infinite. Continuous data has units instead of levels,
    and no integers. The picture samples/round_trip_SPLIT_WEIGHTS.png shows the ``shown`` worst images in float32.

    Raises ConfigError for a model without a flow over the data.
    """

    def __init__(self, num: int | None, shown: int):
        if shown < 1 or (num is not None and num < 1):
            raise ValueError(f"evaluators.round_trip: num and shown must be at least 1; got {num} and {shown}")
        self.num, self.shown = num, shown

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        flow = flow_over_data(context.model)
        if flow is None:
            raise ConfigError("this model has no flow over the data: take round_trip out of evaluators")
        unit, records = "units" if flow.spec.levels is None else "levels", []
        for name, (dtype, precise) in FORMS.items():
            index, errors, right = self._measure(context, copy.deepcopy(flow).to(dtype), precise)
            largest, mean, share = float(errors.max()), float(errors.mean()), float(right.double().mean())
            records += [
                record(f"round_trip_{name}_{unit}", largest, None, unit, "exact", len(errors)),
                record(f"round_trip_{name}_mean_{unit}", mean, None, unit, "exact", len(errors)),
            ]
            if unit == "levels":
                records.append(record(f"round_trip_{name}_exact", share, None, "share", "exact", len(errors)))
                if name == "float32" and context.rank == 0:
                    self._draw(context, index, errors)
        return records

    def _measure(self, context: Context, flow: Flow, precise: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Index [n] of the images, error [n, C, H, W] of each sub-pixel and whether it came back, from all ranks."""
        module, parts = context.datamodule, []
        mine = evenly_spaced(module.num_examples(context.split), self.num)[context.rank :: context.world]
        for index in mine.split(module.eval_batch_size):
            data = module.split(context.split)[index]
            x, y = data.to(context.device)
            if flow.dequantization is None:
                v, scale = x.to(next(flow.parameters()).dtype), 1
                x = v if flow.spec.levels is None else x
            else:
                v, scale = flow.dequantization.midpoint(x), flow.spec.levels
            back = flow.decode_continuous(flow.encode(x, y, precise), y, precise=precise)
            error = scale * (back - v).double().abs()
            right = (back if flow.dequantization is None else flow.dequantization.inverse(back)) == x
            parts.append((index, error.nan_to_num(nan=inf, posinf=inf).cpu(), right.cpu()))
        parts = [part for rank in context.gather(parts) for part in rank]
        if not parts:
            raise ConfigError(f"{module.name} has no examples in split={context.split}: choose another split")
        return tuple(torch.cat(column) for column in zip(*parts))

    def _draw(self, context: Context, index: Tensor, errors: Tensor) -> None:
        worst = errors.flatten(1).amax(1).argsort(descending=True, stable=True)[: self.shown]
        errors = errors[worst].amax(1)
        images = rgb(context.datamodule.split(context.split)[index[worst]].x, context.model.spec.levels)
        high = float(errors[errors.isfinite()].max()) if errors.isfinite().any() else 1.0
        maps = torch.nn.functional.interpolate(heat(errors, 0.0, high), images.shape[2:])  # as wide as channels side by side
        captions = [caption for error in errors.flatten(1).amax(1) for caption in ("", f"{float(error):.1e}")]
        path = context.folder / "samples" / f"round_trip_{context.split}_{context.weights}.png"
        titles = ["image, its error", ""] * min(COLUMNS, len(worst))
        pairs = torch.stack([images, maps], 1).flatten(0, 1)
        save_labelled(pairs, path, titles, captions, bar=(0.0, high, f"{high:.1e} levels (float32)"))
