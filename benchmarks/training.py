"""One training step of ours against other implementations: time and peak memory, and for flows the time of a draw.

``python -m benchmarks.training model=pixelcnnpp [OVERRIDES] [--rounds 10] [--threads 1] [--eager] [--write]``; no data files
are needed. Overrides are those of ``train.py``, on top of the sizes in ``benchmarks/rivals/pixelcnnpp.py``, which also holds
the other implementations: a plain published-style one of the same arithmetic and parameters, and libraries' models of the same
sizes. Before anything is timed all but the libraries' must give the same loss, to 1e-4 nats/dim, and the same gradient norm.

A step is forward, backward and the optimizer. Samples are drawn one batch after another in evaluation mode: first in a process
that has done nothing else, as ``evaluate.py`` draws, and again after the steps ("later"), which leave the C library's allocator
with memory that it would otherwise take from the system, and give back, many times a draw.

Contestants take turns in one process; every ratio is taken within a round, and the median over the rounds is reported. On one
CPU thread the clock is CPU time, which other load does not stop. Peak memory is the most bytes of live tensors during a step,
parameters and the optimizer's state among them: on a CPU as torch's profiler sees its allocator (scratch memory of the
convolution library is not its), on a GPU as its allocator counts them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.common import ROOT, Stopwatch, Synthetic, compose, environment, report, row
from models.build import instantiate
from models.nn.data_init import initialize
from models.reopen import device_of
from models.seeding import seed_all
from models.training import compile_scoring

AGREEMENT = 1e-4
"""How far the losses may lie apart, in nats/dim, and the gradient norms, as a part of one."""


class Ours(nn.Module):
    """A model of logpx as a map from a batch to nats [B]."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.model(x, y).nats

    def sample(self, n: int) -> Tensor:
        return self.model.sample(n)


class Contestant:
    """A map from a batch to nats [B] with its own parameters and optimizer: one training step a call."""

    def __init__(self, nats: nn.Module, config: dict, batch: tuple[Tensor, Tensor | None], compiled: bool):
        self.nats, self.batch = nats.train(), batch
        self.dims = batch[0][0].numel()
        self.optimizer = instantiate(config["system"]["optimizer"])(nats.parameters())
        if compiled:
            compile_scoring(nats, batch[0].device)

    def loss(self) -> Tensor:
        return -self.nats(*self.batch).mean() / self.dims

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def evaluate(self) -> tuple[float, float]:
        """Loss in nats/dim and gradient norm, without dropout and with the same noise of dequantization for all."""
        torch.manual_seed(0)
        self.nats.eval()
        loss = self.loss()
        gradients = torch.autograd.grad(loss, list(self.nats.parameters()))
        self.nats.train()
        return loss.item(), float(torch.nn.utils.get_total_norm(gradients))

    @torch.no_grad()
    def draw(self) -> None:
        """As many samples as the batch has examples."""
        self.nats.sample(len(self.batch[0]))

    def lasting_bytes(self) -> int:
        """What parameters and optimizer hold between steps."""
        state = [t for values in self.optimizer.state.values() for t in values.values() if torch.is_tensor(t)]
        return sum(t.numel() * t.element_size() for t in [*self.nats.parameters(), *state])

    def peak_bytes(self) -> int:
        """Most bytes of live tensors in a step."""
        self.optimizer.zero_grad()
        if self.batch[0].is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.step()
            return self.lasting_bytes() + torch.cuda.max_memory_allocated() - before
        return self.lasting_bytes() + peak_of_cpu_allocations(self.step)


def peak_of_cpu_allocations(work: Callable[[], None]) -> int:
    """How far the bytes that torch's CPU allocator has handed out rise during ``work``, from the profiler's own record."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    total = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        total += change
        peak = max(peak, total)
    return peak


def contestants(rival, overrides: list[str], eager_only: bool) -> tuple[dict[str, Contestant], torch.device]:
    """All of them by name: rivals, ours and its variants, and published and ours compiled; same parameters, same batch."""
    config = compose(*rival.OVERRIDES, *overrides)
    device = device_of(config)

    def build(variant: tuple[str, ...] = ()):
        seed_all("benchmark")
        config = compose(*rival.OVERRIDES, *overrides, *variant)
        model = instantiate(config["model"])
        data = Synthetic(model.spec, config["data"]["batch_size"], config["data"]["batch_size"])
        x, y = next(iter(data.train_batches(0, 1)))
        initialize(model, x, y)
        model.to(device, memory_format=torch.channels_last if config["trainer"]["channels_last"] else torch.preserve_format)
        return model, config, (x.to(device), None if y is None else y.to(device))

    made = {}
    for compiled in (False,) if eager_only else (False, True):
        suffix = " compiled" if compiled else ""
        for name, form in rival.FORMS.items():
            if name == "published" or not compiled:
                model, config, batch = build()
                made[name + suffix] = Contestant(form(model).to(device), config, batch, compiled)
        model, config, batch = build()
        made["ours" + suffix] = Contestant(Ours(model), config, batch, compiled)
    for name, variant in rival.VARIANTS.items():
        model, config, batch = build(variant)
        made["ours " + name] = Contestant(Ours(model), config, batch, compiled=False)
    return made, device


def check_agreement(made: dict[str, Contestant]) -> float:
    """The largest difference of a loss from the first one's; SystemExit when a loss or a gradient norm is another."""
    loss, norm = next(iter(made.values())).evaluate()
    furthest = 0.0
    for name, contestant in made.items():
        other_loss, other_norm = contestant.evaluate()
        furthest = max(furthest, abs(other_loss - loss))
        if abs(other_loss - loss) > AGREEMENT or abs(other_norm / norm - 1) > AGREEMENT:
            raise SystemExit(
                f"{name} does other arithmetic: loss {other_loss:.6f} for {loss:.6f} nats/dim, gradient norm {other_norm:.6g} for {norm:.6g}"
            )
    return furthest


