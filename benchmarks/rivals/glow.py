"""Glow as it is usually published, with the parameters of ours, and as the library normflows has it.

``Published`` is written from the paper (Kingma & Dhariwal 2018, arXiv:1807.03039) in the form that most ports have: a module a
layer, each with its log-determinant [B], the 1x1 convolution's weight multiplied from its LU factors in every pass and inverted
in every draw, ``chunk`` and ``cat`` around a coupling, squeezing by ``permute``. The sizes and the arithmetic are ours.
"""

from __future__ import annotations

from math import log, pi

import normflows as nf
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.flow.flow import Flow

OVERRIDES = (
    "model=glow",
    "data=cifar10",
    "data.batch_size=16",
    "model.architecture.num_levels=3",
    "model.architecture.num_steps=8",
    "model.architecture.step.coupling.conditioner.width=128",
)
"""L = 3, K = 8, 128 hidden channels, 3x32x32, batch 16."""

VARIANTS = {"recomputing": ("model.architecture.recompute=true",)}
"""Further forms of ours, each by what it changes in the config."""

SPEED = (
    ("ours", "published", 1.3),
    ("ours", "normflows", 1.3),
    ("ours compiled", "published", 1.5),
    ("ours compiled", "normflows", 1.5),
    ("ours compiled", "published compiled", None),
    ("ours recomputing", "ours", None),
)
"""Ratios of images a second and what they must reach."""

SAMPLING = (("ours", "published", 1.4), ("ours", "normflows", 1.4))
"""Ratios of samples a second and what they must reach."""

MEMORY = (
    ("ours", "published", 0.9),
    ("ours", "normflows", 0.9),
    ("ours recomputing", "published", 0.4),
    ("ours recomputing", "normflows", 0.4),
)
"""Ratios of peak memory and their upper bounds."""


