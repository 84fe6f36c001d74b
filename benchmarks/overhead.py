"""What the runner costs: the same training step under logpx, under Lightning's leanest loop and in a bare PyTorch loop.

``python -m benchmarks.overhead [--cases vae] [--rounds 30] [--write]``; no data files are needed.

All three run the same objective on the same model, batches and optimizer. ``logpx`` is ``models.training.train`` as
``train.py`` calls it, with data order, noise keys, gradient norm, weight average, records, tracker and progress bar; the
other two get batches in memory and do nothing but train. Validation, samples and checkpoints are work that was asked
for, not a step: none falls into the timed window.

The loops take many short turns, and a ratio is the median over the rounds, so that other load on the machine falls on all.
A clock in the iterator that hands out the batches reads the time of a step, alike for all three and without a hook: from one
request for a batch to a later one lie as many steps as requests, and what a loop needs to start and to end lies outside.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import io
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch

from benchmarks.common import ROOT, Synthetic, compose, environment, report, row
from models.build import instantiate
from models.contracts import DataSpec
from models.nn.data_init import initialize
from models.reopen import device_of
from models.seeding import seed_all
from models.training import train

LOOPS = ("bare", "lightning", "logpx")
LIGHTNINGS = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Importing Lightning sets this in the environment; without a GPU it slows every optimizer step, so not for the bare loop."""

LONG_STEP = 0.05
"""Seconds of a bare step from which on the runner must all but vanish."""


@dataclass(frozen=True)
class Case:
    """One training: what ``train.py`` would be told, and how many steps are timed in a round."""

    overrides: tuple[str, ...]
    examples: int
    steps: int
    to_bare: float | None
    """Target of logpx / bare; None: 1.05 if the bare step is long enough, else no target."""


CASES = {
    "vae": Case(
        ("model=vae", "data=mnist_static", "likelihood=bernoulli", "model.latent_dim=50"), examples=50_000, steps=100, to_bare=1.5
    ),
    "default": Case((), examples=1293, steps=10, to_bare=None),
    "pixelcnnpp32": Case(("experiment=pixelcnnpp_cifar10_small", "data.batch_size=4"), examples=45_000, steps=6, to_bare=None),
}


