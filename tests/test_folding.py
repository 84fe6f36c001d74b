"""Parts that fold together do what each does alone."""

from __future__ import annotations

import pytest
import torch

from models.nn.data_init import initialize
from models.transforms.folding import Folding
from tests.conftest import build_model, compose, shaped
from tests.laws import random_batch, ready


def steps_of_glow(num_steps: int = 3):
    """The one Sequential of a small Glow, off its starting point, in float64."""
    torch.manual_seed(0)
    config = compose("model=glow", "debug=tiny", *shaped((2, 4, 4), 5, None), f"model.architecture.num_steps={num_steps}")
    return ready(build_model(config, torch.float64), scale=0.1).transforms[1]


def outputs(chain, alone: bool, inverse: bool, x):
    """(output, log-det) of the parts with what they fold together, or each folding for itself."""
    folding = chain._folding
    folded = folding.fold()
    last = [()] * len(folded) if alone else folding.invert(folded) if inverse else folded
    total = 0
    for part, more in zip(*(reversed(list(t)) if inverse else t for t in (folding.parts, last)), strict=True):
        x, log_det = part.inverse_and_log_det(x, None, *more) if inverse else part(x, None, *more)
        total = total + log_det
    return x, total


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_together_is_alone(inverse):
    chain = steps_of_glow()
    assert sorted(map(len, chain._folding.groups)) == [3, 3]
    x = torch.rand(4, 2, 4, 4, dtype=torch.float64) - 0.5
    if inverse:
        x = chain(x)[0].detach()
    results = []
    for alone in (True, False):
        z, log_det = outputs(chain, alone, inverse, x)
        gradients = torch.autograd.grad(z.sin().sum() + log_det.sum(), list(chain.parameters()))
        results.append([z, log_det, *gradients])
    assert len({float(p.detach().sum()) for p in chain.parameters()}) > 3  # the steps are not copies of each other
    for one, other in zip(*results, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(other, one, rtol=1e-8, atol=1e-8)


def test_parts_of_other_sizes_fold_apart():
    small, large = (steps_of_glow(num_steps)._folding.parts for num_steps in (1, 2))
    config = compose("model=glow", "debug=tiny", *shaped((3, 4, 4), 5, None))
    other = build_model(config, torch.float64).transforms[1]._folding.parts
    assert [len(group) for group in Folding([*small, *large, *other]).groups].count(3) == 2
    assert len(Folding([*small, *other]).groups) == 4


def test_nothing_is_folded_before_the_first_batch():
    """A folded norm that a first batch is still to set would hold its old values."""
    config = compose("model=glow", "debug=tiny", *shaped((2, 4, 4), 5, None))
    model = build_model(config, torch.float64)
    x, y = random_batch(model.spec, 64)
    initialize(model, x, y)
    norm = model.transforms[1]._folding.parts[1].norm
    z, _ = norm(model.transforms[1].parts[0](model.transforms[0](model.dequantization(x)[0])[0])[0])
    assert z.transpose(0, 1).flatten(1).std(1).sub(1).abs().max() < 0.2


@pytest.mark.parametrize("change", [
    lambda chain: chain.parts[1].bias.add_(0.5),
    lambda chain: chain.parts[2].sign.neg_(),
    lambda chain: chain.load_state_dict({k: v + 0.5 if k == "parts.1.bias" else v for k, v in chain.state_dict().items()}, assign=True),
    lambda chain: chain.float().double(),
], ids=["parameter", "buffer", "assigned", "moved"])  # fmt: skip
@torch.no_grad()
def test_what_evaluation_keeps_follows_the_parameters(change):
    """Folds are made once in evaluation; after a change both directions are again those of parts that fold for themselves."""
    chain = steps_of_glow().eval()
    folding = chain._folding
    assert folding.fold() is folding.fold() and folding.fold_inverse() is folding.fold_inverse()
    change(chain)
    x = torch.rand(4, 8, 2, 2, dtype=torch.float64) - 0.5
    for inverse in (False, True):
        start = x if inverse else chain.parts[0].inverse(x)
        kept = chain.inverse_and_log_det(start) if inverse else chain(start)
        for one, other in zip(kept, outputs(chain, True, inverse, start), strict=True):
            assert other.isfinite().all()
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    assert folding.fold() is folding.fold()
    chain.train()
    assert folding.fold() is not folding.fold()
