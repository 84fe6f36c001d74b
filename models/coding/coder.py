"""Integers to bits and back, under the probability tables of a model.

Both directions walk the model with one function, ``code_images``, so that they ask for the same tables in the same order. A
table becomes integer frequencies out of 2^24, every value at least 1, and a range coder writes log2(2^24 / frequency) bits a
value: the rounding costs less than 2 K / 2^24 nats a value of K levels, the end of the stream at most 8 bytes. The range coder
and the rounding are those of the library constriction (Bamler 2022, arXiv:2201.01741), which is the extra ``codec``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import log
from typing import Protocol

import numpy
import torch
from torch import Tensor

from models.build import ConfigError
from models.contracts import DataSpec

try:
    from constriction import stream
except ImportError as error:
    raise ImportError('evaluators=compress needs the package constriction: pip install -e ".[codec]"') from error

Code = Callable[[Tensor, Tensor], None]
"""``code(values [m], log_pmf [m, K])``: writes the values to the stream (Encoder), or reads them from it (Decoder)."""


class Codable(Protocol):
    """What a model offers to be coded: a walk over its values. ``conditional``: given labels, which are then coded first."""

    spec: DataSpec
    conditional: bool

    def code_walk(self, x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all that is needed to know ``x`` [n, C, H, W], part after part, as (values, log_pmf).

        ``values`` [m] are integers from 0, a view: of what ``x`` holds when it is encoded, and to be overwritten when it is
        decoded, where ``x`` holds anything. ``log_pmf`` [m, K] are nats, a function of ``y`` and of parts already visited
        and of nothing else: the same to the bit in both directions. At the end of the walk ``x`` is what the values say.
        """
        ...


_TABLES = stream.model.Categorical(perfect=False)


def _probabilities(log_pmf: Tensor) -> numpy.ndarray:
    return log_pmf.double().exp().cpu().numpy()


class Encoder:
    """Collects values in ``content``."""

    def __init__(self):
        self._stream = stream.queue.RangeEncoder()

    def __call__(self, values: Tensor, log_pmf: Tensor) -> None:
        self._stream.encode(values.to("cpu", torch.int32).contiguous().numpy(), _TABLES, _probabilities(log_pmf))

    @property
    def content(self) -> bytes:
        return self._stream.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Reads back what an Encoder collected. Raises ConfigError where these bits cannot come from these tables."""

    def __init__(self, content: bytes):
        self._stream = stream.queue.RangeDecoder(numpy.frombuffer(content, "<u4").astype(numpy.uint32))

    def __call__(self, values: Tensor, log_pmf: Tensor) -> None:
        try:
            decoded = self._stream.decode(_TABLES, _probabilities(log_pmf))
        except AssertionError as error:
            raise ConfigError("these bits were written under other probabilities") from error
        values.copy_(torch.from_numpy(decoded))


@torch.no_grad()
def code_images(model: Codable, code: Code, x: Tensor, y: Tensor | None, batch_size: int) -> None:
    """Pass images ``x`` [N, C, H, W] (and labels ``y`` [N], uniform, of a conditional model) through ``code``, batch by batch."""
    for start in range(0, len(x), batch_size):
        images, labels = x[start : start + batch_size], None
        if model.conditional:
            labels = y[start : start + batch_size]
            code(labels, torch.full((len(labels), model.spec.classes), -log(model.spec.classes)))
        for values, log_pmf in model.code_walk(images, labels):
            code(values, log_pmf)


@contextmanager
def repeatable(threads: int):
    """A block whose sums are added up in the same order in every process on one type of machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_num_threads(before)
