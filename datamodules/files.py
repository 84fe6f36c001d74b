"""Reading published files: each is checked, and a missing, truncated or altered one is one line that says what to do."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def locate(root: Path, name: str, origin: str) -> Path:
    """The file ``name`` under ``root``; ``origin`` says where it can be got."""
    if (root / name).exists():
        return root / name
    raise ValueError(
        f"{name} is missing under {root}: set data.root (or the environment variable LOGPX_DATA) to the folder "
        f"that holds it. It comes from {origin}"
    )


def damaged(path: Path, what: str, origin: str) -> ValueError:
    """The error for a file that is there but is not the published one."""
    return ValueError(f"{path} is truncated or altered ({what}): delete it and get it again from {origin}")


def verify(content: bytes, digest: str, path: Path, origin: str) -> bytes:
    """``content`` if its checksum is ``digest`` ("md5:..." or "sha256:...")."""
    algorithm, expected = digest.split(":")
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise damaged(path, f"{len(content):,} bytes with {algorithm} {found}, published {expected}", origin)
    return content


def read(root: Path, name: str, digest: str, origin: str) -> bytes:
    """The content of the file ``name`` under ``root``, verified; where only ``name.xz`` lies there, unpacked in memory."""
    if not is_there(root, name):
        locate(root, name, origin)
    path, packed = root / name, root / f"{name}.xz"
    try:
        content = path.read_bytes() if path.exists() else lzma.decompress(packed.read_bytes())
    except (lzma.LZMAError, EOFError) as error:
        raise damaged(packed, one_line(error), origin) from error
    return verify(content, digest, path if path.exists() else packed, origin)


def is_there(root: Path, name: str) -> bool:
    """Whether ``read`` finds ``name``."""
    return (root / name).exists() or (root / f"{name}.xz").exists()


@contextlib.contextmanager
def parsing(path: Path, origin: str) -> Iterator[None]:
    """Turn whatever a parser raises on a broken file that has no published checksum into the one line."""
    try:
        yield
    except Exception as error:
        raise damaged(path, f"{type(error).__name__}: {one_line(error)}", origin) from error


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Let one process at a time write below ``root`` (the ranks of a run start together); a killed one holds nothing."""
    import fcntl

    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / ".logpx.lock", "w")
    except OSError as error:
        raise ValueError(f"cannot write under {root} ({error}): set data.root (or LOGPX_DATA) to a writable folder") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def download(root: Path, names: list[str], fetch: Callable[[], object]) -> None:
    """Run torchvision's ``fetch`` unless all of ``names`` are under ``root``."""
    if all(is_there(root, name) for name in names):
        return
    with exclusive(root):
        if all(is_there(root, name) for name in names):
            return
        try:
            with contextlib.redirect_stdout(sys.stderr):
                fetch()
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{names[0]} is missing under {root} and could not be downloaded ({one_line(error)}): "
                "set data.root (or LOGPX_DATA) to the folder that holds it"
            ) from error
