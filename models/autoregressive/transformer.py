"""A decoder-only transformer over the pixels or sub-pixels of an image.

Parmar et al. 2018 (Image Transformer, arXiv:1802.05751) and Child et al. 2019 (Sparse Transformer, arXiv:1904.10509).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from models.autoregressive.tokens import from_tokens, to_tokens, token_sizes
from models.contracts import CausalNet
from models.nn.attention import CausalAttention


def embeddings(*shape: int) -> nn.Parameter:
    """Vectors of which four, added, start with unit variance."""
    return nn.Parameter(torch.randn(shape) / 2)


def shift(values: Tensor) -> Tensor:
    """What each position is given of the one before, [B, L, D]: moved on by one, zeros first."""
    return F.pad(values[:, :-1], (0, 0, 1, 0))


class Places(nn.Module):
    """A vector for each pixel of the data plus one for each of its channels, in the net's order: [H W] or None -> [L, D]."""

    def __init__(self, num_pixels: int, groups: int, width: int):
        super().__init__()
        self.pixel = embeddings(num_pixels, width)
        self.channel = embeddings(groups, width)

    def forward(self, permutation: Tensor | None) -> Tensor:
        pixel = self.pixel if permutation is None else self.pixel[permutation]
        return (pixel[:, None] + self.channel).flatten(0, 1)


class Block(nn.Module):
    """h = x + attention(norm x), then h + W gelu(V norm h + b) + c, with dropout on what is added. [B, L, D] -> the same."""

    def __init__(self, width: int, num_heads: int, expansion: float, dropout: float, length: int, block: int | None):
        super().__init__()
        hidden = round(expansion * width)
        self.norm_attention = nn.LayerNorm(width)
        self.attention = CausalAttention(width, num_heads, length, block)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_attention(x)))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))

    def step(self, x: Tensor, memory: Tensor, position: int) -> Tensor:
        """The output [n, D] at ``position``, without dropout."""
        x = x + self.attention.step(self.norm_attention(x), memory, position)
        return x + self.mlp(self.norm_mlp(x))


class Cache(NamedTuple):
    """What positions know before any value [L, D], what labels add [n, D], and each block's keys and values."""

    known: Tensor
    label: Tensor
    memories: list[Tensor]


class Transformer(CausalNet):
    """Head parameters of token i from the tokens before it: ``num_layers`` pre-norm blocks, a norm and a linear map, over

        h_i = V_c x_{i-1} + source_{i-1} + target_i + u_y,   h_0 = first + target_0 + u_y

    A token is a pixel, or with ``groups`` = C one channel of it; c is the channel of x_{i-1}. source is the place of the value
    that comes in, target the place of the one to predict: they belong to the data's pixels and follow them through every order
    (with one order alone, either would do). Inputs are reals. ``block`` None attends to all tokens; a number to those of the own
    block of so many tokens and of the block before, so that the output at i sees x_j from j = (i // block - num_layers) block - 1
    on. ``expansion`` is the hidden width of the perceptrons over ``width``. With ``checkpoint`` a block's activations are not
    kept for the backward pass but computed again. Cached sampling runs without dropout.

    Deviations. From Parmar et al.: norms come first (as in Child et al.) and at the end; GELU; values enter linearly also where
    each of 256 levels had an embedding; a learned vector a pixel, not one half for rows and one for columns; the memory is the
    whole block before. From Child et al.: queries and keys have the full width; dropout only on residual branches; the head
    and the biases start as PyTorch's (with a head of zeros the components of a mixture would stay equal for ever).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        out_channels: int,
        groups: int,
        classes: int | None,
        width: int,
        num_layers: int,
        num_heads: int,
        expansion: float,
        dropout: float,
        block: int | None,
        checkpoint: bool,
    ):
        super().__init__()
        self.shape, self.groups, self.checkpoint = shape, groups, checkpoint
        length, inputs, outputs = token_sizes(shape, out_channels, groups)
        self.permutation = None
        self.value = embeddings(groups, inputs, width)
        self.first = embeddings(1, width)
        self.source, self.target = (Places(length // groups, groups, width) for _ in range(2))
        self.label = nn.Embedding(classes, width) if classes else None
        self.blocks = nn.ModuleList(Block(width, num_heads, expansion, dropout, length, block) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        with torch.no_grad():  # Child et al., section 5.2
            for layer in self.blocks:
                layer.attention.out.weight /= (2 * num_layers) ** 0.5
                layer.mlp[-1].weight /= (2 * num_layers) ** 0.5

    def select(self, permutation: Tensor | None, member: int) -> None:
        self.permutation = permutation

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        tokens = to_tokens(x, self.groups).unflatten(0, (-1, self.groups))
        h = shift(torch.einsum("pgbu,gud->bpgd", tokens, self.value).flatten(1, 2)) + self._known()
        if self.label is not None:
            h = h + self.label(y)[:, None]
        for block in self.blocks:
            h = recompute(block, h, use_reentrant=False) if self.checkpoint and torch.is_grad_enabled() else block(h)
        return from_tokens(self.head(self.norm(h)).transpose(0, 1), self.groups, self.shape)

    def _known(self) -> Tensor:
        """What a token is told before any value: first or source_{i-1}, plus target_i: [L, D]."""
        return torch.cat([self.first, self.source(self.permutation)[:-1]]) + self.target(self.permutation)

    @torch.no_grad()
    def start(self, n: int, y: Tensor | None = None) -> Cache:
        known = self._known()
        label = known.new_zeros(n, known.shape[1]) if self.label is None else self.label(y)
        return Cache(known, label, [block.attention.memory(n) for block in self.blocks])

    @torch.no_grad()
    def step(self, x_prev: Tensor | None, position: int, cache: Cache) -> Tensor:
        h = cache.known[position] + cache.label
        if position:
            h = torch.addmm(h, x_prev, self.value[(position - 1) % self.groups])
        for block, memory in zip(self.blocks, cache.memories):
            h = block.step(h, memory, position)
        return self.head(self.norm(h))
