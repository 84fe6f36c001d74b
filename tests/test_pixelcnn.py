import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from callbacks.ema import weights_of
from models.autoregressive.gated_pixelcnn import GatedPixelCNN
from models.autoregressive.model import Autoregressive
from models.autoregressive.orders import Column, Raster
from models.autoregressive.pixelcnn import PixelCNN
from models.contracts import DataSpec
from models.likelihoods.bernoulli import Bernoulli
from models.likelihoods.categorical import Categorical
from models.likelihoods.logistic import DiscretizedLogistic, MixtureLogistic
from models.nn.masked_conv import MaskedConv2d, share
from tests.checks_causal import check_cache, check_causal, dependence
from tests.laws import check_frequencies, check_normalized, disturb

SHALLOW = {
    PixelCNN: {"num_blocks": 2, "width": 5, "head_width": 7, "first_kernel": 5, "kernel": 3},
    GatedPixelCNN: {"num_layers": 3, "width": 5, "head_width": 7, "kernel": 3},
}
DEEP = {
    PixelCNN: {"num_blocks": 6, "width": 16, "head_width": 48, "first_kernel": 3, "kernel": 3},
    GatedPixelCNN: {"num_layers": 6, "width": 32, "head_width": 48, "kernel": 3},
}
BOTH = pytest.mark.parametrize("net", [PixelCNN, GatedPixelCNN])
SHAPES = pytest.mark.parametrize(
    "shape, groups", [((1, 4, 4), 1), ((3, 4, 4), 3), ((3, 4, 4), 1), ((2, 3, 5), 2), ((3, 5, 2), 3)]
)  # fmt: skip


def build(net, shape, groups=1, classes=None, out_channels=None, **sizes):
    """A float64 net in eval mode, moved off its initial values."""
    torch.manual_seed(0)
    built = net(shape, out_channels or 4 * shape[0], groups, classes, **(SHALLOW[net] | sizes)).double().eval()
    return disturb(built, 0.1)


def model_of(net, spec, head, order=Raster, classes=None, **sizes):
    """An autoregressive model of the net, float64, in eval mode."""
    torch.manual_seed(0)
    model = Autoregressive(spec, partial(net, **(SHALLOW[net] | sizes)), order(spec, 1, False), head, conditional=bool(classes))
    return disturb(model.double().eval())


# --- masked convolutions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 3), (1, 5), (1, 1), (7, 7)])
def test_masked_conv_is_the_whole_kernel_with_zeros(kernel, mask):
    """Against the figure of the paper: taps below, right of the centre and, by owner, at the centre are zero."""
    inputs, outputs = share(4, 3), 2 * share(5, 3)
    conv = disturb(MaskedConv2d(inputs, outputs, kernel, mask).double())
    middle, left = kernel[0] // 2, kernel[1] // 2
    whole = torch.zeros(10, 4, *kernel, dtype=torch.float64)
    if middle:
        whole[:, :, :middle] = conv.weight[:, :, :-1]
    whole[:, :, middle, :left] = conv.weight[:, :, -1, :left]
    for o, reader in enumerate(outputs):
        for i, owner in enumerate(inputs):
            if owner < reader or (mask == "B" and owner == reader):
                whole[o, i, middle, left] = conv.weight[o, i, -1, left]
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(conv(x), F.conv2d(x, whole, conv.bias, padding=(middle, left)))


def test_features_are_shared_as_evenly_as_can_be():
    assert share(6, 3) == [0, 0, 1, 1, 2, 2]
    assert share(128, 3) == [0] * 43 + [1] * 43 + [2] * 42
    with pytest.raises(ValueError, match="2 features cannot be shared among 3 channels"):
        share(2, 3)


def copied(conv):
    """A deep copy, changed as often as the original had been: its parameter counts its own changes."""
    twin = copy.deepcopy(conv)
    while twin.weight._version < conv.weight._version:
        twin.weight.add_(1.0)
    return twin


def step_of_a_fused_optimizer(conv, between=lambda: None):
    """It leaves no trace in the parameter's version."""
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.1, fused=True)
    with torch.enable_grad():
        conv(torch.randn(1, 3, 4, 4, dtype=conv.weight.dtype)).sum().backward()
    between()
    optimizer.step()
    return conv


