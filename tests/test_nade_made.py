"""NADE, MADE and the fully visible sigmoid belief network, against their equations written out and against autograd."""

from functools import partial

import numpy
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from torch import nn

from models.autoregressive.made import MADE
from models.autoregressive.model import Autoregressive
from models.autoregressive.nade import NADE
from models.autoregressive.orders import Random, Raster
from models.contracts import DataSpec
from models.likelihoods.bernoulli import Bernoulli
from models.likelihoods.categorical import Categorical
from tests.checks_causal import check_cache, check_causal, dependence
from tests.laws import check_frequencies, check_normalized, disturb

NETS = {
    "nade": partial(NADE, hidden=7),
    "made": partial(MADE, hidden=[60], direct=False, activation=nn.Tanh),
    "made deep": partial(MADE, hidden=[30, 40], direct=True, activation=nn.ReLU),
    "fvsbn": partial(MADE, hidden=[], direct=True, activation=nn.Identity),
}
SHAPES = [((3, 2, 3), 3, None), ((3, 2, 3), 1, 2), ((1, 3, 4), 1, None), ((1, 1, 1), 1, None)]


def build(name, shape, groups, classes):
    torch.manual_seed(0)
    return disturb(NETS[name](shape, 6, groups, classes).double(), 0.5)


@pytest.mark.parametrize("shape, groups, classes", SHAPES)
@pytest.mark.parametrize("name", NETS)
def test_causal_and_cached_in_every_order(name, shape, groups, classes):
    net = build(name, shape, groups, classes)
    x, y = torch.randn(4, *shape, dtype=torch.float64), None if classes is None else torch.tensor([0, 1, 1, 0])
    for member, permutation in enumerate((None, torch.randperm(shape[1] * shape[2]))):
        net.select(permutation, member)
        check_causal(net, shape, None if y is None else y[:1], sees_all=name in ("nade", "fvsbn"))
        check_cache(net, x, y)


def test_the_reverse_recurrence_is_the_gradient():
    net = build("nade", (3, 2, 2), 3, 2)
    x, y = torch.randn(3, 3, 2, 2, dtype=torch.float64, requires_grad=True), torch.tensor([1, 0, 1])
    names, values = zip(*net.named_parameters())
    call = lambda x, *values: torch.func.functional_call(net, dict(zip(names, values)), (x, y))  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, *values))


def test_nade_is_its_equations():
    """Uria et al. 2016, eqs. 3 and 4, for one image, unit by unit, in a random order."""
    spec = DataSpec((1, 2, 3), 2)
    order = Random(spec, 1, False, seed=4)
    model = Autoregressive(spec, NETS["nade"], order, Bernoulli(spec), conditional=False).double()
    disturb(model, 1.0)
    x = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.uint8)
    w, v, b, c = (p.detach().numpy() for p in (model.net.w[:, 0], model.net.v[:, 0], model.net.b[:, 0], model.net.c))
    expected, seen = 0.0, c.copy()
    for pixel in order.permutation(0).tolist():
        p = expit(b[pixel] + v[pixel] @ expit(seen))
        expected += numpy.log(p if x[pixel] else 1 - p)
        seen += w[pixel] * x[pixel].item()
    assert model.score(x.view(1, 1, 2, 3)).nats.item() == pytest.approx(expected, rel=1e-12)


def test_a_belief_network_is_one_logistic_regression_a_pixel():
    """The last pixel's, fitted by scikit-learn and put into the network, gives scikit-learn's probabilities."""
    spec = DataSpec((1, 1, 6), 2)
    model = Autoregressive(spec, NETS["fvsbn"], Raster(spec, 1, False), Bernoulli(spec), conditional=False).double()
    torch.manual_seed(0)
    x = torch.randint(2, (200, 1, 1, 6), dtype=torch.uint8)
    x[:, :, :, 5] = (x[:, :, :, 0] + x[:, :, :, 2] + torch.randint(2, (200, 1, 1)) > 1).to(torch.uint8)
    flat = x.flatten(1).numpy()
    fitted = LogisticRegression().fit(flat[:, :5], flat[:, 5])
    with torch.no_grad():
        model.net.net.direct.weight[5, :5] = torch.from_numpy(fitted.coef_[0])
        model.net.net.direct.bias[5] = float(fitted.intercept_[0])
        costs = model.cost_map(x).flatten(1)[:, 5]
    log_proba = fitted.predict_log_proba(flat[:, :5])[numpy.arange(200), flat[:, 5]]
    numpy.testing.assert_allclose(costs.numpy(), -log_proba, rtol=1e-9)


def test_masks_are_the_papers():
    """Germain et al. 2015, eqs. 12 and 13: hidden degrees of members differ; each path runs from earlier to later."""
    net = build("made deep", (1, 1, 8), 1, None)
    seen = []
    for member in range(3):
        net.select(None, member)
        first, second = net.net.degrees0, net.net.degrees1
        assert 0 <= first.min() and second.max() <= 6 and second.min() >= first.min()
        assert torch.equal(net.net.hidden[1].mask.bool(), first <= second[:, None])
        paths = net.net.last.mask @ net.net.hidden[1].mask @ net.net.hidden[0].mask
        assert not paths.triu().any() and paths.any()
        seen.append(first.clone())
        assert torch.equal(dependence(net, (1, 1, 8)), torch.ones(8, 8).tril(-1).bool())
    assert not torch.equal(seen[0], seen[1])
    net.select(None, 0)
    assert torch.equal(net.net.degrees0, seen[0])


@pytest.mark.parametrize("name", ["nade", "made deep"])
def test_weights_follow_the_pixels(name):
    """In every order the weights of a pixel stay its own: permuted weights in raster order give the same probabilities."""
    spec = DataSpec((1, 2, 3), 3)
    make = NETS[name]
    model = Autoregressive(spec, make, Random(spec, 5, False, seed=1), Categorical(spec), conditional=False).double().eval()
    disturb(model, 0.5)
    check_normalized(model)
    small = DataSpec((1, 2, 2), 2)
    ensemble = Autoregressive(small, make, Random(small, 3, False, seed=1), Categorical(small), conditional=False).double().eval()
    torch.manual_seed(0)
    check_frequencies(disturb(ensemble, 0.5))
    if name == "nade":
        order = model.order.permutation(2)
        x = torch.randint(3, (4, *spec.shape), dtype=torch.uint8)
        ours = model._map(x, None, 2)[0].flatten(1).sum(1)
        twin = Autoregressive(spec, make, Raster(spec, 1, False), Categorical(spec), conditional=False).double().eval()
        twin.load_state_dict(model.state_dict())
        with torch.no_grad():
            for p in (twin.net.w, twin.net.v, twin.net.b):
                p.copy_(p[order])
        torch.testing.assert_close(ours, twin.score(x.flatten(2)[:, :, order].view_as(x)).nats)


def test_something_must_connect_input_and_output():
    with pytest.raises(ValueError, match="net.direct=true"):
        MADE((1, 2, 2), 1, 1, None, hidden=[], direct=False, activation=nn.ReLU)
