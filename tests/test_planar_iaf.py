"""Masked nets, planar and autoregressive bijections, and the distributions made of them."""

from functools import partial

import pytest
import torch
from checks_bijection import check_bijection, randomize
from torch import nn

from models.latent.posteriors import FlowPosterior
from models.latent.priors import FlowPrior
from models.nn.masked import MADE
from models.transforms.affine_maps import Affine, Gate
from models.transforms.autoregressive import InverseAutoregressive, MaskedAutoregressive
from models.transforms.flip import Flip
from models.transforms.planar import Planar

GATE, AFFINE = partial(Gate, bias=1.5), partial(Affine, bound=3.0)


def iaf(dim, context_dim, kind=InverseAutoregressive, scalar_map=GATE):
    return kind(dim, context_dim, [16, 16], nn.ELU, scalar_map)


BIJECTIONS = {
    "planar": Planar,
    "iaf": iaf,
    "iaf, affine": partial(iaf, scalar_map=AFFINE),
    "maf": partial(iaf, kind=MaskedAutoregressive, scalar_map=AFFINE),
    "maf, gate": partial(iaf, kind=MaskedAutoregressive),
    "flip": lambda dim, context_dim: Flip(),
}


@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("name", BIJECTIONS)
def test_bijection_law(name, dim, context_dim):
    if name == "flip" and dim == 1:
        return  # one element reversed is the identity
    torch.manual_seed(0)
    transform = BIJECTIONS[name](dim, context_dim)
    randomize(transform, 0.5)
    context = torch.randn(2, context_dim, dtype=torch.float64) if context_dim else None
    check_bijection(transform, 2 * torch.randn(2, dim, dtype=torch.float64), context)


def test_planar_stays_invertible_where_u_and_w_oppose():
    """u'.w far below -1 would fold space: the constrained map stays increasing along w and invertible."""
    torch.manual_seed(0)
    planar = Planar(3, 0).double()
    with torch.no_grad():
        planar.free.copy_(torch.tensor([-3.0, -2.0, 1.0, 2.0, 1.0, 0.5, 0.3]))
    u, w, _, product = planar._parameters_for(None)
    torch.testing.assert_close((u * w).sum(1, keepdim=True), product)
    assert -1 < product.item() < -0.99
    z = torch.randn(50, 3, dtype=torch.float64)
    x, log_det = planar.inverse_and_log_det(z)
    back, contribution = planar(x)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-9)
    torch.testing.assert_close(contribution, -log_det, rtol=0, atol=1e-7)


def test_planar_formula():
    """The constrained u.w and the determinant of Rezende & Mohamed 2015, eqs. 10 to 12, written out for one example."""
    planar = Planar(2, 0).double()
    with torch.no_grad():
        planar.free.copy_(torch.tensor([0.4, -0.3, 1.0, 0.5, 0.2]))
    u, w, b = torch.tensor([0.4, -0.3]).double(), torch.tensor([1.0, 0.5]).double(), 0.2
    target = torch.log1p((torch.e - 1) * torch.exp(u @ w)) - 1
    u = u + (target - u @ w) * w / (w @ w)
    z = torch.tensor([0.7, -1.1]).double()
    x, log_det = planar.inverse_and_log_det(z[None])
    torch.testing.assert_close(x[0], z + u * torch.tanh(w @ z + b))
    psi = (1 - torch.tanh(w @ z + b) ** 2) * w
    torch.testing.assert_close(log_det[0], torch.log(torch.abs(1 + u @ psi)))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_made_is_causal_and_complete(order, context_dim):
    """By Jacobian: output d depends on exactly the inputs before d in the order, in each of its numbers, and on the context."""
    torch.manual_seed(0)
    net = MADE(order, [32, 32], 3, context_dim, nn.Tanh).double()
    context = torch.randn(1, context_dim, dtype=torch.float64) if context_dim else None
    x = torch.randn(4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v[None], context)[0], x)
    place = torch.tensor(order)
    for output in jacobian:
        assert torch.equal(output != 0, place[None, :] < place[:, None])
    if context_dim:
        dependence = torch.autograd.functional.jacobian(lambda c: net(x[None], c)[0], context)
        assert (dependence != 0).all(), "every output, the first of the order included, sees the context"


def test_made_refuses_what_is_no_order():
    with pytest.raises(ValueError, match="permutation"):
        MADE([0, 2], [4], 1, 0, nn.Tanh)
    with pytest.raises(ValueError, match="hidden layer"):
        MADE([0, 1], [], 1, 0, nn.Tanh)


def test_iaf_step_is_the_papers_gate():
    """z' = sigmoid(s) z + (1 - sigmoid(s)) m and log det = sum log sigmoid(s), m and s from the net at z."""
    torch.manual_seed(0)
    step = iaf(3, 2).double()
    randomize(step, 0.5)
    z, context = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    m, s = step.net(z, context).unbind(1)
    gate = torch.sigmoid(s + 1.5)
    x, log_det = step.inverse_and_log_det(z, context)
    torch.testing.assert_close(x, gate * z + (1 - gate) * m)
    torch.testing.assert_close(log_det, gate.log().sum(1))


@pytest.mark.parametrize("transform, flip", [(Planar, False), (iaf, True)])
def test_flow_posterior_density_of_its_own_draws(transform, flip):
    """The log density that comes with a draw is the density evaluated at it, by the other direction."""
    torch.manual_seed(0)
    posterior = FlowPosterior(3, 4, 3, transform, flip).double()
    randomize(posterior, 0.3)
    q = posterior(torch.randn(6, 4, dtype=torch.float64))
    z, log_q = q.rsample_and_log_prob(6)
    torch.testing.assert_close(log_q, q.log_prob(z), rtol=0, atol=1e-9)


@pytest.mark.parametrize("transform", [Planar, iaf, partial(iaf, kind=MaskedAutoregressive, scalar_map=AFFINE)])
def test_flow_density_integrates_to_one(transform):
    """A 2-D flow posterior's and prior's density, summed over a fine grid."""
    torch.manual_seed(0)
    line = torch.linspace(-16, 16, 321, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    context = 0.3 * torch.randn(1, 3, dtype=torch.float64)
    for conditional in (FlowPosterior(2, 3, 2, transform, True), FlowPrior([2], 2, transform)):
        conditional = conditional.double()
        randomize(conditional, 0.1)
        with torch.no_grad():
            q = conditional(context.expand(len(grid), -1) if isinstance(conditional, FlowPosterior) else None)
            total = q.log_prob(grid).exp().sum() * (line[1] - line[0]) ** 2
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-4)


def test_flip_between_steps_lets_every_dimension_see_every_other():
    torch.manual_seed(0)
    posterior = FlowPosterior(3, 2, 2, iaf, True).double()
    randomize(posterior, 0.5)
    context = torch.randn(1, 2, dtype=torch.float64)

    def draw(z):
        for transform in reversed(posterior.transforms):
            z = transform.inverse(z, context)
        return z

    jacobian = torch.autograd.functional.jacobian(lambda z: draw(z[None])[0], torch.randn(3, dtype=torch.float64))
    assert (jacobian != 0).all()
