"""What an evaluator is given and returns, how values of examples become one number on any number of ranks, and who runs it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.contracts import GenerativeModel
from models.evaluators.results import provenance, write_results
from models.seeding import isolated


@dataclass
class Context:
    """A model in eval mode with the weights to be judged already loaded, the data, and where we are.

    ``weights`` is "raw" or "ema" and labels the numbers; ``about`` holds what every record of this run carries ("model", "step").
    """

    model: GenerativeModel
    datamodule: Any
    split: str
    folder: Path
    seed: int
    weights: str
    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"
    progress: bool = False
    about: dict = field(default_factory=dict)

    def batches(self, what: str, split: str | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """This rank's share of the split on the device: (index [b] on the CPU, x, y); over all ranks each example once."""
        split = split or self.split
        batches = self.datamodule.eval_batches(split, self.rank, self.world)
        if self.progress and self.rank == 0:
            from tqdm import tqdm

            total = -(-self.datamodule.num_examples(split) // (self.datamodule.eval_batch_size * self.world))
            batches = tqdm(batches, total=total, desc=f"{what} ({split}, {self.weights})", leave=False, disable=None)
        for index, x, y in batches:
            yield index, x.to(self.device), None if y is None else y.to(self.device)

    def examples(self, num: int):
        """``num`` examples of the split (all, if there are fewer) as a Split on the CPU, evenly spaced: see ``evenly_spaced``."""
        return self.datamodule.split(self.split)[evenly_spaced(self.datamodule.num_examples(self.split), num)]

    def noise(self, what: str, *parts: int | str):
        """A block whose noise is a function of (seed, what, split, parts): numbers repeat, and training's noise is untouched."""
        return isolated("evaluate", self.seed, what, self.split, *map(str, parts))

    def gather(self, item: Any) -> list:
        """``item`` of every rank, in order of rank."""
        if self.world == 1:
            return [item]
        items = [None] * self.world
        torch.distributed.all_gather_object(items, item)
        return items


class Evaluator:
    """Judges a trained model. Public attributes are its settings: plain values, written beside its numbers."""

    about_data = False
    """True for a number that depends on the data alone: it is found once, not for raw and averaged weights."""

    def __call__(self, context: Context) -> list[dict]:
        """Records (see ``record``), the same on every rank. Raises ConfigError where the model does not allow the question."""
        raise NotImplementedError

    def settings(self) -> dict:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class Statistics:
    """Count, sum and sum of squares in float64 of one number an example. A non-finite one is never averaged away."""

    def __init__(self):
        self.count, self.total, self.squares = 0, 0.0, 0.0
        self.bad: list[tuple[int, float]] = []
        """(index, value) of examples whose value is not finite."""

    def add(self, index: Tensor, values: Tensor) -> None:
        """``values`` [b] of the examples ``index`` [b]."""
        values = values.detach().cpu().double()
        finite = values.isfinite()
        self.bad += zip(index[~finite].tolist(), values[~finite].tolist(), strict=True)
        self.count += len(values)
        self.total += float(values[finite].sum())
        self.squares += float(values[finite].square().sum())

    def merged(self, context: Context) -> Statistics:
        """Those of all ranks together."""
        merged = Statistics()
        for part in context.gather(self):
            merged.count += part.count
            merged.total += part.total
            merged.squares += part.squares
            merged.bad += part.bad
        merged.bad.sort(key=lambda item: item[0])
        return merged

    @property
    def mean(self) -> float:
        """-inf as soon as one value is not finite (NaN included): of log-likelihoods, no finite mean would then be honest."""
        return -inf if self.bad else self.total / self.count

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean over examples; None where there is none."""
        if self.bad or self.count < 2:
            return None
        variance = (self.squares - self.total**2 / self.count) / (self.count - 1)
        return sqrt(max(variance, 0.0) / self.count)


def evenly_spaced(count: int, num: int | None) -> Tensor:
    """Indices of ``num`` of ``count`` examples (None or too many: all of them) that leave out no class of a sorted set."""
    num = count if num is None else min(num, count)
    return torch.arange(num) * count // num


def record(metric: str, value: float, stderr: float | None, unit: str, kind: str, count: int, **extra) -> dict:
    """One number as a statement; ``evaluate`` adds what made it. ``extra`` fields that are None are left out."""
    fields = {"metric": metric, "value": value, "stderr": stderr, "unit": unit, "kind": kind, "count": count}
    return fields | {name: value for name, value in extra.items() if value is not None}


def non_finite(statistics: Statistics, shown: int = 10) -> dict | None:
    """What a record says of examples without a finite value: how many, and the first ones' index and value."""
    if not statistics.bad:
        return None
    first = [{"example": index, "nats": str(value)} for index, value in statistics.bad[:shown]]
    return {"count": len(statistics.bad), "first": first}


def evaluate(context: Context, evaluators: dict[str, Evaluator]) -> list[dict]:
    """The complete records of all evaluators, in order; rank 0 merges each one's into results.json as soon as they are there."""
    everything = []
    for name, evaluator in evaluators.items():
        start = time.perf_counter()
        records = evaluator(context)
        common = {
            "split": context.split,
            "data": context.datamodule.name,
            "data_sha256": context.datamodule.checksum(context.split),
            "weights": context.weights,
            "evaluator": name,
            "settings": evaluator.settings(),
            "seed": context.seed,
            "seconds": round(time.perf_counter() - start, 3),
            **context.about,
            **provenance(),
        }
        records = [item | common for item in records]
        if context.rank == 0:
            write_results(context.folder, records)
        everything += records
    return everything
