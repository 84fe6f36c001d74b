"""Checkpoints that survive a kill, a full disk and a flipped bit.

A file is written beside its target, synced and renamed; its SHA-256 stands next to it; the one before it is kept. Loading
takes the newest whose checksum holds and says so when it had to fall back. Everything loads with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path

import torch

from models.build import ConfigError

FORMAT = 1
_STEP = re.compile(r"step_(\d+)\.ckpt")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` so that a reader, or a kill at any moment, sees the old file or the new one."""
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def save(path: Path, state: dict) -> None:
    """Write ``state`` (plain data and tensors) and its checksum; on any failure the files that were there stay as they were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        digest = _digest(part)
        if path.exists():  # a second name for the old pair would be needed to replace two files at once: drop the old first
            path.unlink()
        write_atomically(_sidecar(path), digest.encode())
        os.replace(part, path)
        _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> dict:
    """The state in ``path``. Raises ConfigError with one line if it is damaged, foreign, or of another format."""
    sidecar = _sidecar(path)
    if not path.exists():
        raise ConfigError(f"there is no checkpoint {path}")
    if not sidecar.exists():
        raise ConfigError(f"{path} has no checksum beside it ({sidecar.name}): it was not written by logpx, or not to its end")
    if _digest(path) != sidecar.read_text().strip():
        raise ConfigError(f"{path} is damaged: its SHA-256 differs from {sidecar.name}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"{path} is not a logpx checkpoint: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ConfigError(f"{path} is not a logpx checkpoint of format {FORMAT}: train the run again or use the version that wrote it")
    return state


def steps(folder: Path) -> list[Path]:
    """The run's step checkpoints, newest first."""
    found = [(int(m[1]), p) for p in folder.glob("step_*.ckpt") if (m := _STEP.fullmatch(p.name))]
    return [p for _, p in sorted(found, reverse=True)]


def drop_old(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` step checkpoints."""
    for old in steps(folder)[keep:]:
        old.unlink()
        _sidecar(old).unlink(missing_ok=True)


def load_newest(folder: Path) -> dict | None:
    """The newest step checkpoint that is whole; None if there is none at all.

    Raises ConfigError if there are checkpoints and every one is damaged.
    """
    candidates = steps(folder)
    for path in candidates:
        try:
            return load(path)
        except ConfigError as error:
            warnings.warn(f"{error}; trying the checkpoint before it", stacklevel=2)
    if candidates:
        raise ConfigError(f"every checkpoint in {folder} is damaged: move the folder away to train the run again")
    return None
