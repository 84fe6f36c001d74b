"""Maps that lose something, and the likelihood of what they lose."""

from __future__ import annotations

from torch import Tensor

from models.contracts import Kind, Transform


class Surjection(Transform):
    """A deterministic x -> z that several x share: log p(x) = log p(z) + log p(x | z), contribution log p(x | z), exact.

    An inference surjection (Nielsen et al. 2020, arXiv:2007.02731, sec. 2 and table 2). What x was among those that share z is
    its residual: ``encode`` keeps it, so nothing is lost between ``encode`` and ``decode``, and ``inverse`` draws a new one. A
    residual is a tensor of reals [B, ...], also where it says which sign or which order; there, decoding one that lies between
    two others chooses one of them. ``decode`` takes any reals and always gives an x that maps to z.
    """

    kept: int
    """Channels of z."""
    reparameterised = True
    """Whether draws of the residual carry the gradients of all that p(x | z) has learned."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(z, residual): what ``decode`` needs to give x back."""
        raise NotImplementedError

    def decode(self, z: Tensor, residual: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """x from z and its residual, or a draw; ``temperature`` scales deviations, and leaves choices of signs and orders."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.decode(z)


class Generative(Transform):
    """A surjection read backwards, x = S(z): forward draws z ~ q(z | x), S's own p, and contributes -log q(z | x).

    A generative surjection (Nielsen et al. 2020, sec. 2): of Split it is augmentation, [x, e] with e ~ q(e | x). The kind is
    WEIGHT: E_q[p(z) / q(z | x)] = p(x), the sum or integral of p over all z that map to x. ``inverse`` is S, exactly, so
    ``decode(encode(x))`` gives x back, whichever z was drawn. Raises ValueError for learned choices of signs or orders, whose
    draws carry no gradient: training would be biased.
    """

    kind = Kind.WEIGHT
    term = "generative"

    def __init__(self, surjection: Surjection):
        super().__init__()
        if not surjection.reparameterised:
            raise ValueError(f"{type(surjection).__name__} draws choices it has learned: make them fixed to read it backwards")
        self.surjection = surjection

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = self.surjection.decode(x)
        return z, -self.surjection(z)[1]

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.surjection.encode(z)[0]
