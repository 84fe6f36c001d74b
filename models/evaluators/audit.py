"""The laws a trained model can be held to at its full size. (That it sums to 1 is tested at a size where one can count.)"""

from __future__ import annotations

import copy
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.contracts import Bijection, CausalNet, GenerativeModel, Kind, sum_event
from models.evaluators.base import Context, Evaluator, record
from models.flow.flow import flow_over_data


@contextmanager
def recorded_calls(model: nn.Module, kind: type[nn.Module]):
    """(name, module, inputs, output) of every call of a module of ``kind`` in the block that is not inside another one's."""
    names = {module: name for name, module in model.named_modules() if isinstance(module, kind)}
    calls, open_calls = [], []

    def enter(module, inputs):
        open_calls.append(module)

    def leave(module, inputs, output):
        open_calls.pop()
        if not open_calls:
            calls.append((names[module], module, inputs, output))

    handles = [module.register_forward_pre_hook(enter) for module in names]
    handles += [module.register_forward_hook(leave) for module in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def crop(x: Tensor, max_dims: int) -> Tensor | None:
    """The first example of ``x``, or its largest corner [1, C, s, s] within ``max_dims`` numbers (s = 2, 4, ...), or None."""
    if x[:1].numel() <= max_dims:
        return x[:1]
    if x.dim() != 4:
        return None
    side = 2
    while 4 * side * side * x.shape[1] <= max_dims and 2 * side <= min(x.shape[2:]):
        side *= 2
    return x[:1, :, :side, :side] if side * side * x.shape[1] <= max_dims else None


def log_det_error(bijection: Bijection, x: Tensor, context: Tensor | None) -> float:
    """|contribution - log |det dz/dx|| with autograd's Jacobian at one example x [1, ...], relative to 1 + |log det|."""
    with torch.enable_grad():
        _, contribution = bijection(x, context)
        jacobian = torch.autograd.functional.jacobian(lambda v: bijection(v.view_as(x), context)[0].flatten(), x.flatten())
    log_det = torch.linalg.slogdet(jacobian)[1]
    return float((contribution[0] - log_det).abs() / (1 + log_det.abs()))


def log_det_errors(calls: list, max_dims: int) -> tuple[dict[str, float], str]:
    """``log_det_error`` of each bijection of ``recorded_calls`` at the first example it was given, by name.

    An input of more than ``max_dims`` numbers is cropped to its corner; the text says which bijections take none.
    """
    errors, left_out = {}, []
    for name, bijection, (x, *rest), _ in calls:
        corner = crop(x, max_dims)
        if corner is None:
            left_out.append(f"{name}: {x[:1].numel()} dimensions are more than max_dims={max_dims}")
            continue
        side_input = rest[0][:1] if rest and rest[0] is not None else None
        try:
            errors[name] = log_det_error(bijection, corner, side_input)
        except RuntimeError:
            if corner.shape == x[:1].shape:
                raise
            left_out.append(f"{name}: takes no smaller images")
    return errors, "; ".join(left_out)


class Audit(Evaluator):
    """Checks on the trained model and ``num`` real examples.

    ``audit_failed`` is how many failed, its ``count`` how many were made; ``skipped`` says which were not and why. Each check
    has a record of what it measured, with ``limit`` and ``passed``:

    * ``audit_non_finite``: scores that are not finite; ``audit_terms_error``: |sum of terms - nats|, relative to 1 + |nats|;
    * ``audit_repeat_error``: difference of two scores under the same noise, and for an exact score under any noise;
    * ``audit_round_trip_float32`` and ``_float64`` (flows): sub-pixels of decode(encode(x)) that do not come back; a few
      may fail in float32, where an ill-conditioned map shows, none in float64;
    * ``audit_log_det_error`` (models that call bijections): contribution against the slogdet of autograd's Jacobian, in float64,
      at the activations of one example, or of its corner of at most ``max_dims`` numbers where those are more;
    * ``audit_causality_error`` (models with a causal net): change of the outputs up to a pixel when the pixels from it on change.
    """

    def __init__(self, num: int, max_dims: int):
        self.num, self.max_dims = num, max_dims

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        data = context.examples(self.num)
        x, y = data.to(context.device)
        model, double = context.model, copy.deepcopy(context.model).double()
        if x.is_floating_point():
            x = x.to(next(model.parameters()).dtype)
        wide = x.double() if x.is_floating_point() else x
        with context.noise("audit", "calls"), recorded_calls(double, (Bijection, CausalNet)) as calls:
            double(wide, y)
        skipped: dict[str, str] = {}
        records = [
            *self._scores(context, model, x, y),
            *self._round_trips({"float32": (model, x), "float64": (double, wide)}, y, skipped),
            *self._log_det([call for call in calls if isinstance(call[1], Bijection)], skipped),
            *self._causality(context, [call for call in calls if isinstance(call[1], CausalNet)], skipped),
        ]
        failed = sum(not item["passed"] for item in records)
        return [record("audit_failed", failed, None, "checks", "exact", len(records), skipped=skipped), *records]

    @staticmethod
    def _record(name: str, value: float, unit: str, count: int, limit: float, **extra) -> dict:
        return record(f"audit_{name}", value, None, unit, "exact", count, passed=value <= limit, limit=limit, **extra)

    def _scores(self, context: Context, model: GenerativeModel, x: Tensor, y: Tensor | None) -> list[dict]:
        def score(key: str):
            with context.noise("audit", key):
                return model(x, y)

        first, again = score("same"), score("same")
        terms = sum(first.terms.values()) if first.terms else torch.zeros_like(first.nats)
        difference = (first.nats - again.nats).abs().max()
        if first.kind == Kind.EXACT:
            difference = torch.maximum(difference, (first.nats - score("other").nats).abs().max())
        relative = (terms - first.nats).abs() / (1 + first.nats.abs())
        return [
            self._record("non_finite", int((~first.nats.isfinite()).sum()), "examples", len(x), 0),
            self._record("terms_error", float(relative.max()), "relative", len(x), 1e-5),
            self._record("repeat_error", float(difference), "nats", len(x), 0.0),
        ]

    def _round_trips(self, models: dict[str, tuple[GenerativeModel, Tensor]], y: Tensor | None, skipped: dict) -> list[dict]:
        records = []
        for name, (model, x) in models.items():
            flow = flow_over_data(model)
            if flow is None:
                skipped[f"round_trip_{name}"] = "the model has no flow over the data"
                continue
            back = flow.decode(flow.encode(x, y), y)
            wrong = (back.double() - x.double()).abs() > (0 if model.spec.levels else 1e-4)
            limit = 0 if name == "float64" else 1e-3 * x.numel()
            records.append(self._record(f"round_trip_{name}", int(wrong.sum()), "sub-pixels", len(x), limit))
        return records

    def _log_det(self, calls: list, skipped: dict) -> list[dict]:
        if not calls:
            skipped["log_det_error"] = "the score calls no bijection forward"
            return []
        errors, left_out = log_det_errors(calls, self.max_dims)
        if left_out:
            skipped["log_det_error"] = left_out
        if not errors:
            return []
        worst = max(errors, key=errors.get)
        return [self._record("log_det_error", errors[worst], "relative", len(errors), 1e-6, worst=worst)]

    def _causality(self, context: Context, calls: list, skipped: dict) -> list[dict]:
        if not calls:
            skipped["causality_error"] = "the model has no causal net"
            return []
        worst = 0.0
        for _, net, (x, *rest), output in calls:
            pixels = x.shape[2] * x.shape[3]
            for position in sorted({0, pixels // 3, pixels // 2, pixels - 1}):
                changed = x.flatten(2).clone()
                with context.noise("audit", "causality", position):
                    changed[:, :, position:] = torch.randn_like(changed[:, :, position:])
                difference = (net(changed.view_as(x), *rest) - output).flatten(2)[:, :, : position + 1]
                worst = max(worst, float(sum_event(difference.abs()).max()))
        return [self._record("causality_error", worst, "absolute", len(calls), 1e-10)]
