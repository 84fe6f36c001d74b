"""Cached sampling against one full pass of the net a position, in one run.

``python -m benchmarks.sampling [--models pixelcnnpp,gated_pixelcnn,image_transformer] [--rounds 5] [--write]``; no data files
are needed, the weights are random ones.

A round draws one whole batch by ``model.sample``, which takes a cached step of the net a position, and does by itself what
sampling without a cache does at a position: a full pass, and a draw from the head there. That is done at a few positions only,
spread evenly over the rounds, and their mean is multiplied by the number of positions: a pass costs the same at every one.
A round also times one forward pass alone: cached / forward pass is the ratio to the ideal, in which all steps together do the
arithmetic of one pass. Ratios are taken within a round, and their medians reported. The clock is CPU time on one CPU thread,
which other load does not stop, and wall time otherwise.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.common import ROOT, Stopwatch, Synthetic, compose, environment, report, row
from models.autoregressive.model import Autoregressive
from models.build import instantiate
from models.nn.data_init import initialize
from models.reopen import device_of
from models.seeding import seed_all


@dataclass(frozen=True)
class Case:
    """What ``train.py`` would be told, and how many times faster cached sampling must be."""

    overrides: tuple[str, ...]
    faster: float


COLOUR = ("data=cifar10", "data.batch_size=16")
CASES = {
    "pixelcnnpp": Case((*COLOUR, "experiment=pixelcnnpp_cifar10_small"), faster=200),
    "gated_pixelcnn": Case((*COLOUR, "model=gated_pixelcnn", "model.net.num_layers=12", "model.net.width=48"), faster=30),
    "image_transformer": Case(
        (*COLOUR, "model=image_transformer", "model.net.width=128", "model.net.num_layers=6", "model.net.num_heads=4"), faster=30
    ),
}
"""3x32x32, batch 16; pixelcnnpp with 2 blocks a scale and direction, 40 filters and 5 mixture components."""


@torch.no_grad()
def uncached_draw(model: Autoregressive, x: torch.Tensor, y: torch.Tensor | None, position: int) -> None:
    """What a position costs where there is no cache: a pass over all of them, and a draw from the head at one."""
    pixel, group = divmod(position, model.net.groups)
    params = model.net(model.reals(x), y).flatten(2)[:, :, pixel].chunk(model.net.groups, 1)[group]
    model.likelihood.sample(params[:, :, None, None])


@torch.no_grad()
def forward_pass(model: Autoregressive, x: torch.Tensor, y: torch.Tensor | None) -> None:
    model.net(model.reals(x), y)


def measure(name: str, overrides: tuple[str, ...], faster: float | None, rounds: int, spread: int) -> tuple[list[dict], str]:
    """Rows of the table, and the clock's name; ``spread`` uncached positions a round."""
    config = compose(*overrides)
    seed_all("benchmark")
    model = instantiate(config["model"])
    batch_size = config["data"]["batch_size"]
    x, y = next(iter(Synthetic(model.spec, batch_size, batch_size).train_batches(0, 1)))
    initialize(model, x, y)
    device = device_of(config)
    model = model.to(device).eval()
    x, y = x.to(device), y.to(device) if model.conditional else None
    positions = model.spec.shape[1] * model.spec.shape[2] * model.net.groups
    if model.net.start(1, None if y is None else y[:1]) is None:
        raise SystemExit(f"model={name} has no cache to compare with")
    forward_pass(model, x, y)  # allocates, tunes
    watch = Stopwatch(device)
    turns = []
    for number in range(rounds):
        visited = [(number + i * rounds) * positions // (rounds * spread) for i in range(spread)]
        uncached = [watch(partial(uncached_draw, model, x, y, position)) for position in visited]
        cached = watch(partial(model.sample, batch_size, y))
        ideal = watch(partial(forward_pass, model, x, y))
        turns.append((cached, statistics.fmean(uncached) * positions, ideal))
    cached, uncached, ideal = zip(*turns, strict=True)
    rows = [
        row(name, "cached, s", cached, None),
        row(name, f"uncached, s: {rounds * spread} of {positions} positions, scaled", uncached, None),
        row(name, "uncached / cached", [u / c for c, u, _ in turns], faster, at_least=True),
        row(name, "cached / forward pass", [c / i for c, _, i in turns], None),
    ]
    return rows, watch.name


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description="How much faster sampling is with a cache.")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="changes to every model, as train.py takes them")
    parser.add_argument("--models", default=",".join(CASES), help="names, separated by commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--spread", type=int, default=2, help="positions a round that are visited without a cache")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="keep the result in results/benchmarks/sampling.json")
    options = parser.parse_args(arguments)
    names = options.models.split(",")
    if unknown := set(names) - set(CASES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if options.rounds < 1 or options.spread < 1:
        parser.error("--rounds and --spread must be at least 1")
    torch.set_num_threads(options.threads)
    rows, about = [], {}
    for name in names:
        target = None if options.overrides else CASES[name].faster  # other sizes have no target
        found, about["clock"] = measure(name, (*CASES[name].overrides, *options.overrides), target, options.rounds, options.spread)
        rows += found
    result = {"options": vars(options), "environment": environment() | about, "rows": rows}
    report(result, ROOT / "results" / "benchmarks" / "sampling.json" if options.write else None)
    return result


if __name__ == "__main__":
    main()