def trained(conv):
    """Looked at in evaluation mode when the gradient is there and the step is not yet made."""
    return step_of_a_fused_optimizer(conv.train(), lambda: (conv.eval().masked_weight(), conv.train())).eval()


def assigned(conv):
    conv.load_state_dict({name: value + 1 for name, value in conv.state_dict().items()}, assign=True)
    return conv


def swapped(conv):
    with weights_of(conv, {"weight": conv.weight + 1}):
        assert_right(conv)
    return conv


def assert_right(conv):
    assert torch.equal(conv.masked_weight(), conv.weight.masked_fill(conv.hidden, 0))


@pytest.mark.parametrize("change", [
    lambda conv: conv, copied, step_of_a_fused_optimizer, trained, assigned, swapped,
    lambda conv: conv.load_state_dict({name: value + 1 for name, value in conv.state_dict().items()}) and conv,
    lambda conv: disturb(conv), lambda conv: conv.float(), lambda conv: conv.bfloat16().double(),
], ids=["nothing", "copy", "fused step", "training", "assign", "ema swap", "load", "in place", "float", "rounded"])  # fmt: skip
@torch.no_grad()
def test_kept_weight_follows_the_parameter(change):
    conv = MaskedConv2d([0, 1, 2], [0, 1, 2], (3, 3), "A").double().eval()
    assert conv.masked_weight() is conv.masked_weight()
    conv = change(conv)
    assert_right(conv)
    assert conv.masked_weight() is conv.masked_weight()


@torch.no_grad()
def test_kept_weight_is_not_used_for_borrowed_parameters_or_in_training():
    conv = MaskedConv2d([0, 1, 2], [0, 1, 2], (3, 3), "A").eval()
    x = torch.randn(1, 3, 4, 4)
    before = conv(x)
    doubled = {name: 2 * value for name, value in conv.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(conv, doubled, x), 2 * before)
    assert conv.train().masked_weight() is not conv.masked_weight()
    with torch.enable_grad():
        assert conv.eval().masked_weight().requires_grad


# --- what the nets see ---------------------------------------------------------------------------------------------------


@SHAPES
def test_gated_pixelcnn_sees_every_earlier_pixel(shape, groups):
    check_causal(build(GatedPixelCNN, shape, groups, **DEEP[GatedPixelCNN]), shape)


@SHAPES
def test_pixelcnn_is_causal(shape, groups):
    check_causal(build(PixelCNN, shape, groups, **DEEP[PixelCNN]), shape, sees_all=False)


@pytest.mark.parametrize("shape, groups, first_kernel, kernel", [
    ((1, 5, 5), 1, 3, 3), ((1, 4, 8), 1, 7, 3), ((1, 4, 9), 1, 3, 5), ((3, 3, 4), 3, 3, 3), ((3, 3, 4), 1, 3, 3),
])  # fmt: skip
def test_pixelcnn_is_blind_to_the_upper_right_triangle_and_to_nothing_else(shape, groups, first_kernel, kernel):
    """Of the row ``up`` rows above, what lies more than first // 2 + (up - 1) (kernel // 2) columns to the right."""
    net = build(PixelCNN, shape, groups, **(DEEP[PixelCNN] | {"first_kernel": first_kernel, "kernel": kernel}))
    pixel = torch.arange(shape[1] * shape[2] * groups) // groups
    row, column = pixel // shape[2], pixel % shape[2]
    up, right = row[:, None] - row, column - column[:, None]
    blind = (up > 0) & (right > first_kernel // 2 + (up - 1) * (kernel // 2))
    earlier = torch.ones_like(blind).tril(-1)
    assert (blind & earlier).any(), "this image is too narrow to show the blind spot"
    assert torch.equal(dependence(net, shape), earlier & ~blind)


# --- cached sampling -----------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("shape, groups", [
    ((1, 4, 4), 1), ((3, 4, 5), 3), ((3, 5, 3), 1), ((2, 7, 2), 2), ((1, 1, 6), 1), ((3, 3, 1), 3), ((1, 8, 8), 1),
])  # fmt: skip
@pytest.mark.parametrize("sizes", [{}, {"kernel": 5, "width": 4}])
def test_cached_parameters_equal_the_full_pass(net, shape, groups, sizes):
    x = torch.randn(3, *shape, dtype=torch.float64)
    check_cache(build(net, shape, groups, **sizes), x)
    check_cache(build(net, shape, groups, classes=4, **sizes), x, torch.tensor([0, 3, 1]))


