"""Shared pieces: compose a config as the command line would, build its parts, run the two programs as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import flag_override

from models.build import instantiate
from models.compose import finalize
from models.seeding import seed_all

ROOT = Path(__file__).parent.parent
MODELS = sorted(p.stem for p in (ROOT / "conf/model").glob("*.yaml"))
EXPERIMENTS = sorted(p.stem for p in (ROOT / "conf/experiment").glob("*.yaml"))


@lru_cache(maxsize=None)
def _compose(overrides: tuple[str, ...]) -> dict:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = hydra_compose("train", list(overrides), return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    with flag_override(config, ["readonly", "struct"], False):
        del config["hydra"]
    return finalize(config, choices, list(overrides), ["python", "train.py", *overrides])


def compose(*overrides: str) -> dict:
    """The plain config of ``python train.py OVERRIDES``."""
    return _compose(tuple(overrides))


def shaped(shape: tuple[int, int, int], levels: int | None, classes: int | None = None) -> list[str]:
    """Overrides that give the digits' slot another shape, for laws that need a space small enough to enumerate."""
    value = lambda v: "null" if v is None else v  # noqa: E731
    return [f"data.spec.shape=[{','.join(map(str, shape))}]", f"data.spec.levels={value(levels)}", f"data.spec.classes={value(classes)}"]


def build_model(config: dict, dtype: torch.dtype = torch.float32):
    """The model of ``config``, its weights drawn under a fixed seed."""
    seed_all("test")
    return instantiate(config["model"]).to(dtype)


def run_program(*arguments: str, cwd: Path, env: dict | None = None, timeout: float = 240) -> subprocess.CompletedProcess:
    """``python train.py ...`` as a user would call it, with its run folders under ``cwd``."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"} | (env or {})
    program, *rest = arguments
    return subprocess.run(
        [sys.executable, str(ROOT / program), *rest], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def data_root() -> Path:
    """The folder of the real data, or a skip that says how to provide it."""
    root = os.environ.get("LOGPX_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs real data: set LOGPX_DATA to a folder with the data sets as torchvision lays them out")
    return Path(root)
