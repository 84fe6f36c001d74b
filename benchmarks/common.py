"""What benchmarks share: a config as the command line composes it, data of any shape without files, and what the machine is."""

from __future__ import annotations

import platform
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
    """``examples`` uniform random images and labels of ``spec``: every split the same ones."""

    def __init__(self, spec: DataSpec, batch_size: int, examples: int):
        super().__init__(spec, "synthetic", ".", 0, batch_size, batch_size, None)
        random = torch.Generator().manual_seed(0)
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