class Actnorm(nn.Module):
    """y = (x + bias) exp(3 logs)."""

    def __init__(self, source):
        super().__init__()
        self.bias = nn.Parameter(source.bias.detach().view(1, -1, 1, 1).clone())
        self.logs = nn.Parameter(source.log_scale.detach().view(1, -1, 1, 1).clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logs = self.logs * 3
        log_det = logs.sum() * x.size(2) * x.size(3)
        return (x + self.bias) * torch.exp(logs), log_det

    def reverse(self, y: Tensor) -> Tensor:
        return y * torch.exp(-self.logs * 3) - self.bias


class InvertibleConv(nn.Module):
    """A 1x1 convolution by P L (U + diag(s))."""

    def __init__(self, source):
        super().__init__()
        factors, size = source.factors.detach(), len(source.sign)
        self.lower, self.upper = nn.Parameter(factors.tril(-1)), nn.Parameter(factors.triu(1))
        self.log_s = nn.Parameter(factors.diagonal().clone())
        self.register_buffer("sign_s", source.sign.clone())
        self.register_buffer("p", torch.eye(size)[source.order])
        self.register_buffer("eye", torch.eye(size))
        self.register_buffer("l_mask", torch.ones(size, size).tril(-1))

    def factors(self) -> tuple[Tensor, Tensor]:
        lower = self.lower * self.l_mask + self.eye
        upper = self.upper * self.l_mask.t() + torch.diag(self.sign_s * torch.exp(self.log_s))
        return lower, upper

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self.factors()
        weight = torch.matmul(self.p, torch.matmul(lower, upper))
        return F.conv2d(x, weight[:, :, None, None]), self.log_s.sum() * x.size(2) * x.size(3)

    def reverse(self, y: Tensor) -> Tensor:
        lower, upper = self.factors()
        weight = torch.matmul(torch.inverse(upper), torch.matmul(torch.inverse(lower), self.p.t()))
        return F.conv2d(y, weight[:, :, None, None])


class ZeroConv(nn.Module):
    """A 3x3 convolution that starts at zero, and a learned output scale."""

    def __init__(self, source):
        super().__init__()
        outputs, inputs = source.conv.weight.shape[:2]
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv.load_state_dict(source.conv.state_dict())
        self.logs = nn.Parameter(source.log_scale.detach()[None].clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * torch.exp(self.logs * 3)


class AffineCoupling(nn.Module):
    """The second half moves by what a small net makes of the first."""

    def __init__(self, source):
        super().__init__()
        net = source.net
        width, inputs = net.conv1.weight.shape[:2]
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.conv1.load_state_dict(net.conv1.state_dict())
        self.norm1 = Actnorm(net.norm1)
        self.conv2 = nn.Conv2d(width, width, 1, bias=False)
        self.conv2.load_state_dict(net.conv2.state_dict())
        self.norm2 = Actnorm(net.norm2)
        self.conv3 = ZeroConv(net.last)

    def net(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.norm1(self.conv1(x))[0])
        h = F.relu(self.norm2(self.conv2(h))[0])
        shift, scale = torch.chunk(self.conv3(h), 2, 1)
        return shift, torch.sigmoid(scale + 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x1, x2 = torch.chunk(x, 2, 1)
        shift, scale = self.net(x1)
        return torch.cat([x1, (x2 + shift) * scale], 1), torch.log(scale).sum((1, 2, 3))

    def reverse(self, y: Tensor) -> Tensor:
        y1, y2 = torch.chunk(y, 2, 1)
        shift, scale = self.net(y1)
        return torch.cat([y1, y2 / scale - shift], 1)


LAYERS = {"ActNorm": Actnorm, "Conv1x1": InvertibleConv, "Coupling": AffineCoupling}


def squeeze(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).contiguous().view(b, 4 * c, h // 2, w // 2)


def unsqueeze(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).contiguous().view(b, c // 4, 2 * h, 2 * w)


def normal(x: Tensor, mean: Tensor, logs: Tensor) -> Tensor:
    return (-0.5 * (log(2 * pi) + 2 * logs + (x - mean) ** 2 / torch.exp(2 * logs))).sum((1, 2, 3))


class Published(nn.Module):
    """A map from a batch to nats [B], as ``model(x, y).nats`` is one, without labels."""

    def __init__(self, model: Flow):
        super().__init__()
        self.levels = model.spec.levels
        _, *transforms = model.transforms
        self.steps = nn.ModuleList(
            nn.ModuleList(LAYERS[type(part).__name__](part) for part in level.parts[1:]) for level in transforms[::2]
        )
        self.priors = nn.ModuleList(ZeroConv(split.prior.net) for split in transforms[1::2])
        self.mean = nn.Parameter(model.base.mean.detach().clone())
        self.logs = nn.Parameter(model.base.log_scale.detach().clone())

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        z = (x + torch.rand(x.shape, device=x.device)) / self.levels - 0.5
        log_p = torch.zeros(len(x), device=x.device) - log(self.levels) * x[0].numel()
        for level, steps in enumerate(self.steps):
            z = squeeze(z)
            for step in steps:
                z, log_det = step(z)
                log_p = log_p + log_det
            if level < len(self.priors):
                z, z2 = torch.chunk(z, 2, 1)
                mean, logs = torch.chunk(self.priors[level](z), 2, 1)
                log_p = log_p + normal(z2, mean, logs)
        return log_p + normal(z, self.mean, self.logs)

    def sample(self, n: int) -> Tensor:
        z = self.mean + torch.exp(self.logs) * torch.randn(n, *self.mean.shape[1:], device=self.mean.device)
        for level in reversed(range(len(self.steps))):
            if level < len(self.priors):
                mean, logs = torch.chunk(self.priors[level](z), 2, 1)
                z = torch.cat([z, mean + torch.exp(logs) * torch.randn_like(mean)], 1)
            for step in reversed(self.steps[level]):
                z = step.reverse(z)
            z = unsqueeze(z)
        return torch.clamp(torch.floor((z + 0.5) * self.levels), 0, self.levels - 1).to(torch.uint8)


class NormFlows(nn.Module):
    """The library's Glow of the same sizes: LU, sigmoid scales, ActNorm in the nets.

    Otherwise than in ours, its convolutions that start at zero have no learned output scale, what a level factors out has a prior
    of its own in place of one predicted by a net, and log scales are learned as they are, not by thirds. So it does a little less.
    """

    def __init__(self, model: Flow):
        super().__init__()
        self.levels = model.spec.levels
        channels, height, width = model.spec.shape
        sequences = [transform for transform in model.transforms if hasattr(transform, "parts")]
        hidden = len(sequences[0].parts[-1].net.conv1.weight)
        bases, flows, merges = [], [], []
        for level in range(len(sequences)):
            channels, height, width = 4 * channels, height // 2, width // 2
            steps = (len(sequences[level].parts) - 1) // 3
            blocks = [nf.flows.GlowBlock(channels, hidden, use_lu=True, net_actnorm=True) for _ in range(steps)]
            flows.insert(0, [*blocks, nf.flows.Squeeze()])
            if level < len(sequences) - 1:
                channels //= 2
                merges.insert(0, nf.flows.Merge())
            bases.insert(0, nf.distributions.DiagGaussian((channels, height, width)))
        self.flow = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
        with torch.no_grad():  # its ActNorm starts from its first batch
            self(torch.randint(0, self.levels, (len(bases), *model.spec.shape)), None)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        z = (x + torch.rand(x.shape, device=x.device)) / self.levels - 0.5
        return self.flow.log_prob(z, None) - log(self.levels) * x[0].numel()

    def sample(self, n: int) -> Tensor:
        z = self.flow.sample(n)[0]
        return torch.clamp(torch.floor((z + 0.5) * self.levels), 0, self.levels - 1).to(torch.uint8)


FORMS = {"published": Published, "normflows": NormFlows}
"""What ours is held against: the same arithmetic, and a library's model of the same sizes."""
