"""Integer discrete flows: exact probabilities of integers, and their code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from models.contracts import Conditional, DataSpec, Transform
from models.flow.flow import Flow
from models.transforms.integer import Grid
from models.transforms.split import Split


class IntegerFlow(Flow):
    """P(x) = P_base(f(x)): f a bijection of the integers, so that there is no volume to count and nothing to dequantize.

    Hoogeboom et al. 2019, arXiv:1905.07376. ``architecture(shape)`` as in every Flow, of transforms that stay on the
    Grid; ``base(shape)`` and the priors of splits are DiscretizedMixtures. The score is EXACT. The probabilities of all
    integers sum to 1; those of images in {0..K-1} to less, as f knows no ends: what lies beyond them is lost to the model, and
    a sample of it is clamped. Latents are the integers themselves, on the grid.
    """

    def __init__(
        self,
        spec: DataSpec,
        architecture: Callable[[tuple[int, int, int]], tuple[list[Transform], tuple[int, int, int]]],
        base: Callable[..., Conditional],
    ):
        if spec.levels is None:
            raise ValueError("an integer flow is over integers and these data are continuous: choose model=glow")
        super().__init__(spec, Grid(spec.levels), None, architecture, base, False)

    def _run(self, precise: bool, method: Callable[..., Any], *arguments: Any) -> Any:
        """In the model's dtype, as a coder inverts: other digits of a net could round to another integer, and none is lost."""
        return method(*arguments)

    @torch.no_grad()
    def sample_integers(self, n: int, temperature: float = 1.0) -> Tensor:
        """``n`` draws before they are clamped: int64 [n, C, H, W], any integers."""
        return self.dequantization.integers(self.sample_continuous(n, temperature=temperature))

    @torch.no_grad()
    def code_walk(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The walk of a coder, see ``models.coding.coder.Codable``: the latents, in the order in which sampling draws them.

        The last level first, then what each split factored out, under its prior given all before. Tables and images come from
        the inverse in both directions; only an encoder's latents come from elsewhere.
        """
        *factored, z = self.encode(x)
        yield from self.base().code(z)
        for transform in reversed(self.transforms):
            if isinstance(transform, Split):
                rest = factored.pop()
                yield from transform.prior(z).code(rest)
                z = torch.cat([z, rest], 1)
            else:
                z = transform.inverse(z)
        x.copy_(self.dequantization.inverse(z))
