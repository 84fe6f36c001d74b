"""The masked linear layer against ``F.linear`` with the product of weight and mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.nn.masked import MADE, MaskedLinear


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def layer(bias=True, dtype=torch.float64):
    made = MaskedLinear(4, 3, bias).to(dtype)
    made.allow(torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 0]]))
    return made


def plain(layer, x):
    return F.linear(x, layer.weight * layer.mask, layer.bias)


def value_and_gradients(function, x, layer):
    y = function(x)
    return y, *torch.autograd.grad((y.sin() * torch.arange(y.numel()).view_as(y)).sum(), (x, *layer.parameters()))


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 5, 4), (0, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_numbers_and_gradients_are_the_plain_ones(shape, bias):
    made, x = layer(bias), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    for found, wanted in zip(value_and_gradients(made, x, made), value_and_gradients(lambda x: plain(made, x), x, made), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("bias", [True, False])
def test_first_and_second_derivatives(bias):
    made, x = layer(bias), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    call = lambda x, *values: torch.func.functional_call(made, dict(zip(names, values)), (x,))  # noqa: E731
    names, values = zip(*made.named_parameters())
    assert torch.autograd.gradcheck(call, (x, *values))
    assert torch.autograd.gradgradcheck(call, (x, *values))


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(frozen):
    made, x = layer(), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    tensors = {"x": x, "weight": made.weight, "bias": made.bias}
    tensors[frozen].requires_grad_(False)
    others = [t for name, t in tensors.items() if name != frozen]
    for found, wanted in zip(*(torch.autograd.grad(f(x).square().sum(), others) for f in (made, lambda x: plain(made, x))), strict=True):
        torch.testing.assert_close(found, wanted)


def test_half_precision_rounds_as_the_plain_formula():
    made, x = layer(dtype=torch.float32), torch.randn(5, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = (value_and_gradients(f, x, made) for f in (made, lambda x: plain(made, x)))
    assert found[0].dtype == torch.bfloat16 and found[2].dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_compiled_nets_and_batched_backward_passes_give_the_same_numbers():
    """In one graph; and Jacobians row by row and all at once."""
    net = MADE(range(4), [6], 2, 0, torch.nn.ReLU).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for a, b in zip(value_and_gradients(compiled, x, net), value_and_gradients(net, x, net), strict=True):
        torch.testing.assert_close(a, b)
    rows = torch.autograd.functional.jacobian(net, x)
    torch.testing.assert_close(torch.autograd.functional.jacobian(net, x, vectorize=True), rows)
    assert rows.abs().max() > 0.01


def test_the_product_is_not_kept():
    made, x = layer(), torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    own = {t.data_ptr() for t in (x, made.weight, made.mask)}
    kept = set()

    def pack(t):
        kept.add(t.data_ptr())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = made(x)
    assert y.requires_grad and kept <= own
