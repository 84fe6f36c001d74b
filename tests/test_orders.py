"""Orders, ensembles of orders, nucleus draws and cost maps, against what they are by definition."""

from functools import partial

import pytest
import torch

from models.autoregressive.model import Autoregressive
from models.autoregressive.orders import Column, Random, Raster
from models.autoregressive.pixelcnnpp import PixelCNNpp
from models.contracts import DataSpec, Kind
from models.likelihoods.bernoulli import Bernoulli
from models.likelihoods.categorical import Categorical
from models.likelihoods.gaussian import DiscretizedGaussian, Gaussian
from models.likelihoods.logistic import DiscretizedLogistic, MixtureLogistic
from models.likelihoods.nucleus import sample_nucleus
from tests.laws import check_frequencies, check_normalized, ready

NET = partial(PixelCNNpp, num_filters=4, num_resnet=1, num_scales=1, dropout=0.0)


def build(order, spec):
    torch.manual_seed(0)
    return ready(Autoregressive(spec, NET, order, Categorical(spec), conditional=False).double())


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 2, 3), (2, 1, 2)])
@pytest.mark.parametrize("make", [Raster, Column, partial(Random, seed=1)])
def test_arrange_and_restore_are_inverse(make, shape):
    spec = DataSpec(shape, 3)
    order = make(spec, 1, False)
    x = torch.randn(2, *shape)
    permutation = order.permutation(0)
    arranged = order.arrange(x, permutation, order.shape)
    assert arranged.shape[1:] == order.shape
    assert torch.equal(order.restore(arranged, permutation, shape), x)


def test_column_order_transposes():
    order = Column(DataSpec((1, 2, 3), 9), 1, False)
    x = torch.arange(6).view(1, 1, 2, 3)
    assert torch.equal(order.arrange(x, order.permutation(0), order.shape), x.mT)


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("make", [Column, partial(Random, seed=1)])
def test_a_model_is_normalized_and_draws_what_it_says_in_every_order(make, num):
    spec = DataSpec((1, 2, 2), 3)
    model = build(make(spec, num, False), spec)
    check_normalized(model)
    torch.manual_seed(0)
    check_frequencies(model)


def test_several_orders_are_averaged_in_probability():
    spec = DataSpec((1, 2, 3), 3)
    several = build(Random(spec, 4, False, seed=2), spec)
    x = torch.randint(3, (5, *spec.shape), dtype=torch.uint8)
    alone = []
    for member in range(4):
        order = Random(spec, 1, False, seed=2)
        order.permutation = lambda _, member=member: several.order.permutation(member)
        single = build(order, spec)
        single.load_state_dict(several.state_dict())
        alone.append(single.score(x).nats)
    score = several.score(x)
    assert score.kind == Kind.EXACT
    torch.testing.assert_close(score.nats, torch.stack(alone).exp().mean(0).log())
    several.train()
    torch.manual_seed(0)
    drawn = several.score(x)
    assert drawn.kind == Kind.WEIGHT and any(torch.equal(drawn.nats, nats) for nats in alone)


def test_resampling_draws_new_members():
    order = Random(DataSpec((1, 4, 4), 2), 2, True, seed=0)
    drawn = {order.draw() for _ in range(8)}
    assert len(drawn) == 8 and min(drawn) >= 2
    assert not torch.equal(order.permutation(0), order.permutation(1))
    assert torch.equal(order.permutation(7), order.permutation(7))


def test_completions_keep_a_prefix_of_the_order():
    spec = DataSpec((1, 3, 4), 5)
    model = build(Column(spec, 1, False), spec)
    x = torch.randint(5, (16, *spec.shape), dtype=torch.uint8)
    done = model.complete(x, 3)
    assert torch.equal(done[..., 0], x[..., 0]) and not torch.equal(done, x)
    assert (done[..., 1:] != x[..., 1:]).any(0).all()
    several = build(Random(spec, 2, False, seed=0), spec)
    for question in (lambda: several.complete(x, 3), lambda: several.cost_map(x)):
        with pytest.raises(ValueError, match="needs one order"):
            question()


