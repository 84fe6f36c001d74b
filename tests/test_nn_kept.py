"""What is kept of parameters is never another's: beyond the changes of test_pixelcnn.py and test_folding.py."""

from __future__ import annotations

import copy

import torch
from torch.func import functional_call, stack_module_state, vmap

from models.nn.masked_conv import MaskedConv2d


@torch.no_grad()
def test_batches_of_parameters_are_not_kept():
    convs = [MaskedConv2d([0], [0], (3, 3), "A").eval() for _ in range(3)]
    parameters, buffers = stack_module_state(convs)
    x = torch.randn(2, 1, 4, 4)
    one = copy.deepcopy(convs[0])
    for _ in range(2):
        together = vmap(lambda *state: functional_call(one, state, (x,)))(parameters, buffers)
        torch.testing.assert_close(together, torch.stack([conv(x) for conv in convs]))
        assert torch.equal(one(x), convs[0](x))
