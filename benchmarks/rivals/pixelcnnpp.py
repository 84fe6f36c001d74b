"""PixelCNN++ as it is usually published, with the parameters of ours: what ``benchmarks.training`` holds it against.

Written from the paper (Salimans et al. 2017, arXiv:1701.05517) in the form that its code gave every port: weight norm as a
parametrization, padding modules before the convolutions, both streams block by block, and the loss as a chain of maps
[B, C, mixtures, H, W] that ends in nested ``where``. The sizes and the arithmetic are ours.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from models.autoregressive.model import Autoregressive
from models.autoregressive.pixelcnnpp import GatedBlock, Stream
from models.nn.weight_norm import WeightNorm, WeightNormConvTranspose2d

OVERRIDES = ("experiment=pixelcnnpp_cifar10_small",)
"""2 blocks a scale and direction, 40 filters, 5 mixture components, 3x32x32, batch 16."""

VARIANTS = {"checkpointed": ("model.net.checkpoint=true",)}
"""Further forms of ours, each by what it changes in the config."""

SPEED = (
    ("ours", "published", 1.05),
    ("ours compiled", "published", 1.6),
    ("ours compiled", "published compiled", None),
    ("published compiled", "published", None),
    ("ours checkpointed", "published", None),
)
"""Ratios of images a second and what they must reach."""

SAMPLING = ()
"""Ratios of samples a second: benchmarks.sampling has them."""

MEMORY = (
    ("ours", "published", 0.9),
    ("ours checkpointed", "published", 0.6),
    ("ours compiled", "published", None),
    ("ours compiled", "published compiled", None),
)
"""Ratios of peak memory and their upper bounds."""


def convolution(source: WeightNorm) -> nn.Module:
    """A weight-normalised convolution with the parameters of ``source``."""
    transposed = isinstance(source, WeightNormConvTranspose2d)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    inputs, outputs = source.v.shape[:2] if transposed else reversed(source.v.shape[:2])
    conv = weight_norm(kind(inputs, outputs, tuple(source.v.shape[2:]), source.stride), dim=int(transposed))
    scale, direction = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
    with torch.no_grad():
        scale.copy_(source.g.view_as(scale))
        direction.copy_(source.v)
        conv.bias.copy_(source.b)
    return conv


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], 1))


class Shifted(nn.Module):
    """A convolution that looks up, or up and left, by padding."""

    def __init__(self, source: WeightNorm, down_right: bool):
        super().__init__()
        height, width = source.v.shape[2:]
        self.pad = nn.ZeroPad2d((width - 1, 0, height - 1, 0) if down_right else (width // 2, width // 2, height - 1, 0))
        self.conv = convolution(source)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x))


class Enlarging(nn.Module):
    """The transposed convolution of stride 2, cropped."""

    def __init__(self, source: WeightNorm, down_right: bool):
        super().__init__()
        self.margin = 0 if down_right else source.v.shape[3] // 2
        self.conv = convolution(source)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        return self.conv(x)[:, :, : 2 * height, self.margin : self.margin + 2 * width]


class Residual(nn.Module):
    """A gated residual block, with a further input or none."""

    def __init__(self, source: GatedBlock, down_right: bool):
        super().__init__()
        self.conv_input = Shifted(source.conv_in, down_right)
        self.nin_skip = None if source.nin is None else convolution(source.nin)
        self.dropout = nn.Dropout(source.dropout)
        self.conv_out = Shifted(source.conv_out, down_right)

    def forward(self, x: Tensor, a: Tensor | None = None) -> Tensor:
        c1 = self.conv_input(concat_elu(x))
        if a is not None:
            c1 = c1 + self.nin_skip(concat_elu(a))
        c2 = self.conv_out(self.dropout(concat_elu(c1)))
        value, gate = torch.chunk(c2, 2, 1)
        return x + value * torch.sigmoid(gate)


class Scale(nn.Module):
    """Both streams at one resolution: blocks on the way to the coarser ones, and blocks on the way back."""

    def __init__(self, down: Stream, right: Stream):
        super().__init__()
        self.u_before, self.ul_before, self.u_after, self.ul_after = (
            nn.ModuleList(Residual(block, down_right) for block in blocks)
            for blocks, down_right in ((down.before, False), (right.before, True), (down.after, False), (right.after, True))
        )
        self.last = down.inner is None
        if not self.last:
            self.u_shrink, self.ul_shrink = Shifted(down.shrink, False), Shifted(right.shrink, True)
            self.u_grow, self.ul_grow = Enlarging(down.grow, False), Enlarging(right.grow, True)


class Published(nn.Module):
    """A map from a batch to nats [B], as ``model(x, y).nats`` is one, for colour images without labels."""

    def __init__(self, model: Autoregressive):
        super().__init__()
        net = model.net
        self.levels, self.num_mixtures = model.spec.levels, model.likelihood.num_mixtures
        self.min_log_scale = model.likelihood.min_log_scale
        self.u_init = Shifted(net.in_down, False)
        self.ul_init = nn.ModuleList([Shifted(net.in_above, False), Shifted(net.in_left, True)])
        self.shift_down, self.shift_right = nn.ZeroPad2d((0, 0, 1, 0)), nn.ZeroPad2d((1, 0, 0, 0))
        self.scales = nn.ModuleList()
        down, right = net.down, net.right
        while down is not None:
            self.scales.append(Scale(down, right))
            down, right = down.inner, right.inner
        self.nin_out = convolution(net.out)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        x = 2 * x.float() / (self.levels - 1) - 1
        return self.log_prob(x, self.net(x))

    def net(self, x: Tensor) -> Tensor:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        us = [self.shift_down(self.u_init(x)[:, :, :-1])]
        above, left = (conv(x) for conv in self.ul_init)
        uls = [self.shift_down(above[:, :, :-1]) + self.shift_right(left[:, :, :, :-1])]
        for scale in self.scales:
            for u_block, ul_block in zip(scale.u_before, scale.ul_before):
                us.append(u_block(us[-1]))
                uls.append(ul_block(uls[-1], us[-1]))
            if not scale.last:
                us.append(scale.u_shrink(us[-1]))
                uls.append(scale.ul_shrink(uls[-1]))
        u, ul = us.pop(), uls.pop()
        for scale in reversed(self.scales):
            if not scale.last:
                u, ul = scale.u_grow(u), scale.ul_grow(ul)
            for u_block, ul_block in zip(scale.u_after, scale.ul_after):
                u = u_block(u, us.pop())
                ul = ul_block(ul, torch.cat([u, uls.pop()], 1))
        return self.nin_out(F.elu(ul))

    def log_prob(self, x: Tensor, params: Tensor) -> Tensor:
        """Nats [B] of reals x [B, 3, H, W] in [-1, 1]."""
        batch, channels, height, width = x.shape
        blocks = params.view(batch, self.num_mixtures, 10, height, width).transpose(1, 2)
        logits, blocks = blocks[:, 0], blocks[:, 1:]
        means = blocks[:, :3]
        log_scales = torch.clamp(blocks[:, 3:6], min=self.min_log_scale)
        coefficients = torch.tanh(blocks[:, 6:])
        x = x[:, :, None] + torch.zeros_like(means)
        m2 = means[:, 1] + coefficients[:, 0] * x[:, 0]
        m3 = means[:, 2] + coefficients[:, 1] * x[:, 0] + coefficients[:, 2] * x[:, 1]
        means = torch.stack([means[:, 0], m2, m3], 1)
        centered = x - means
        inverse = torch.exp(-log_scales)
        half_bin = 1 / (self.levels - 1)
        plus_in, min_in, mid_in = inverse * (centered + half_bin), inverse * (centered - half_bin), inverse * centered
        cdf_plus, cdf_min = torch.sigmoid(plus_in), torch.sigmoid(min_in)
        log_cdf_plus = plus_in - F.softplus(plus_in)
        log_one_minus_cdf_min = -F.softplus(min_in)
        cdf_delta = cdf_plus - cdf_min
        log_pdf_mid = mid_in - log_scales - 2 * F.softplus(mid_in)
        log_probs = torch.where(
            x < -0.999,
            log_cdf_plus,
            torch.where(
                x > 0.999,
                log_one_minus_cdf_min,
                torch.where(
                    cdf_delta > 1e-5, torch.log(torch.clamp(cdf_delta, min=1e-12)), log_pdf_mid - log((self.levels - 1) / 2)
                ),
            ),
        )
        return torch.logsumexp(log_probs.sum(1) + F.log_softmax(logits, 1), 1).sum((1, 2))


FORMS = {"published": Published}
"""What ours is held against."""
