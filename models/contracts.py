"""The contracts every part of logpx keeps. Read this file first.

Conventions, everywhere:

* A batch of data is ``x``: integers ``[B, C, H, W]`` in ``{0..K-1}`` (any integer dtype; loaders give uint8), and ``y``:
  labels ``[B]`` or None. Continuous data (``levels=None``) is float and is the one exception.
* Densities are natural logarithms ("nats") of shape ``[B]``, summed over the event; larger is likelier.
* Only ``models/units.py`` converts to bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Flag
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class DataSpec:
    """What one example is: ``shape`` (C, H, W), ``levels`` K (None: continuous), ``classes`` (None: no labels)."""

    shape: tuple[int, int, int]
    levels: int | None
    classes: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(int(s) for s in self.shape))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"a data shape is (channels, height, width), all at least 1; got {self.shape}")
        if self.levels is not None and not 2 <= self.levels <= 256:
            raise ValueError(f"levels must be 2 to 256 (or null for continuous data); got {self.levels}")

    @property
    def dims(self) -> int:
        """Number of scalars in one example: the only denominator of bits per dimension."""
        return prod(self.shape)


class Kind(Flag):
    """What kind of statement ``Score.nats`` makes about log p(x). Kinds join with ``|``."""

    EXACT = 0
    """nats = log p(x)."""
    WEIGHT = 1
    """E[exp nats] = p(x): an importance weight. Its mean is a lower bound; its log-mean-exp over k draws a tighter one."""
    NOISY = 2
    """E[nats] = log p(x): an unbiased estimate of the logarithm (Hutchinson's trace)."""
    LOWER = 4
    """E[nats] <= log p(x) and nothing more (an ELBO with an analytic KL). Never to be importance averaged."""
    UNNORMALIZED = 8
    """nats = log p(x) + an unknown constant (an energy)."""

    @property
    def statement(self) -> str:
        """How a mean of such scores is reported: 'exact', 'bound', 'estimate' or 'unnormalized'."""
        if Kind.UNNORMALIZED in self:
            return "unnormalized"
        if Kind.LOWER in self or Kind.WEIGHT in self:
            return "bound"
        return "estimate" if Kind.NOISY in self else "exact"

    @property
    def may_average_weights(self) -> bool:
        """Whether log-mean-exp of repeated scores is a valid (tighter) bound."""
        return self in (Kind.EXACT, Kind.WEIGHT)


@dataclass
class Score:
    """A model's answer for a batch: ``nats`` [B], its ``kind``, and named ``terms`` [B] that sum to ``nats``.

    Term names: "data" (log p(x|z)), "kl", "kl/3" (minus the KL of group 3), "base", "logdet/12", "dequantize", ...
    """

    nats: Tensor
    kind: Kind
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Loss:
    """What an objective returns: the scalar to minimise and scalars to log (detached, unit in the name: "nll_bpd")."""

    value: Tensor
    log: dict[str, Tensor] = field(default_factory=dict)


class GenerativeModel(nn.Module):
    """A distribution over data. ``spec`` says over which. Calling the module scores, so that ``compile`` covers it."""

    spec: DataSpec

    def score(self, x: Tensor, y: Tensor | None = None) -> Score:
        """Log density of ``x`` [B, C, H, W], optionally given labels ``y`` [B]."""
        raise NotImplementedError

    def sample(self, n: int, y: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """``n`` draws: uint8 [n, C, H, W] in {0..K-1}, or floats for continuous data."""
        raise NotImplementedError

    def log_weights(self, x: Tensor, y: Tensor | None, k: int) -> Score:
        """``k`` independent scores of each example: nats and terms [B, k]. Override it to share work among the draws."""
        score = self.score(x.repeat_interleave(k, 0), None if y is None else y.repeat_interleave(k, 0))
        return Score(score.nats.view(-1, k), score.kind, {name: term.view(-1, k) for name, term in score.terms.items()})

    def forward(self, x: Tensor, y: Tensor | None = None, k: int | None = None) -> Score:
        """``score(x, y)``, or ``log_weights(x, y, k)`` when ``k`` is given."""
        return self.score(x, y) if k is None else self.log_weights(x, y, k)


class Likelihood(nn.Module):
    """An output head: a distribution over integers ``x`` [B, C, H, W] given net outputs ``params`` [B, P, H, W].

    ``groups`` is C where the channels of a pixel are independent given the parameters: block c of P / C parameters is then
    channel c's alone, and the head serves any number of such blocks. It is 1 where the head couples the channels itself.
    """

    spec: DataSpec
    groups: int

    def param_channels(self) -> int:
        """P: how many channels the net must produce for each pixel (all C sub-pixels together)."""
        raise NotImplementedError

    def log_prob_map(self, params: Tensor, x: Tensor) -> Tensor:
        """log P(x | params) in nats, [B, C, H, W], or [B, 1, H, W] where the channels of a pixel are coupled."""
        raise NotImplementedError

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """log P(x | params) in nats, summed over the image: [B]."""
        return sum_event(self.log_prob_map(params, x))

    def log_pmf(self, params: Tensor, x: Tensor, channel: int, temperature: float = 1.0) -> Tensor:
        """log P(x_channel = k | the channels before it in ``x``) for all K levels k: nats [B, K, H, W]."""
        raise NotImplementedError

    def sample(self, params: Tensor, temperature: float = 1.0) -> Tensor:
        """One draw for each pixel: uint8 [B, C, H, W] (channel coupling, if any, is ancestral)."""
        raise NotImplementedError

    def mean(self, params: Tensor) -> Tensor:
        """The expected image in levels, float [B, C, H, W] in [0, K-1]."""
        raise NotImplementedError


class Distribution:
    """A distribution over tensors ``z`` [B, *event]. A parameter batch of 1 serves any B."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Nats [B]."""
        raise NotImplementedError

    def rsample(self, n: int, temperature: float = 1.0) -> Tensor:
        """``n`` reparameterised draws [n, *event]; n equals the parameter batch unless that is 1."""
        raise NotImplementedError

    def rsample_and_log_prob(self, n: int) -> tuple[Tensor, Tensor]:
        """Draws and their own log density, in one pass where that is cheaper (an IAF)."""
        z = self.rsample(n)
        return z, self.log_prob(z)


class Conditional(nn.Module):
    """A map from a context to a Distribution: priors and bases (context None) and posteriors."""

    def forward(self, context: Tensor | None = None) -> Distribution:
        """The distribution given ``context`` [B, ...]: a batch of B, or of 1 where there is none."""
        raise NotImplementedError


class Transform(nn.Module):
    """A map x -> z with its contribution: log p(x) = log p(z) + contribution (bijection, dequantization, split, surjection)."""

    kind: Kind = Kind.EXACT
    term: str = "logdet"
    """What its contribution is called in Score.terms (numbered where there are several)."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(z, contribution [B])."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """x. Keeps gradients. Splits and surjections redraw what they dropped."""
        raise NotImplementedError


class Bijection(Transform):
    """An invertible Transform; its contribution is log |det dz/dx|. One class serves data, prior and posterior flows."""

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x, log |det dx/dz| [B])."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.inverse_and_log_det(z, context)[0]

    def retrace(self, z: Tensor, context: Tensor | None = None, *folded) -> tuple[Tensor, Tensor, Tensor]:
        """(x, z, contribution): x = inverse(z) as a leaf, and what forward makes of it again, with its graph.

        ``folded``: nothing, or what the forward and then what the inverse of a Foldable takes.
        """
        with torch.no_grad():
            x, _ = self.inverse_and_log_det(z, context, *folded[1:])
        x = x.detach().requires_grad_()
        return x, *self(x, context, *folded[:1])


class CausalNet(nn.Module):
    """A net whose output at a position depends only on earlier positions, in raster order.

    It is made with ``shape`` (C, H, W), ``out_channels`` P, ``groups`` (what its head allows: C or 1) and ``classes`` (or
    None). With ``groups`` = C a position is one channel of one pixel: block c of P / C outputs at a pixel may depend on the
    channels before c of that pixel too. With 1 (which a net may always choose) it is a pixel. Positions run over pixels, and
    within a pixel over its groups.
    """

    groups: int = 1

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Head parameters [B, P, H, W] for every position at once, of reals ``x`` [B, C, H, W]."""
        raise NotImplementedError

    def start(self, n: int, y: Tensor | None = None):
        """An empty cache for ``n`` samples, or None: 'no cache, call forward'."""
        return None

    @torch.no_grad()
    def step(self, x_prev: Tensor | None, position: int, cache) -> Tensor:
        """Head parameters [n, P / groups] at ``position``, given the values [n, C / groups] of the one before (None at 0).

        Positions come in order. Here for a cache that knows how to step.
        """
        return cache.step(x_prev, position)

    def select(self, permutation: Tensor | None, member: int) -> None:
        """From now on the net's raster position i holds the data's pixel ``permutation[i]`` (None: i).

        A net with weights of its own for every pixel makes them follow; one with random connectivity takes ``member``'s.
        """


class Objective(nn.Module):
    """How a model is fitted: ``objective(model, (x, y), step) -> Loss``. ``step`` counts optimizer steps from 0."""

    def forward(self, model: GenerativeModel, batch: tuple[Tensor, Tensor | None], step: int) -> Loss:
        """What to minimise for ``batch``, and the numbers to record."""
        raise NotImplementedError


def sum_event(t: Tensor) -> Tensor:
    """Sum over all but the batch dimension: [B, ...] -> [B]."""
    return t.flatten(1).sum(1) if t.dim() > 1 else t


def check_batch(x: Tensor, spec: DataSpec) -> None:
    """Raise one clear line when ``x`` is not a batch of ``spec`` (shape and dtype only; costs no synchronisation)."""
    if tuple(x.shape[1:]) != spec.shape:
        raise ValueError(f"this model is built for {spec.shape} images; got a batch of shape {tuple(x.shape)}")
    if (spec.levels is None) != torch.is_floating_point(x):
        wanted = "float" if spec.levels is None else "integer"
        raise ValueError(f"this model scores {wanted} data; got dtype {x.dtype}. Data modules never scale and never add noise")
