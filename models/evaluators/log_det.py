"""What a flow's log-determinants lose in float32, and whether they are the right ones."""

from __future__ import annotations

import copy

import torch

from models.build import ConfigError
from models.contracts import Bijection, Kind
from models.evaluators.audit import log_det_errors, recorded_calls
from models.evaluators.base import Context, Evaluator, evenly_spaced, record
from models.flow.flow import Flow, flow_over_data
from models.units import bits


class LogDet(Evaluator):
    """The log-determinants of a flow's bijections on ``num`` images of the split, v the midpoints of their bins.

    ``log_det_float32_nats`` is the largest error of an image's sum of them in float32, judged by the same pass in float64;
    ``worst`` names the bijection with the largest one. ``log_det_float32_mean_nats``, and ``_mean_bpd`` for data with levels,
    is their mean with its sign: what rounding adds to a reported likelihood. ``log_det_autograd_error`` compares float64 with the
    slogdet of autograd's Jacobian at one image's activations, as a share of 1 + |log det|; above ``max_dims`` numbers they
    are cropped, and ``skipped`` says which bijections take no smaller ones.

    Raises ConfigError for a model without a flow over the data, and for a flow that draws noise: its passes do not compare.
    """

    def __init__(self, num: int | None, max_dims: int):
        if num is not None and num < 1:
            raise ValueError(f"evaluators.log_det.num must be at least 1, or null for all; got {num}")
        self.num, self.max_dims = num, max_dims

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        flow = flow_over_data(context.model)
        if flow is None:
            raise ConfigError("this model has no flow over the data: take log_det out of evaluators")
        if any(transform.kind != Kind.EXACT for transform in flow.transforms):
            raise ConfigError("this flow draws noise, so that no two passes compare: take log_det out of evaluators")
        names, errors, exact = self._measure(context, flow)
        total, worst = errors.sum(1), names[int(errors.abs().amax(0).argmax())]
        records = [
            record("log_det_float32_nats", float(total.abs().max()), None, "nats", "exact", len(total), worst=worst),
            record("log_det_float32_mean_nats", float(total.mean()), None, "nats", "exact", len(total)),
        ]
        if flow.spec.levels is not None:
            mean = bits(float(total.mean())) / flow.spec.dims
            records.append(record("log_det_float32_mean_bpd", mean, None, "bits/dim", "exact", len(total)))
        found, skipped = log_det_errors(exact, self.max_dims)
        if found:
            worst = max(found, key=found.get)
            more = {"worst": worst, "skipped": skipped or None}
            records.append(record("log_det_autograd_error", found[worst], None, "relative", "exact", len(found), **more))
        return records

    def _measure(self, context: Context, flow: Flow) -> tuple[list[str], torch.Tensor, list]:
        """Names of the bijections [T], error of each on each image of all ranks [n, T], and the calls of a float64 pass."""
        single, double = copy.deepcopy(flow).float(), copy.deepcopy(flow).double()
        module, parts, exact = context.datamodule, [], []
        chosen = evenly_spaced(module.num_examples(context.split), self.num)
        for place, index in enumerate(chosen.split(module.eval_batch_size)):
            if place and place % context.world != context.rank:
                continue  # every rank looks at the first batch, whose calls it returns
            data = module.split(context.split)[index]
            x, y = data.to(context.device)
            v = x.float() if single.dequantization is None else single.dequantization.midpoint(x)
            both = []
            for copied, reals in ((single, v), (double, v.double())):
                with recorded_calls(copied, Bijection) as calls:
                    copied.score_continuous(reals, y)
                both.append(torch.stack([output[1].double() for *_, output in calls], 1).cpu())
            exact = exact or calls
            if place or context.rank == 0:
                parts.append(both[0] - both[1])
        parts = [part for rank in context.gather(parts) for part in rank]
        if not parts:
            raise ConfigError(f"{module.name} has no examples in split={context.split}: choose another split")
        return [name for name, *_ in exact], torch.cat(parts), exact
