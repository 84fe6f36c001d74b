"""The causality law, by autograd: a check to import, for any causal net and for nets broken on purpose."""

import torch
from torch import Tensor

from models.contracts import CausalNet


def dependence(net: CausalNet, shape: tuple[int, int, int], y: Tensor | None = None) -> Tensor:
    """Entry (i, j): whether the net's output at raster position i has a non-zero derivative in the pixel j. [HW, HW], bool.

    A random combination of the output channels is differentiated, so that channels cannot cancel.
    """
    parameter = next(net.parameters())
    x = (2 * torch.rand(1, *shape).to(parameter) - 1).requires_grad_()
    params = net(x, y)
    outputs = (params * torch.randn(1, params.shape[1], 1, 1).to(params)).sum(1).flatten()
    rows = [torch.autograd.grad(output, x, retain_graph=True)[0].abs().sum(1).flatten() for output in outputs]
    return torch.stack(rows) != 0


def check_causal(net: CausalNet, shape: tuple[int, int, int], y: Tensor | None = None, sees_all: bool = True) -> None:
    """Assert that outputs depend on earlier pixels only and, if ``sees_all``, on every one of them.

    Give it an initialised float64 net with perturbed parameters; ``sees_all=False`` for a receptive field that does not
    cover the image.
    """
    found = dependence(net, shape, y)
    leaks = found.triu().nonzero().tolist()
    assert not leaks, f"output {leaks[0][0]} sees pixel {leaks[0][1]}, which is not before it ({len(leaks)} such pairs)"
    missed = (~found & torch.ones_like(found).tril(-1)).nonzero().tolist()
    if sees_all:
        assert not missed, f"output {missed[0][0]} does not see the earlier pixel {missed[0][1]} ({len(missed)} such pairs)"


@torch.no_grad()
def check_cache(net: CausalNet, x: Tensor, y: Tensor | None = None) -> None:
    """Assert that every cached step gives the parameters of the full pass over the reals ``x`` [n, C, H, W], to 1e-10."""
    full = net(x, y).flatten(2)
    cache, previous = net.start(len(x), y), [None, *x.flatten(2).unbind(2)]
    for position in range(full.shape[2]):
        torch.testing.assert_close(net.step(previous[position], position, cache), full[:, :, position], rtol=0, atol=1e-10)
