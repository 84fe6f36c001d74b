import itertools
from functools import partial

import pytest
import torch
from torch import nn

from models.autoregressive.model import Autoregressive
from models.autoregressive.orders import Raster
from models.autoregressive.pixelcnnpp import PixelCNNpp
from models.contracts import CausalNet, DataSpec, Kind
from models.likelihoods.categorical import Categorical
from models.likelihoods.logistic import MixtureLogistic
from models.nn.data_init import initialize
from models.nn.shifted_conv import DownShiftedConv2d
from models.nn.weight_norm import WeightNorm
from tests.checks_causal import check_cache, check_causal


def build(shape, levels=4, classes=None, head="mixture", perturb=0.1, num_scales=3, num_resnet=1, num_filters=6):
    """A float64 model in eval mode, moved off its initial values, and the batch that initialised it."""
    torch.manual_seed(0)
    spec = DataSpec(shape, levels, classes)
    likelihood = Categorical(spec) if head == "categorical" else MixtureLogistic(spec, num_mixtures=2, min_log_scale=-7.0)
    net = partial(PixelCNNpp, num_filters=num_filters, num_resnet=num_resnet, num_scales=num_scales, dropout=0.5)
    model = Autoregressive(spec, net, Raster(spec, 1, False), likelihood, conditional=classes is not None).double().eval()
    x = torch.randint(levels, (16, *shape), dtype=torch.uint8)
    y = torch.randint(classes, (16,)) if classes else None
    initialize(model, x, y)
    with torch.no_grad():
        for p in model.parameters():
            p += perturb * torch.randn_like(p)
    return model, x, y


@pytest.mark.parametrize("shape, num_scales", [((1, 8, 8), 3), ((2, 5, 7), 2), ((1, 4, 4), 1), ((1, 2, 2), 3)])
def test_causal_and_sees_every_earlier_pixel(shape, num_scales):
    check_causal(build(shape, num_scales=num_scales, num_resnet=2)[0].net, shape)


def test_check_causal_finds_a_kernel_that_looks_right():
    net = build((1, 4, 4))[0].net
    leaky = DownShiftedConv2d(12, 6, (2, 3)).double()
    leaky._ready = True
    net.right.before[0].conv_in = leaky
    with pytest.raises(AssertionError, match="which is not before it"):
        check_causal(net, (1, 4, 4))


def test_check_causal_finds_a_missing_shift():
    net = build((1, 4, 4))[0].net
    shifted = net.in_left.forward
    net.in_left.forward = lambda x: shifted(x).roll(-1, 3)
    with pytest.raises(AssertionError, match="which is not before it"):
        check_causal(net, (1, 4, 4))


def test_check_causal_finds_a_blind_spot():
    """Without the down stream, and without the row above in the input, the upper right is out of sight."""
    net = build((1, 4, 4))[0].net
    for block in [m for m in net.right.modules() if hasattr(m, "nin")]:
        block.nin.forward = lambda sides: 0.0
    with pytest.raises(AssertionError, match="does not see the earlier pixel"):
        check_causal(net, (1, 4, 4))
    check_causal(net, (1, 4, 4), sees_all=False)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (1, 7, 5), (1, 2, 2), (1, 1, 3), (2, 3, 1)])
@pytest.mark.parametrize("num_scales, num_resnet", [(3, 1), (2, 2), (1, 1)])
def test_cached_parameters_equal_the_full_pass(shape, num_scales, num_resnet):
    model, x, y = build(shape, classes=3, num_scales=num_scales, num_resnet=num_resnet)
    check_cache(model.net, model.reals(x), y)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 6)])
def test_cached_samples_and_completions_equal_the_uncached(shape, monkeypatch):
    model, x, _ = build(shape, levels=17)

    def draw():
        torch.manual_seed(3)
        return model.sample(4, temperature=0.8), model.complete(x, 11)

    samples, completions = draw()
    monkeypatch.setattr(model.net, "start", lambda n, y: None)
    for cached, uncached in zip((samples, completions), draw()):
        assert torch.equal(cached, uncached)
    assert samples.shape == (4, *shape) and samples.dtype == torch.uint8 and samples.max() < 17
    assert torch.equal(completions.flatten(2)[:, :, :11], x.flatten(2)[:, :, :11]) and not torch.equal(completions, x)


