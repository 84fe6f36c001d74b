"""What benchmarks share: a config as the command line composes it, data of any shape without files, clocks and tables."""

from __future__ import annotations

import json
import platform
import statistics
import time
from pathlib import Path

import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import open_dict

from datamodules.base import DataModule, Split
from models.compose import finalize
from models.contracts import DataSpec

ROOT = Path(__file__).resolve().parent.parent


def compose(*overrides: str) -> dict:
    """The plain config of ``python train.py OVERRIDES``."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = hydra_compose("train", list(overrides), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with open_dict(config):
        del config["hydra"]
    return finalize(config, choices, list(overrides), ["python", "train.py", *overrides])


class Synthetic(DataModule):
    """``examples`` uniform random images (or normal numbers, for continuous data) and labels of ``spec``: every split the same."""

    def __init__(self, spec: DataSpec, batch_size: int, examples: int):
        super().__init__(spec, "synthetic", ".", 0, batch_size, batch_size, None)
        random = torch.Generator().manual_seed(0)
        if spec.levels is None:
            x = torch.randn(examples, *spec.shape, generator=random)
        else:
            x = torch.randint(0, spec.levels, (examples, *spec.shape), generator=random, dtype=torch.uint8)
        self._drawn = Split(x, None if spec.classes is None else torch.randint(0, spec.classes, (examples,), generator=random))

    def load(self, split: str) -> Split:
        return self._drawn


def environment() -> dict[str, str | int]:
    """Hardware, threads and versions."""
    import pytorch_lightning

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": pytorch_lightning.__version__,
    }


class Stopwatch:
    """Seconds of work on ``device``: the process's CPU time where one CPU thread does it, so that other load does not count.

    With more threads, which wait for one another, and on a GPU it is the time on the wall.
    """

    def __init__(self, device: torch.device):
        self.device = device
        cpu = device.type == "cpu" and torch.get_num_threads() == 1
        self.clock, self.name = (time.process_time, "CPU time") if cpu else (time.perf_counter, "wall time")

    def __call__(self, work) -> float:
        self._finish()
        start = self.clock()
        work()
        self._finish()
        return self.clock() - start

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def row(case: str, quantity: str, values: list[float], target: float | None, at_least: bool = False) -> dict:
    """Median and quartiles over the rounds, held to a target: an upper bound, or a lower one (``at_least``)."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    met = None if target is None else median >= target if at_least else median <= target
    quartiles = {"median": median, "quartiles": [low, high]}
    return {"case": case, "quantity": quantity, **quartiles, "target": target, "at_least": at_least, "met": met}


def format_rows(rows: list[dict]) -> str:
    """The aligned table."""
    lines = [("case", "quantity", "median", "quartiles", "target", "")]
    for entry in rows:
        low, high = entry["quartiles"]
        target = "" if entry["target"] is None else f"{'>=' if entry['at_least'] else '<='} {entry['target']:.2f}"
        verdict = {None: "", True: "met", False: "NOT MET"}[entry["met"]]
        lines.append((entry["case"], entry["quantity"], f"{entry['median']:.3f}", f"{low:.3f} to {high:.3f}", target, verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def report(result: dict, path: Path | None) -> None:
    """Print a result's table and machine; keep all of it in ``path`` unless that is None."""
    print(format_rows(result["rows"]))
    print(", ".join(f"{name} {value}" for name, value in result["environment"].items()), flush=True)
    if path is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
