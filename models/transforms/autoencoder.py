"""An encoder and a decoder as one transform: as a bijection of all pixels, or as the two halves of a variational autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import Bijection, DataSpec, Kind, Transform
from models.distributions.normal import DiagonalNormal, full_precision
from models.latent.nets import Encoder

MIN_SCALE = 1e-5
"""Added to every softplus that makes a scale: the released code's eps (aef_internal.py)."""


class Core:
    """Which numbers of an image become latents directly."""

    def places(self, shape: tuple[int, int, int], count: int) -> Tensor:
        """Indices [count], ascending, into the image in raster order, channel after channel."""
        channels, height, width = shape
        if not 1 <= count < prod(shape):
            raise ValueError(f"latent_dim must be at least 1 and less than the {prod(shape)} numbers of an image; got {count}")
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        near = self.distance(rows, columns, height, width).flatten().argsort(stable=True)
        pixels = torch.arange(channels)[None] * height * width + near[:, None]  # all channels of the nearest pixel first
        return pixels.flatten()[:count].sort().values

    def distance(self, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
        raise NotImplementedError


class Centre(Core):
    """Those in the smallest square around the centre: the "AEF-center" of the released code."""

    def distance(self, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
        return torch.maximum((2 * rows - height + 1).abs(), (2 * columns - width + 1).abs())


class Corner(Core):
    """Those in the smallest square at the upper left corner: the "AEF-corner" of the released code."""

    def distance(self, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
        return torch.maximum(rows, columns)


class GaussianCoder(nn.Module):
    """N(mean, scale^2) of latents given an image, and of an image given latents.

    ``encoder(spec, labels)`` and ``decoder(inputs, outputs)`` are the parts of a VAE (models.latent.nets). Scales are softplus
    + 1e-5. The decoder's are its own output if ``dependent``, else free for each number (the released code's "independent").
    """

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int,
        encoder: Callable[[DataSpec, int], Encoder],
        decoder: Callable[[int, Sequence[int]], nn.Module],
        dependent: bool,
    ):
        super().__init__()
        channels, height, width = shape
        self.encoder = encoder(DataSpec(tuple(shape), None), 0)
        self.head = nn.Linear(self.encoder.features, 2 * latent_dim)
        self.decoder = decoder(latent_dim, [2 * channels if dependent else channels, height, width])
        self.free_scale = None if dependent else nn.Parameter(torch.zeros(1, *shape))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale [B, latent_dim] of the latents of images [B, C, H, W] of reals."""
        mean, scale = full_precision(self.head(self.encoder(x, None))).chunk(2, 1)
        return mean, F.softplus(scale) + MIN_SCALE

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale [B, C, H, W]."""
        params = full_precision(self.decoder(z))
        mean, scale = params.chunk(2, 1) if self.free_scale is None else (params, self.free_scale.expand_as(params))
        return mean, F.softplus(scale) + MIN_SCALE


class AutoencoderBijection(Bijection):
    """x = (core, shell) -> (z, deviation): z = mean(shell) + scale(shell) core, deviation = (shell - mean(z)) / scale(z).

    log |det| = sum log scale(shell) - sum log scale(z). Silvestri et al. 2022 (arXiv:2205.09546, sec. 3), whose encoder sees
    the image with its core at 0. From images [B, C, H, W] to vectors [B, D] that begin with the ``latent_dim`` z; with a
    standard normal prior the likelihood of an autoencoder is exact.
    """

    def __init__(self, shape: Sequence[int], latent_dim: int, core: Core, coder: Callable[..., GaussianCoder]):
        super().__init__()
        self.shape, self.features = tuple(shape), prod(shape)
        outside = torch.ones(prod(shape), dtype=torch.int8)
        outside[core.places(self.shape, latent_dim)] = 0
        places = outside.argsort(stable=True)
        self.register_buffer("core", places[:latent_dim], persistent=False)
        self.register_buffer("shell", places[latent_dim:], persistent=False)
        self.coder = coder(shape, latent_dim)

    def _image(self, shell: Tensor, core: Tensor | None = None) -> Tensor:
        """[B, C, H, W] with ``core`` [B, latent_dim], or 0, in its places."""
        flat = shell.new_zeros(len(shell), len(self.core) + len(self.shell)).index_copy(1, self.shell, shell)
        return (flat if core is None else flat.index_copy(1, self.core, core)).view(-1, *self.shape)

    def _decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of the shell, [B, D - latent_dim]."""
        mean, scale = self.coder.decode(z)
        return mean.flatten(1)[:, self.shell], scale.flatten(1)[:, self.shell]

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = x.flatten(1)
        core, shell = x[:, self.core], x[:, self.shell]
        mean, scale = self.coder.encode(self._image(shell))
        z = mean + scale * core
        shell_mean, shell_scale = self._decode(z)
        log_det = scale.log().sum(1) - shell_scale.log().sum(1)
        return torch.cat([z, (shell - shell_mean) / shell_scale], 1), log_det

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, deviation = z.split([len(self.core), len(self.shell)], 1)
        shell_mean, shell_scale = self._decode(z)
        shell = shell_mean + shell_scale * deviation
        mean, scale = self.coder.encode(self._image(shell))
        return self._image(shell, (z - mean) / scale), shell_scale.log().sum(1) - scale.log().sum(1)


class VariationalAutoencoder(Transform):
    """x -> z ~ N(mean(x), scale(x)^2), contribution log N(x; mean(z), scale(z)^2) - log q(z | x): a VAE as a layer of a flow.

    Its exponential is an importance weight (WEIGHT), see Nielsen et al. 2020 (arXiv:2007.02731, sec. 3.1). ``inverse`` draws x.
    """

    kind = Kind.WEIGHT
    term = "vae"

    def __init__(self, shape: Sequence[int], latent_dim: int, coder: Callable[..., GaussianCoder]):
        super().__init__()
        self.features = latent_dim
        self.coder = coder(shape, latent_dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, scale = self.coder.encode(x)
        z, log_q = DiagonalNormal(mean, scale.log()).rsample_and_log_prob(len(x))
        mean, scale = self.coder.decode(z)
        return z, DiagonalNormal(mean, scale.log()).log_prob(x) - log_q

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        mean, scale = self.coder.decode(z)
        return mean + scale * torch.randn_like(mean)


class First(Bijection):
    """A bijection of the first ``count`` numbers of a vector, beside which the others stay: z = [f(a), b] for x = [a, b]."""

    def __init__(self, count: int, bijection: Bijection):
        super().__init__()
        self.count, self.bijection = count, bijection

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, log_det = self.bijection(x[:, : self.count], context)
        return torch.cat([a, x[:, self.count :]], 1), log_det

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, log_det = self.bijection.inverse_and_log_det(z[:, : self.count], context)
        return torch.cat([a, z[:, self.count :]], 1), log_det
