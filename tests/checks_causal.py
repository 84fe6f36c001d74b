"""The causality law, by autograd: a check to import, for any causal net and for nets broken on purpose.

A token is what a net predicts in one position: a pixel, or with ``groups`` = C one channel of one pixel.
"""

import torch
from torch import Tensor

from models.contracts import CausalNet


def tokens(t: Tensor, groups: int) -> Tensor:
    """[B, groups N, H, W] -> [B, H W groups, N], in the order of the net's positions."""
    return t.flatten(2).unflatten(1, (groups, -1)).permute(0, 3, 1, 2).flatten(1, 2)


def dependence(net: CausalNet, shape: tuple[int, int, int], y: Tensor | None = None) -> Tensor:
    """Entry (i, j): whether the net's output at position i has a non-zero derivative in token j. [L, L], bool.

    A random combination of the output channels is differentiated, so that channels cannot cancel.
    """
    parameter = next(net.parameters())
    x = (2 * torch.rand(1, *shape).to(parameter) - 1).requires_grad_()
    params = tokens(net(x, y), net.groups)
    outputs = (params * torch.randn(params.shape[2]).to(params)).sum(2)[0]
    gradients = [torch.autograd.grad(output, x, retain_graph=True, allow_unused=True)[0] for output in outputs]
    rows = [tokens(torch.zeros_like(x) if g is None else g, net.groups).abs().sum(2)[0] for g in gradients]
    return torch.stack(rows) != 0


def check_causal(net: CausalNet, shape: tuple[int, int, int], y: Tensor | None = None, sees_all: bool = True) -> None:
    """Assert that outputs depend on earlier tokens only and, if ``sees_all``, on every one of them.

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
    full = tokens(net(x, y), net.groups)
    cache, previous = net.start(len(x), y), [None, *tokens(x, net.groups).unbind(1)]
    for position in range(full.shape[1]):
        torch.testing.assert_close(net.step(previous[position], position, cache), full[:, position], rtol=0, atol=1e-10)