@BOTH
@pytest.mark.parametrize("head, levels", [
    (Categorical, 17), (Bernoulli, 2), (partial(DiscretizedLogistic, min_log_scale=-7.0), 256),
    (partial(MixtureLogistic, num_mixtures=2, min_log_scale=-7.0), 256),
], ids=["categorical", "bernoulli", "logistic", "mixture"])  # fmt: skip
def test_cached_samples_and_completions_equal_the_uncached(net, head, levels, monkeypatch):
    spec = DataSpec((3, 4, 5), levels, 4)
    model = model_of(net, spec, head(spec), Column, classes=4)
    x, y = torch.randint(levels, (4, *spec.shape), dtype=torch.uint8), torch.arange(4)
    assert model.net.groups == (1 if isinstance(model.likelihood, MixtureLogistic) else 3)

    def draw():
        torch.manual_seed(3)
        return model.sample(4, y, temperature=0.8), model.complete(x, 7, y)

    cached = draw()
    monkeypatch.setattr(model.net, "start", lambda n, y: None)
    for one, other in zip(cached, draw()):
        assert torch.equal(one, other)
    assert not torch.equal(*cached)


@BOTH
@pytest.mark.parametrize("groups", [1, 3])
@torch.no_grad()
def test_all_steps_together_cost_no_more_than_one_pass(net, groups):
    """Multiplications, counted; what masks hide is not even computed."""
    shape = (3, 8, 8)
    built = build(net, shape, groups, width=24, head_width=48)
    x = torch.randn(2, *shape, dtype=torch.float64)
    with FlopCounterMode(display=False) as full:
        built(x)
    with FlopCounterMode(display=False) as cached:
        cache, previous = built.start(2), None
        for position in range(64 * groups):
            built.step(previous, position, cache)
            previous = torch.zeros(2, 3 // groups, dtype=torch.float64)
    assert 0.5 * full.get_total_flops() < cached.get_total_flops() < 1.1 * full.get_total_flops()


# --- densities -----------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("shape, levels", [((3, 1, 1), 4), ((2, 1, 2), 3), ((1, 2, 2), 3)])
def test_probabilities_sum_to_one_and_samples_follow_them(net, shape, levels):
    spec = DataSpec(shape, levels)
    model = model_of(net, spec, Categorical(spec), width=9, head_width=24)
    check_normalized(model)
    torch.manual_seed(0)
    check_frequencies(model, draws=5000)


@BOTH
def test_labels_change_every_pixel(net):
    spec = DataSpec((1, 4, 4), 5, 3)
    model = model_of(net, spec, Categorical(spec), classes=3, width=9, head_width=24)
    x, y = torch.randint(5, (6, 1, 4, 4), dtype=torch.uint8), torch.arange(6) % 3
    with torch.no_grad():
        difference = model.cost_map(x, y) - model.cost_map(x, (y + 1) % 3)
    assert (difference.abs().amax(0) > 1e-6).all()


@pytest.mark.parametrize("net, sizes, message", [
    (PixelCNN, {"num_blocks": 0}, "at least 1 num_blocks"),
    (PixelCNN, {"kernel": 1}, "kernels of at least 3"),
    (PixelCNN, {"first_kernel": 4}, "kernel of odd size"),
    (PixelCNN, {"width": 2}, "2 features cannot be shared among 3"),
    (GatedPixelCNN, {"num_layers": 1}, "at least 2 num_layers"),
    (GatedPixelCNN, {"kernel": 1}, "kernel of at least 3"),
    (GatedPixelCNN, {"kernel": 4}, "kernel of odd size"),
    (GatedPixelCNN, {"head_width": 1}, "1 features cannot be shared among 3"),
])  # fmt: skip
def test_errors(net, sizes, message):
    with pytest.raises(ValueError, match=message):
        build(net, (3, 4, 4), 3, **sizes)