@pytest.mark.parametrize("make", [Raster, Column, partial(Random, seed=3)])
def test_cost_map_sums_to_the_score(make):
    spec = DataSpec((3, 2, 3), 4)
    model = build(make(spec, 1, False), spec)
    x = torch.randint(4, (3, *spec.shape), dtype=torch.uint8)
    costs = model.cost_map(x)
    assert costs.shape == (3, 2, 3)
    torch.testing.assert_close(costs.flatten(1).sum(1), -model.score(x).nats)
    changed = x.clone()
    changed[:, :, 1, 2] = 3 - changed[:, :, 1, 2]
    if make is Raster:  # the last pixel: no other pays for it
        assert torch.equal(model.cost_map(changed).flatten(1)[:, :-1], costs.flatten(1)[:, :-1])


HEADS = {
    "bernoulli": (Bernoulli, 2),
    "categorical": (Categorical, 5),
    "discretized_logistic": (partial(DiscretizedLogistic, min_log_scale=-7.0), 5),
    "discretized_gaussian": (partial(DiscretizedGaussian, min_log_scale=-7.0), 5),
    "mixture_logistic": (partial(MixtureLogistic, num_mixtures=3, min_log_scale=-7.0), 5),
}


@pytest.mark.parametrize("name", HEADS)
def test_conditional_tables_multiply_to_the_joint(name):
    """log P(x) = sum over channels of log P(x_c | x_<c), each table a distribution over the levels."""
    make, levels = HEADS[name]
    head = make(DataSpec((3, 2, 2), levels))
    torch.manual_seed(0)
    params = torch.randn(4, head.param_channels(), 2, 2, dtype=torch.float64)
    x = torch.randint(levels, (4, 3, 2, 2), dtype=torch.uint8)
    tables = [head.log_pmf(params, x, channel) for channel in range(3)]
    for table in tables:
        assert table.shape == (4, levels, 2, 2)
        torch.testing.assert_close(table.logsumexp(1), torch.zeros(4, 2, 2, dtype=torch.float64))
    joint = sum(table.gather(1, x[:, c, None].long()).sum((1, 2, 3)) for c, table in enumerate(tables))
    torch.testing.assert_close(joint, head.log_prob(params, x))
    if head.groups > 1:  # one block serves one channel
        block = params.chunk(3, 1)[1]
        torch.testing.assert_close(head.log_pmf(block, x[:, 1:2], 0), tables[1])
        torch.testing.assert_close(head.log_prob_map(block, x[:, 1:2])[:, 0], head.log_prob_map(params, x)[:, 1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", HEADS)
def test_tables_say_what_samples_do_at_any_temperature(name, temperature):
    make, levels = HEADS[name]
    head = make(DataSpec((1, 1, 1), levels))
    torch.manual_seed(0)
    params = torch.randn(1, head.param_channels(), 1, 1)
    n = 40_000
    counts = torch.bincount(head.sample(params.expand(n, -1, 1, 1), temperature).flatten().long(), minlength=levels)
    expected = n * head.log_pmf(params, torch.zeros(1, 1, 1, 1), 0, temperature).exp().flatten()
    assert ((counts - expected).abs() < 5 * (expected.sqrt() + 1)).all()


def test_nucleus_keeps_the_fewest_levels_that_hold_the_mass():
    head = Categorical(DataSpec((1, 1, 1), 5))
    params = torch.tensor([0.05, 0.4, 0.3, 0.15, 0.1]).log().view(1, 5, 1, 1).expand(20_000, -1, 1, 1)
    torch.manual_seed(0)
    for top_p, kept in ((0.1, [1]), (0.5, [1, 2]), (0.72, [1, 2, 3])):
        drawn = sample_nucleus(head, params, 1, 1.0, top_p).flatten()
        assert drawn.unique().tolist() == kept
        share = float((drawn == 1).float().mean())
        mass = sum([0.05, 0.4, 0.3, 0.15, 0.1][k] for k in kept)
        assert abs(share - 0.4 / mass) < 0.02
    everything = sample_nucleus(head, params, 1, 1.0, 1.0).flatten()
    assert everything.unique().tolist() == [0, 1, 2, 3, 4]


def test_nucleus_is_refused_for_a_density():
    with pytest.raises(ValueError, match="top_p needs"):
        sample_nucleus(Gaussian(DataSpec((1, 1, 1), None), -7.0), torch.zeros(1, 2, 1, 1), 1, 1.0, 0.5)


def test_an_order_needs_a_member():
    with pytest.raises(ValueError, match="at least 1"):
        Raster(DataSpec((1, 1, 1), 2), 0, False)
