"""The nets of Flow++ (Ho et al. 2019, arXiv:1902.00275, sec. 3.3): gated convolutions and gated self-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.concat_elu import padded_concat_elu
from models.nn.weight_norm import WeightNormConv2d


class PositionNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each position of [B, C, H, W]."""

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(h.movedim(1, -1)).movedim(-1, 1)


class GatedConv(nn.Module):
    """h + a sigmoid(b), (a, b) = conv(dropout(cELU(conv(cELU h) + nin(cELU context)))). [B, width, H, W] -> the same.

    cELU is the concatenated ELU, nin a 1x1 convolution of a context [B, context_channels, H, W] (0: there is none); ``kernel``
    is the size of the second convolution.
    """

    def __init__(self, width: int, context_channels: int, kernel: int, dropout: float):
        super().__init__()
        self.first = WeightNormConv2d(2 * width, width, (3, 3), padding=(1, 1))
        self.nin = WeightNormConv2d(2 * context_channels, width) if context_channels else None
        self.second = WeightNormConv2d(2 * width, 2 * width, (kernel, kernel), init_scale=0.1, padding=2 * (kernel // 2,))
        self.dropout = dropout

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        inner = self.first(padded_concat_elu(h))
        if self.nin is not None:
            inner = inner + self.nin(padded_concat_elu(context))
        dropout = self.dropout if self.training else 0.0
        return h + F.glu(self.second(padded_concat_elu(inner, dropout=dropout)), 1)


class GatedAttention(nn.Module):
    """h + a sigmoid(b), (a, b) = nin(dropout(attention(nin(h + place)))) over all positions. [B, width, H, W] -> the same.

    ``num_heads`` 0: the largest of what would be query, key and value takes the place of attention, a net of as many parameters
    that looks at one position only (the released ablation, abl_noattn.py).
    """

    def __init__(self, width: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, nn.Dropout(dropout)
        self.project = WeightNormConv2d(width, 3 * width)
        self.out = WeightNormConv2d(width, 2 * width, init_scale=0.1)

    def forward(self, h: Tensor, place: Tensor) -> Tensor:
        parts = self.project(h + place)
        if self.num_heads:
            q, k, v = parts.view(h.shape[0], 3, self.num_heads, -1, h.shape[2] * h.shape[3]).mT.unbind(1)
            seen = F.scaled_dot_product_attention(q, k, v).mT.reshape(h.shape)
        else:
            seen = parts.unflatten(1, (3, -1)).amax(1)
        return h + F.glu(self.out(self.dropout(seen)), 1)


class GatedBlock(nn.Module):
    """Gated conv - norm - gated attention - norm; without the last two if ``num_heads`` is None. [B, width, H, W] -> the same."""

    def __init__(self, width: int, context_channels: int, num_heads: int | None, dropout: float):
        super().__init__()
        self.conv, self.norm_conv = GatedConv(width, context_channels, 1, dropout), PositionNorm(width)
        self.attention = None
        if num_heads is not None:
            self.attention, self.norm_attention = GatedAttention(width, num_heads, dropout), PositionNorm(width)

    def forward(self, h: Tensor, context: Tensor | None, place: Tensor | None) -> Tensor:
        h = self.norm_conv(self.conv(h, context))
        return h if self.attention is None else self.norm_attention(self.attention(h, place))


class GatedAttentionNet(nn.Module):
    """conv - ``num_blocks`` gated blocks - conv: [B, in, H, W] -> [B, out, H, W]. The last conv sees cELU(h) if ``elu_last``.

    Images are of ``shape`` (H, W), whose positions have a learned vector each; ``context_channels`` are those of a context of
    that shape (0: a context is ignored). The sizes and the order are the released code's (flows.py, MixLogisticAttnCoupling),
    whose nets for ImageNet have ``elu_last``. Deviation: its convolutions are initialised by data too, but not weight-normalised.
    """

    def __init__(
        self, in_channels: int, out_channels: int, shape: tuple[int, int], width: int, num_blocks: int, num_heads: int | None,
        dropout: float, elu_last: bool, context_channels: int,
    ):  # fmt: skip
        super().__init__()
        if num_heads and width % num_heads:
            raise ValueError(f"num_heads must divide the width of a gated attention net; got {num_heads} heads and width {width}")
        self.elu_last = elu_last
        self.place = None if num_heads is None else nn.Parameter(0.01 * torch.randn(width, *shape))
        self.first = WeightNormConv2d(in_channels, width, (3, 3), padding=(1, 1))
        self.blocks = nn.ModuleList(GatedBlock(width, context_channels, num_heads, dropout) for _ in range(num_blocks))
        self.last = WeightNormConv2d(width * (1 + elu_last), out_channels, (3, 3), init_scale=0.1, padding=(1, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = block(h, context, self.place)
        return self.last(padded_concat_elu(h) if self.elu_last else h)


class StripesEncoder(nn.Module):
    """Even and odd columns side by side - conv - ``num_blocks`` gated convs: [B, in, H, W] -> [B, width, H, W / 2].

    What the couplings over column stripes of a conditional flow are told of the image (released code, run_cifar.py,
    shallow_processor).
    """

    def __init__(self, in_channels: int, width: int, num_blocks: int, dropout: float):
        super().__init__()
        self.first = WeightNormConv2d(2 * in_channels, width, (3, 3), padding=(1, 1))
        self.convs = nn.ModuleList(GatedConv(width, 0, 3, dropout) for _ in range(num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(torch.cat([x[..., ::2], x[..., 1::2]], 1))
        for conv in self.convs:
            h = conv(h)
        return h