class Clock:
    """Hands out ``batches`` and notes when each was asked for and how long it took to come."""

    def __init__(self, batches: Iterable, count: int):
        self.batches, self.count = batches, count
        self.asked: list[float] = []
        self.waited: list[float] = []

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator:
        iterator = iter(self.batches)
        for number in range(self.count):
            if torch.cuda.is_initialized() and number in (self.first, self.count - 1):
                torch.cuda.synchronize()
            start = time.perf_counter()
            batch = next(iterator)
            self.asked.append(start)
            self.waited.append(time.perf_counter() - start)
            yield batch

    @property
    def first(self) -> int:
        """The request that opens the timed window: a tenth of the steps, and at least two, come before it."""
        return max(2, self.count // 10)

    @property
    def seconds(self) -> float:
        """One step."""
        return (self.asked[-1] - self.asked[self.first]) / (self.count - 1 - self.first)

    @property
    def loader_share(self) -> float:
        """The part of a step spent on its batch."""
        return statistics.fmean(self.waited[self.first :]) / self.seconds


class ClockedData(Synthetic):
    """Synthetic data that gives ``steps`` batches and no more, each through a clock."""

    def __init__(self, spec: DataSpec, batch_size: int, examples: int, steps: int):
        super().__init__(spec, batch_size, examples)
        self.steps = steps

    def train_batches(self, start, stop, rank=0, world=1):
        count = min(stop - start, self.steps)
        self.clock = Clock(super().train_batches(start, start + count, rank, world), count)
        return iter(self.clock)


class Lean(pl.LightningModule):
    """As little as Lightning asks for."""

    def __init__(self, model, objective, optimizer):
        super().__init__()
        self.model, self.objective, self.optimizer = model, objective, optimizer

    def training_step(self, batch, batch_idx):
        return self.objective(self.model, batch, batch_idx).value

    def configure_optimizers(self):
        return self.optimizer


class Bench:
    """One case, ready to be run under each loop from the same initial weights."""

    def __init__(self, case: Case, steps: int, tracker: str):
        self.config = compose(*case.overrides, f"tracker={tracker}", "trainer.max_epochs=null", f"trainer.max_steps={10**9}")
        data = self.config["data"]
        self.data = ClockedData(instantiate(data["spec"]), data["batch_size"], case.examples, steps)
        self.batches = list(self.data.train_batches(0, steps))
        seed_all("benchmark")
        self.model = instantiate(self.config["model"])
        initialize(self.model, *self.batches[0])

    def _pieces(self):
        model, system = copy.deepcopy(self.model).to(device_of(self.config)), self.config["system"]
        return model, instantiate(system["objective"]), instantiate(system["optimizer"])(model.parameters())

    def bare(self) -> Clock:
        model, objective, optimizer = self._pieces()
        device = device_of(self.config)
        batches = [(x.to(device), None if y is None else y.to(device)) for x, y in self.batches]
        clock = Clock(batches, len(batches))
        for step, batch in enumerate(clock):
            optimizer.zero_grad()
            objective(model, batch, step).value.backward()
            optimizer.step()
        return clock

    def lightning(self) -> Clock:
        clock = Clock(self.batches, len(self.batches))
        trainer = pl.Trainer(barebones=True, max_epochs=1, accelerator=self.config["trainer"]["accelerator"], devices=1)
        trainer.fit(Lean(*self._pieces()), clock)
        return clock

    def logpx(self) -> Clock:
        with tempfile.TemporaryDirectory() as folder:
            train(Path(folder), self.config, copy.deepcopy(self.model), self.data)
        return self.data.clock

    def take_turn(self, loop: str) -> Clock:
        """Run one loop: with its output out of the way, and nothing left over from the one before."""
        torch.use_deterministic_algorithms(False)
        os.environ[LIGHTNINGS] = "1"
        if loop == "bare":
            del os.environ[LIGHTNINGS]
        gc.collect()
        with contextlib.redirect_stderr(io.StringIO()):
            clock = getattr(self, loop)()
        if len(clock.asked) < len(clock):
            raise KeyboardInterrupt  # the run saves and ends in good order when it is asked to stop
        return clock


def measure(name: str, case: Case, rounds: int, steps: int | None, tracker: str) -> list[dict]:
    """Rows of the table: milliseconds a step of each loop, then what has a target."""
    bench = Bench(case, steps or case.steps, tracker)
    turns = []
    for number in range(rounds + 1):
        order = LOOPS[number % 3 :] + LOOPS[: number % 3]
        turns.append({loop: bench.take_turn(loop) for loop in order})
    turns = turns[1:]  # the first round imports, allocates and tunes
    bare = statistics.median(turn["bare"].seconds for turn in turns)
    to_bare = 1.05 if case.to_bare is None and bare >= LONG_STEP else case.to_bare
    rows = [row(name, f"{loop} step, ms", [1e3 * turn[loop].seconds for turn in turns], None) for loop in LOOPS]
    for other, target in (("bare", to_bare), ("lightning", 1.10)):
        rows.append(row(name, f"logpx / {other}", [turn["logpx"].seconds / turn[other].seconds for turn in turns], target))
    return [*rows, row(name, "loader / logpx step", [turn["logpx"].loader_share for turn in turns], 0.03)]


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description="Ratios of step times, all in one run.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=30, help="rounds over the three loops that count")
    parser.add_argument("--steps", type=int, help="batches in a round, at least 4; default: each case's own")
    parser.add_argument("--tracker", default="tensorboard", help="what logpx sends its numbers to meanwhile")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="keep the result in results/overhead.json")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or (options.steps is not None and options.steps < 4):
        parser.error("--rounds must be at least 1 and --steps at least 4")
    torch.set_num_threads(options.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in options.cases:
            rows += measure(name, CASES[name], options.rounds, options.steps, options.tracker)
    result = {"options": vars(options), "environment": environment(), "rows": rows}
    report(result, ROOT / "results" / "overhead.json" if options.write else None)
    return result


if __name__ == "__main__":
    main()
