"""Causal self-attention over a sequence, whole or in blocks, and one position at a time from a memory of keys and values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalAttention(nn.Module):
    """softmax(q_i k_j / sqrt d) v_j over the positions j that position i sees, in ``num_heads`` heads. [B, L, D] -> the same.

    ``block`` None: every j <= i. Otherwise the j <= i of i's own block of ``block`` positions and of the block before:
    (i // block - 1) block <= j <= i (1-D local attention; Parmar et al. 2018, arXiv:1802.05751, section 3.3, with a memory as
    long as the block). No mask larger than [block, 2 block] is made, and none for a sequence of one block.

    Errors: ValueError if the heads do not divide the width, or ``block`` is not positive.
    """

    def __init__(self, width: int, num_heads: int, length: int, block: int | None):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"num_heads must divide the width of a transformer; got {num_heads} heads and width {width}")
        if block is not None and block < 1:
            raise ValueError(f"block must be at least 1, or null to attend to everything before; got {block}")
        self.num_heads, self.length = num_heads, length
        self.block = block if block is not None and block < length else None
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        if self.block:
            self.register_buffer("mask", torch.ones(block, 2 * block, dtype=torch.bool).tril(block), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        if self.block is None:
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            seen = self._in_blocks(q, k, v)
        return self.out(seen.transpose(1, 2).flatten(2))

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, heads, L, d] three times -> the same. What fills the last block comes after the end, where nobody looks."""
        q, k, v = (F.pad(t, (0, 0, 0, -self.length % self.block)).unflatten(2, (-1, self.block)) for t in (q, k, v))
        first = F.scaled_dot_product_attention(q[:, :, 0], k[:, :, 0], v[:, :, 0], is_causal=True)
        k, v = (torch.cat([t[:, :, :-1], t[:, :, 1:]], 3).flatten(1, 2) for t in (k, v))
        later = F.scaled_dot_product_attention(q[:, :, 1:].flatten(1, 2), k, v, self.mask).unflatten(1, (self.num_heads, -1))
        return torch.cat([first[:, :, None], later], 2).flatten(2, 3)[:, :, : self.length]

    def memory(self, n: int) -> Tensor:
        """Room for the keys and values of ``n`` sequences: [2, n heads, L, d], or with blocks two blocks instead of L."""
        slots = self.length if self.block is None else min(self.length, 2 * self.block)
        return self.out.weight.new_empty(2, n * self.num_heads, slots, len(self.out.bias) // self.num_heads)

    def step(self, x: Tensor, memory: Tensor, position: int) -> Tensor:
        """The output [n, D] at ``position``, given its input [n, D] and the memory, which is written to.

        With blocks, the second half of the memory is the current block; it moves to the first half when a new one begins.
        """
        slot = position
        if position >= memory.shape[2]:
            slot = self.block + position % self.block
            if slot == self.block:
                memory[:, :, : self.block] = memory[:, :, self.block :]
        q, k, v = self.qkv(x).view(memory.shape[1], 3, -1).split(1, 1)
        memory[0, :, slot : slot + 1] = k
        memory[1, :, slot : slot + 1] = v
        keys, values = memory[:, :, : slot + 1]
        weights = torch.bmm(q * q.shape[2] ** -0.5, keys.mT).softmax(2)
        return self.out(torch.bmm(weights, values).view_as(x))
