"""The architecture of an autoencoder within a flow, and of the variational one with the same parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.contracts import Bijection, Transform
from models.transforms.autoencoder import AutoencoderBijection, First, VariationalAutoencoder
from models.transforms.sequence import Sequential


class Autoencoder:
    """``norm``, an autoencoder ``layer(shape, latent_dim)``, and ``num_steps`` times the parts of ``prior`` on the latents.

    Silvestri et al. 2022 (arXiv:2205.09546). With an AutoencoderBijection all numbers stay, with a VariationalAutoencoder the
    latents. Parts of ``prior`` are made by ``factory(latent_dim)``; together they are the prior's flow, in the order z -> base.
    """

    def __init__(
        self,
        latent_dim: int,
        norm: Callable[[int], Bijection],
        layer: Callable[[Sequence[int], int], AutoencoderBijection | VariationalAutoencoder],
        num_steps: int,
        prior: dict[str, Callable[[int], Bijection]],
    ):
        self.latent_dim, self.norm, self.layer, self.num_steps, self.prior = latent_dim, norm, layer, num_steps, prior

    def __call__(self, shape: tuple[int, int, int]) -> tuple[list[Transform], tuple[int]]:
        layer = self.layer(shape, self.latent_dim)
        transforms: list[Transform] = [self.norm(shape[0]), layer]
        if self.num_steps:
            steps = [make(self.latent_dim) for _ in range(self.num_steps) for make in self.prior.values()]
            transforms.append(First(self.latent_dim, Sequential(steps)))
        return transforms, (layer.features,)
