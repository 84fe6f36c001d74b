"""The nets inside couplings and splits: zero output at the start, so that every transform starts simple."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.weight_norm import WeightNormConv2d
from models.transforms.actnorm import LOG_SCALE_FACTOR, ActNorm
from models.transforms.folding import Foldable, Folded, unstack


class ZeroConv2d(nn.Module):
    """(3x3 convolution of x) * exp(3 log_scale), all zero at the start: [B, in, H, W] -> [B, out, H, W].

    The learned output scale is the released code's of Glow (tfops.py, conv2d_zeros).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        self.log_scale = nn.Parameter(torch.zeros(out_channels, 1, 1))

    @staticmethod
    def fold(parts: Sequence[ZeroConv2d]) -> tuple[Tensor, Tensor]:
        """Kernels [K, out, 3, 3, in] and biases [K, out] with the scales in them, of K convolutions of the same sizes."""
        scale = torch.exp(LOG_SCALE_FACTOR * torch.stack([part.log_scale.flatten() for part in parts]))
        bias = torch.stack([part.conv.bias for part in parts])
        return _scaled([part.conv for part in parts], scale), bias * scale

    def forward(self, x: Tensor) -> Tensor:
        kernel, bias = self.fold([self])
        return F.conv2d(x, kernel[0].movedim(-1, 1), bias[0], padding=1)


class GlowNet(Foldable):
    """3x3 conv - ActNorm - ReLU - 1x1 conv - ActNorm - ReLU - ZeroConv2d: [B, in, H, W] -> [B, out, H, W].

    Kingma & Dhariwal 2018, arXiv:1807.03039, sec. 3.3 and the released code (model.py, f), whose weights start as N(0, 0.05^2).
    Deviation: the released 3x3 convolutions also see a channel that marks the padding; these do not. The context is ignored.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm1 = ActNorm(width)
        self.conv2 = nn.Conv2d(width, width, 1, bias=False)
        self.norm2 = ActNorm(width)
        self.last = ZeroConv2d(width, out_channels)
        nn.init.normal_(self.conv1.weight, std=0.05)
        nn.init.normal_(self.conv2.weight, std=0.05)

    def likeness(self) -> Hashable:
        return GlowNet, self.conv1.weight.shape, self.last.conv.weight.shape

    @staticmethod
    def fold(parts: Sequence[GlowNet]) -> list[Folded]:
        """A kernel and a bias for each convolution, with the norms and scales in them: so one map is kept in place of three."""
        scale, shift, _ = ActNorm.coefficients([norm for part in parts for norm in (part.norm1, part.norm2)])
        kernel1 = _scaled([part.conv1 for part in parts], scale[::2])
        kernel2 = _scaled([part.conv2 for part in parts], scale[1::2])
        return unstack(kernel1, shift[::2], kernel2, shift[1::2], *ZeroConv2d.fold([part.last for part in parts]))

    def forward(self, x: Tensor, context: Tensor | None = None, folded: Folded | None = None) -> Tensor:
        if self.norm1.initializing:
            h = torch.relu(self.norm1(self.conv1(x))[0])
            return self.last(torch.relu(self.norm2(self.conv2(h))[0]))
        kernel1, bias1, kernel2, bias2, kernel3, bias3 = folded or self.fold([self])[0]
        h = F.conv2d(x, kernel1.movedim(-1, 1), bias1, padding=1).relu_()
        h = F.conv2d(h, kernel2.movedim(-1, 1), bias2).relu_()
        return F.conv2d(h, kernel3.movedim(-1, 1), bias3, padding=1)


def _scaled(convs: Sequence[nn.Conv2d], scale: Tensor) -> Tensor:
    """Kernels [K, out, height, width, in], contiguous like channels-last ones, times ``scale`` [K, out]."""
    return torch.stack([conv.weight.movedim(1, -1) for conv in convs]) * scale[:, :, None, None, None]


class MLP(nn.Module):
    """Hidden layers of ReLUs between vectors: [B, in] -> [B, out]. The context is ignored."""

    def __init__(self, in_features: int, out_features: int, hidden: Sequence[int]):
        super().__init__()
        sizes = [in_features, *hidden]
        layers = [part for pair in zip(sizes, sizes[1:]) for part in (nn.Linear(*pair), nn.ReLU())]
        self.net = nn.Sequential(*layers, nn.Linear(sizes[-1], out_features))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x)


class ResidualBlock(nn.Module):
    """h + conv(relu(conv(relu(h)))), both weight-normalised 3x3 convolutions of [B, width, H, W]."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = WeightNormConv2d(width, width, (3, 3), padding=(1, 1))
        self.conv2 = WeightNormConv2d(width, width, (3, 3), padding=(1, 1))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv2(torch.relu(self.conv1(torch.relu(h))))


class ResNet(nn.Module):
    """3x3 conv - ``num_blocks`` residual blocks - ReLU - 1x1 conv of zeros: [B, in, H, W] -> [B, out, H, W].

    The nets of RealNVP, Dinh et al. 2016 (arXiv:1605.08803), sec. 3.6 and 4.1. Deviations: they also have batch normalisation,
    whose work at the start weight normalisation's initialising batch does here, and a 1x1 skip from each block to the output;
    the released ones see [x, -x] and their last layer does not start at zero. The context is ignored.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int, num_blocks: int):
        super().__init__()
        blocks = (ResidualBlock(width) for _ in range(num_blocks))
        first = WeightNormConv2d(in_channels, width, (3, 3), padding=(1, 1))
        self.net = nn.Sequential(first, *blocks, nn.ReLU(), nn.Conv2d(width, out_channels, 1))
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x)
