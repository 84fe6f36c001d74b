"""Recomputing activations through the inverse changes memory, not gradients."""

from __future__ import annotations

import pytest
import torch

from benchmarks.training import peak_of_cpu_allocations
from models.nn.data_init import initialize
from models.transforms.coupling import Coupling
from models.transforms.flip import Flip
from models.transforms.maps import Additive
from models.transforms.sequence import Sequential
from tests.conftest import build_model, compose, shaped
from tests.laws import random_batch, ready

RECOMPUTE = "model.architecture.recompute=true"


def pair(*overrides, model="glow", shape=(2, 4, 4), classes=None, dtype=torch.float64):
    """The same model without and with recomputation, off its starting point, and a batch."""
    models = []
    for more in ((), (RECOMPUTE,)):
        torch.manual_seed(0)
        config = compose(f"model={model}", "debug=tiny", *shaped(shape, 5, classes), *overrides, *more)
        models.append(ready(build_model(config, dtype), scale=0.05))
    return models, random_batch(models[0].spec, 4)


def gradients(model, x, y):
    torch.manual_seed(1)
    return torch.autograd.grad(model(x, y).nats.mean(), list(model.parameters()))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.architecture.num_steps=6",),
        ("model.architecture.step.coupling.scalar_map._target_=models.transforms.maps.Additive",),
        ("model.conditional=true",),
    ],
    ids=["affine", "deep", "additive", "labels"],
)
def test_gradients_are_the_same(overrides):
    models, (x, y) = pair(*overrides, classes=3 if "model.conditional=true" in overrides else None)
    plain, recomputed = (gradients(model, x, y) for model in models)
    assert any(gradient.abs().max() > 1e-3 for gradient in plain)
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-8)


def test_input_and_context_get_gradients():
    class Shifted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, a, context):
            return torch.tanh(self.linear(a) + context)


    torch.manual_seed(0)
    parts = [Coupling(4, lambda inputs, outputs: Shifted(), Additive), Flip(), Coupling(4, lambda i, o: Shifted(), Additive)]
    results = []
    for recompute in (False, True):
        chain = Sequential(parts, recompute).double()
        x, context = (torch.linspace(-1, 1, 3 * n, dtype=torch.float64).view(3, n).requires_grad_() for n in (4, 2))
        z, log_det = chain(x, context)
        results.append(torch.autograd.grad((z**2).sum() + log_det.sum(), [x, context, *chain.parameters()]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


def test_initialisation_and_scores_are_the_same():
    models, (x, y) = pair()
    scores = []
    for model in models:
        torch.manual_seed(2)
        scores.append(model(x, y).nats)
    torch.testing.assert_close(*scores, rtol=1e-12, atol=1e-12)
    fresh = build_model(compose("model=glow", "debug=tiny", *shaped((2, 4, 4), 5), RECOMPUTE))
    assert initialize(fresh, x, y) and not initialize(fresh, x, y)


def test_memory_does_not_grow_with_the_steps():
    peaks = {}
    for steps in (2, 6):
        size = ("model.architecture.num_levels=2", f"model.architecture.num_steps={steps}")
        for name, model in zip(("plain", "recomputed"), pair(*size, shape=(3, 32, 32), dtype=torch.float32)[0], strict=True):
            x, y = random_batch(model.spec, 8)
            parameters = sum(p.numel() * p.element_size() for p in model.parameters())
            peaks[name, steps] = peak_of_cpu_allocations(lambda: model(x, y).nats.mean().backward()) - parameters
    assert peaks["plain", 6] > 2 * peaks["plain", 2]
    assert peaks["recomputed", 6] < 1.1 * peaks["recomputed", 2] < peaks["plain", 2]


def test_half_precision_nets():
    """In bfloat16 both see the same rounding, but for what the inverse loses."""
    models, (x, y) = pair(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain, recomputed = (torch.cat([g.flatten() for g in gradients(model, x, y)]) for model in models)
    assert (recomputed - plain).norm() < 0.05 * plain.norm()


def test_dropout_is_refused():
    with pytest.raises(ValueError, match="set dropout to 0"):
        pair("model.architecture.step.coupling.conditioner.dropout=0.1", model="nsf_image")
