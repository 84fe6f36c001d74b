"""Normalizing flows over images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from models.contracts import Bijection, Conditional, DataSpec, GenerativeModel, Kind, Score, Transform, check_batch
from models.nn.precision import in_float64
from models.transforms.dequantize import Dequantization
from models.transforms.surjection import Surjection


class Flow(GenerativeModel):
    """log p(v) = log p_base(z) + sum_i contribution_i over reals v, and P(x) = E_v|x [p(v) / q(v | x)] over integers x.

    ``dequantization`` maps integers to v, ``preprocess`` (or None) moves v in [0, 1] to the flow's range: continuous data
    (``levels: null``) are scored as they are, without either. ``architecture(shape of v)`` makes the transforms and says what
    shape is left for ``base(shape)``; if ``conditional``, for ``base(shape, classes=...)``, which then depends on the
    labels. With dequantization the score is a WEIGHT: exp(nats) is an unbiased estimate of P(x), its mean a lower bound.
    Mass that p puts outside the data's cube (see ``Dequantization.on_data``) is lost, so the P(x) sum to at most 1.

    Latents are a list, one entry for each Surjection in the order of encoding and the top last. Those of splits and of the top
    are the standardised residuals of their distributions: under the model, independent draws of the standard normal or
    logistic; for those of other surjections see there. Labels y [B] are needed if ``conditional`` (ValueError) and ignored
    otherwise.
    """

    def __init__(
        self,
        spec: DataSpec,
        dequantization: Dequantization | None,
        preprocess: Bijection | None,
        architecture: Callable[[tuple[int, int, int]], tuple[list[Transform], tuple[int, ...]]],
        base: Callable[..., Conditional],
        conditional: bool,
    ):
        super().__init__()
        if spec.levels is None:
            dequantization = preprocess = None
        elif dequantization is None:
            raise ValueError("a flow is a density over reals and these data are integers: choose dequantization=uniform")
        if conditional and spec.classes is None:
            raise ValueError("conditional=true needs labels, and these data have none")
        if conditional and "classes" not in signature(base).parameters:
            raise ValueError("conditional=true needs a base with labels: base._target_=models.distributions.bases.LearnedNormal")
        self.spec, self.conditional = spec, conditional
        self.dequantization = dequantization
        if dequantization is not None and not dequantization.unit_interval:
            preprocess = None
        transforms, shape = architecture(spec.shape if dequantization is None else dequantization.shape(spec.shape))
        self.transforms = nn.ModuleList([] if preprocess is None else [preprocess])
        self.transforms.extend(transforms)
        self.base = base(shape, classes=spec.classes) if conditional else base(shape)

    def score(self, x: Tensor, y: Tensor | None = None) -> Score:
        check_batch(x, self.spec)
        if self.dequantization is None:
            return self.score_continuous(x, y)
        v, contribution = self.dequantization(x)
        score = self.score_continuous(v, y)
        terms = {self.dequantization.term: contribution, **score.terms}
        return Score(contribution + score.nats, self.dequantization.kind | score.kind, terms)

    def score_continuous(self, v: Tensor, y: Tensor | None = None) -> Score:
        """log p(v) of reals v [B, C, H, W], which for integer data are already dequantized to [0, 1]."""
        context, kind, terms, count = self._context(y), Kind.EXACT, {}, Counter()
        for transform in self.transforms:
            v, contribution = transform(v, context)
            terms[f"{transform.term}/{count[transform.term]}"] = contribution
            count[transform.term] += 1
            kind |= transform.kind
        terms["base"] = self.base(context).log_prob(v)
        return Score(sum(terms.values()), kind, terms)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """``n`` draws; ``temperature`` scales the standard deviation of the base and of what surjections lost."""
        return self._integers(self.sample_continuous(n, y, temperature))

    def sample_continuous(self, n: int, y: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """``n`` reparameterised draws v [n, C, H, W]."""
        z = self.base(self._context(y)).rsample(n, temperature)
        return self._invert(z, [None] * self.num_residuals, y, temperature)

    @torch.no_grad()
    def encode(self, x: Tensor, y: Tensor | None = None, precise: bool = False) -> list[Tensor]:
        """The latents of x, with each integer at the midpoint of its bin: ``decode`` gives exactly x back.

        ``precise``: found in float64 from the weights as they are, nets included, and rounded once to the model's dtype. An
        inverse multiplies what was rounded on the way by as much as forward contracts. It takes some 20 times as long on a CPU.
        """
        check_batch(x, self.spec)
        return self._run(precise, self._encode, x, y)

    def _encode(self, x: Tensor, y: Tensor | None) -> list[Tensor]:
        v, context, latents = x if self.dequantization is None else self.dequantization.midpoint(x), self._context(y), []
        for transform in self.transforms:
            if isinstance(transform, Surjection):
                v, residual = transform.encode(v)
                latents.append(residual)
            else:
                v, _ = transform(v, context)
        return [*latents, self.base(context).standardize(v)]

    @torch.no_grad()
    def decode(
        self, latents: list[Tensor | None], y: Tensor | None = None, temperature: float = 1.0, precise: bool = False
    ) -> Tensor:
        """x from its latents. An entry that is None (but not the top) is drawn at ``temperature``."""
        return self._integers(self.decode_continuous(latents, y, temperature, precise))

    def decode_continuous(
        self, latents: list[Tensor | None], y: Tensor | None = None, temperature: float = 1.0, precise: bool = False
    ) -> Tensor:
        """The reals v [B, C, H, W] that ``decode`` rounds; ``precise`` as in ``encode``."""
        if len(latents) != self.num_residuals + 1:
            raise ValueError(f"this flow has {self.num_residuals + 1} latents; got {len(latents)}")
        return self._run(precise, self._decode, latents, y, temperature)

    def _decode(self, latents: list[Tensor | None], y: Tensor | None, temperature: float) -> Tensor:
        *residuals, top = latents
        return self._invert(self.base(self._context(y)).place(top), residuals, y, temperature)

    def _run(self, precise: bool, method: Callable[..., Any], *arguments: Any) -> Any:
        return in_float64(self, method, *arguments) if precise else method(*arguments)

    @property
    def num_residuals(self) -> int:
        return sum(isinstance(transform, Surjection) for transform in self.transforms)

    def _invert(self, z: Tensor, residuals: list[Tensor | None], y: Tensor | None, temperature: float) -> Tensor:
        context, waiting = self._context(y), list(residuals)
        for transform in reversed(self.transforms):
            if isinstance(transform, Surjection):
                z = transform.decode(z, waiting.pop(), temperature)
            else:
                z = transform.inverse(z, context)
        return z

    def _integers(self, v: Tensor) -> Tensor:
        return v if self.dequantization is None else self.dequantization.inverse(v)

    def _context(self, y: Tensor | None) -> Tensor | None:
        if not self.conditional:
            return None
        if y is None:
            raise ValueError("this flow is class-conditional: give it labels y")
        return y


def flow_over_data(model: nn.Module) -> Flow | None:
    """The flow that ``model`` is or has, or None."""
    return next((module for module in model.modules() if isinstance(module, Flow)), None)
