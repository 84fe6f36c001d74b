"""What the parts of a chain make of their parameters alone, made for all like parts at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from models.contracts import Bijection
from models.nn.data_init import DataInitialized
from models.nn.kept import Kept

Folded = tuple[Tensor, ...]
"""A part's kernels and coefficients, ready to meet an input."""


class Foldable(nn.Module):
    """A module whose calls take what ``fold`` made of its parameters as their last argument, ``folded``; without it they fold.

    Parts of equal ``likeness()`` fold together: their parameters are stacked, and K parts cost as many operations as one.
    """

    def likeness(self) -> Hashable | None:
        """What parts must share to be stacked; None: there is nothing to fold."""
        raise NotImplementedError

    @staticmethod
    def fold(parts: Sequence) -> list[Folded]:
        """What the forward of each of ``parts``, which are alike, needs."""
        raise NotImplementedError

    @staticmethod
    def fold_inverse(parts: Sequence, folded: list[Folded]) -> list[Folded]:
        """What their inverse needs, of what ``fold`` made: here the same."""
        return folded


class Folding(nn.Module):
    """A chain of bijections, the foldable ones of which are grouped by likeness. The parts are their owner's: it registers none."""

    def __init__(self, parts: Sequence[Bijection]):
        super().__init__()
        self.parts = parts
        self._forward, self._inverse = Kept(), Kept()
        self.initialized = [module for part in parts for module in part.modules() if isinstance(module, DataInitialized)]
        groups: dict[Hashable, list[int]] = {}
        for place, part in enumerate(parts):
            if isinstance(part, Foldable) and part.likeness() is not None:
                groups.setdefault(part.likeness(), []).append(place)
        self.groups = list(groups.values())

    def fold(self) -> list[tuple[Folded, ...]]:
        """What each part's forward takes last: () where there is nothing, and while a first batch still sets parameters."""
        if any(module.initializing for module in self.initialized):
            return [()] * len(self.parts)
        return self._forward(self._tensors, self._fold)

    def fold_inverse(self) -> list[tuple[Folded, ...]]:
        """What each part's inverse takes last."""
        return self._inverse(self._tensors, lambda: self.invert(self.fold()))

    def _tensors(self) -> list[Tensor]:
        parts = [self.parts[place] for group in self.groups for place in group]
        return [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]

    def _fold(self) -> list[tuple[Folded, ...]]:
        folded: list[tuple[Folded, ...]] = [()] * len(self.parts)
        for group in self.groups:
            parts = [self.parts[place] for place in group]
            for place, made in zip(group, parts[0].fold(parts), strict=True):
                folded[place] = (made,)
        return folded

    def invert(self, folded: Sequence[tuple[Folded, ...]]) -> list[tuple[Folded, ...]]:
        """What each part's inverse takes last, of what ``fold`` made."""
        inverse = list(folded)
        for group in self.groups:
            if folded[group[0]]:
                parts = [self.parts[place] for place in group]
                for place, made in zip(group, parts[0].fold_inverse(parts, [folded[place][0] for place in group]), strict=True):
                    inverse[place] = (made,)
        return inverse


def unstack(*stacked: Tensor) -> list[Folded]:
    """[K, ...] each -> K tuples."""
    return list(zip(*(tensor.unbind() for tensor in stacked)))
