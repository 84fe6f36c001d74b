"""``results.json``: the records of a run, merged atomically, and what made them."""

from __future__ import annotations

import json
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from models.build import ConfigError
from models.checkpoints import write_atomically

SAME = ("metric", "split", "weights", "evaluator", "settings")
"""Two records that agree in these answer the same question: the newer replaces the older."""


@cache
def provenance() -> dict:
    """The code (git commit, and whether it was changed since; null outside a checkout) and the versions that made a number."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    inside = git("rev-parse", "--show-prefix") == ""  # the repository is this project's, not one around it
    changes = git("status", "--porcelain", "--untracked-files=no") if inside else None
    return {
        "code": {"sha": git("rev-parse", "HEAD") if inside else None, "dirty": None if changes is None else bool(changes)},
        "versions": {"python": platform.python_version(), "torch": version("torch"), "lightning": version("pytorch-lightning")},
    }


def read_results(folder: Path) -> list[dict]:
    """The records of a run folder; none if nothing was evaluated yet."""
    path = folder / "results.json"
    if not path.exists():
        return []
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON ({error}): move it away and evaluate again") from error


def write_results(folder: Path, records: list[dict]) -> None:
    """Merge ``records`` into results.json: those that answer the same question are replaced in place."""
    merged = {_question(item): item for item in read_results(folder)}
    merged |= {_question(item): item for item in records}
    write_atomically(folder / "results.json", (json.dumps(list(merged.values()), indent=1) + "\n").encode())


def _question(item: dict) -> str:
    return json.dumps([item.get(name) for name in SAME], sort_keys=True)