def test_first_batch_leaves_every_preactivation_with_mean_0_and_its_scale():
    model, x, y = build((2, 8, 8), levels=17, classes=3, perturb=0.0)
    outputs = {}
    for module in model.modules():
        if isinstance(module, WeightNorm):
            def keep(x, weight, bias, module=module, linear_map=module.linear_map):
                outputs[module] = linear_map(x, weight, bias)
                return outputs[module]
            module.linear_map = keep
    model.score(x, y)
    assert len(outputs) == sum(isinstance(m, WeightNorm) for m in model.modules()) > 40
    for module, output in outputs.items():
        flat = output.detach().movedim(1, 0).flatten(1)
        torch.testing.assert_close(flat.mean(1), torch.zeros_like(module.g), rtol=0, atol=1e-8)
        torch.testing.assert_close(flat.std(1, correction=0), torch.full_like(module.g, module.init_scale))


@pytest.mark.parametrize("shape, levels, head", [
    ((1, 2, 2), 3, "mixture"), ((1, 2, 2), 3, "categorical"), ((3, 1, 1), 3, "mixture"), ((2, 2, 2), 2, "mixture"),
])
def test_probabilities_sum_to_one(shape, levels, head):
    model, _, _ = build(shape, levels, classes=2, head=head, perturb=0.3)
    images = torch.tensor(list(itertools.product(range(levels), repeat=model.spec.dims)), dtype=torch.uint8).view(-1, *shape)
    for label in range(2):
        score = model(images, torch.full((len(images),), label))
        assert score.kind == Kind.EXACT and torch.equal(sum(score.terms.values()), score.nats)
        assert abs(score.nats.exp().sum().item() - 1) < 1e-6
        assert score.nats.std() > 0.05


def test_labels_change_the_score_and_the_samples():
    model, x, y = build((1, 4, 4), classes=3, perturb=0.5)
    assert (model(x, y).nats - model(x, (y + 1) % 3).nats).abs().min() > 1e-6
    draws = []
    for label in (0, 1):
        torch.manual_seed(0)
        draws.append(model.sample(16, torch.full((16,), label)))
    assert not torch.equal(*draws)


def test_labels_are_asked_for_and_ignored():
    model, x, y = build((1, 4, 4), classes=3)
    with pytest.raises(ValueError, match="give it labels"):
        model.score(x)
    with pytest.raises(ValueError, match="give it labels"):
        model.sample(2)
    plain, x, _ = build((1, 4, 4))
    assert torch.equal(plain(x, torch.zeros(16, dtype=torch.long)).nats, plain(x).nats)
    with pytest.raises(ValueError, match="needs data with labels"):
        Autoregressive(plain.spec, partial(PixelCNNpp), plain.order, plain.likelihood, conditional=True)


def test_every_parameter_gets_a_gradient():
    model, x, y = build((1, 8, 8), classes=3)
    (-model.train()(x, y).nats.mean()).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_model_fitted_to_one_image_samples_it():
    model, _, _ = build((1, 4, 4), levels=4, head="categorical", perturb=0.0)
    image = torch.arange(16, dtype=torch.uint8).remainder(4).view(1, 1, 4, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (-model(image).nats.mean()).backward()
        optimizer.step()
    assert model(image).nats.item() > -0.05
    torch.manual_seed(0)
    assert torch.equal(model.sample(8), image.expand(8, -1, -1, -1))


class Independent(CausalNet):
    """The smallest net: every pixel has its own parameters and sees no other."""

    def __init__(self, shape, out_channels, groups, classes):
        super().__init__()
        self.params = nn.Parameter(torch.zeros(1, out_channels, *shape[1:]))

    def forward(self, x, y=None):
        return self.params.expand(len(x), -1, -1, -1)


def test_any_net_fits_and_the_head_sizes_it():
    spec = DataSpec((1, 2, 2), 5)
    model = Autoregressive(spec, Independent, Raster(spec, 1, False), Categorical(spec), conditional=False)
    x = torch.randint(5, (3, 1, 2, 2))
    torch.testing.assert_close(model(x).nats, torch.full((3,), -4 * torch.tensor(5.0).log()))
    with torch.no_grad():
        model.net.params[:, 3] = 50.0
    assert torch.equal(model.sample(2), torch.full((2, 1, 2, 2), 3, dtype=torch.uint8))