def measure(name: str, rival, overrides: list[str], rounds: int, eager_only: bool) -> tuple[list[dict], dict]:
    """Rows of the table, and what else is worth keeping."""
    made, device = contestants(rival, overrides, eager_only)
    watch = Stopwatch(device)

    def turns_at(what: str, names: list[str]) -> list[dict[str, float]]:
        """Seconds that each takes for ``what`` in every round, after two calls that allocate, tune and compile."""
        work = {key: getattr(made[key], what) for key in names}
        for key in 2 * names:
            work[key]()
        starts = [number % len(names) for number in range(rounds)]
        return [{key: watch(work[key]) for key in names[first:] + names[:first]} for first in starts]

    def draws() -> list[dict[str, float]]:
        for contestant in made.values():
            contestant.nats.eval()
        names = [key for key in made if any(key in pair for pair in rival.SAMPLING)]
        turns = turns_at("draw", names) if names else []
        for contestant in made.values():
            contestant.nats.train()
        return turns

    first_draws = draws()
    furthest = check_agreement({name: one for name, one in made.items() if name == "published" or name not in rival.FORMS})
    steps, last_draws = turns_at("step", list(made)), draws()
    peaks = {key: contestant.peak_bytes() for key, contestant in made.items()}
    rows = []
    for kind, times in (("step", steps), ("draw", first_draws), ("later draw", last_draws)):
        rows += [row(name, f"{key} {kind}, ms", [1e3 * turn[key] for turn in times], None) for key in made if times and key in times[0]]
    rows += [row(name, f"{key} peak, MB", [peaks[key] / 1e6], None) for key in made]
    for what, pairs, times in (
        ("images/s", rival.SPEED, steps),
        ("samples/s", rival.SAMPLING, first_draws),
        ("later samples/s", rival.SAMPLING, last_draws),
    ):
        for ours, published, target in pairs:
            if ours in made and published in made:
                ratios = [turn[published] / turn[ours] for turn in times]
                rows.append(row(name, f"{what}: {ours} / {published}", ratios, target, at_least=True))
    for ours, published, target in rival.MEMORY:
        if ours in made and published in made:
            rows.append(row(name, f"peak memory: {ours} / {published}", [peaks[ours] / peaks[published]], target))
    return rows, {"clock": watch.name, "loss_difference": furthest}


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description="Ratios of steps and memory, in one run.")
    parser.add_argument("overrides", nargs="+", metavar="OVERRIDE", help="model=NAME and any others, as train.py takes them")
    parser.add_argument("--rounds", type=int, default=10, help="turns that count, of every contestant")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eager", action="store_true", help="leave out the compiled forms, which take minutes to compile")
    parser.add_argument("--write", action="store_true", help="keep the result in results/benchmarks/training_MODEL[_N_threads].json")
    options = parser.parse_args(arguments)
    names = [text.removeprefix("model=") for text in options.overrides if text.startswith("model=")]
    if len(names) != 1 or options.rounds < 1:
        parser.error("give model=NAME once, and --rounds of at least 1")
    module = f"benchmarks.rivals.{names[0]}"
    if importlib.util.find_spec(module) is None:
        parser.error(f"there is nothing to hold model={names[0]} against: write {module.replace('.', '/')}.py")
    torch.set_num_threads(options.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows, about = measure(names[0], importlib.import_module(module), options.overrides, options.rounds, options.eager)
    result = {"options": vars(options), "environment": environment() | about, "rows": rows}
    file = f"training_{names[0]}.json" if options.threads == 1 else f"training_{names[0]}_{options.threads}_threads.json"
    report(result, ROOT / "results" / "benchmarks" / file if options.write else None)
    return result


if __name__ == "__main__":
    main()
