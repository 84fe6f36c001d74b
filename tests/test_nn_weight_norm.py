import pytest
import torch
import torch.nn.functional as F

from models.nn.weight_norm import WeightNormConv2d, WeightNormConvTranspose2d, WeightNormLinear

LAYERS = {
    "linear": (lambda s: WeightNormLinear(3, 4, init_scale=s), (64, 3), 0),
    "conv": (lambda s: WeightNormConv2d(3, 4, (2, 3), stride=2, init_scale=s), (16, 3, 6, 7), 0),
    "conv_transpose": (lambda s: WeightNormConvTranspose2d(3, 4, (2, 3), stride=2, init_scale=s), (16, 3, 4, 5), 1),
}


def ready(layer):
    layer._ready = True
    return layer.double()


def first_pass(layer, x):
    layer.initializing = True
    with torch.no_grad():
        y = layer(x)
    layer.initializing = False
    return y


@pytest.mark.parametrize("name", LAYERS)
def test_equals_torch_weight_norm(name):
    make, shape, out_axis = LAYERS[name]
    layer = ready(make(1.0))
    with torch.no_grad():
        layer.g.copy_(torch.randn(4)), layer.b.copy_(torch.randn(4))
    x = torch.randn(shape, dtype=torch.float64)
    g = layer.g.view([4 if axis == out_axis else 1 for axis in range(layer.v.dim())])
    weight = torch._weight_norm(layer.v, g, out_axis)
    if name == "linear":
        expected = F.linear(x, weight, layer.b)
    elif name == "conv":
        expected = F.conv2d(x, weight, layer.b, stride=2)
    else:
        expected = F.conv_transpose2d(x, weight, layer.b, stride=2)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_first_batch_sets_mean_0_and_std_init_scale(name, scale):
    make, shape, _ = LAYERS[name]
    layer = make(scale).double()
    x = 5 + 3 * torch.randn(shape, dtype=torch.float64)
    y = first_pass(layer, x).movedim(1, 0).flatten(1)
    torch.testing.assert_close(y.mean(1), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(y.std(1, correction=0), torch.full((4,), scale, dtype=torch.float64))


def test_a_constant_batch_does_not_blow_up():
    layer = WeightNormLinear(3, 4).double()
    first_pass(layer, torch.ones(8, 3, dtype=torch.float64))
    assert torch.equal(layer.g, torch.ones(4, dtype=torch.float64))
    layer._ready = True
    torch.testing.assert_close(layer(torch.ones(1, 3, dtype=torch.float64)), torch.zeros(1, 4, dtype=torch.float64))


def test_refuses_to_run_before_its_first_batch():
    with pytest.raises(RuntimeError, match="initialising batch"):
        WeightNormLinear(3, 4)(torch.zeros(1, 3))
