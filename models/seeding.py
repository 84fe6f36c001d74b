"""Random streams that are pure functions of a key, so that a resumed run continues with the same noise."""

import contextlib
import hashlib
import random

import numpy
import torch


def key(*parts: int | str) -> int:
    """A 63-bit seed from integers and strings; near-by keys give unrelated seeds (also in their low 32 bits)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_torch(*parts: int | str) -> None:
    """Seed torch's generators with ``key(*parts)``: the CPU's, and the GPU's once one is in use.

    ``torch.manual_seed`` would also queue a seeding of every device that is not in use, at a cost of milliseconds.
    """
    seed = key(*parts)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def seed_all(*parts: int | str) -> None:
    """Seed Python, NumPy and torch (every device) with ``key(*parts)``."""
    seed = key(*parts)
    random.seed(seed)
    numpy.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded with ``key(*parts)``."""
    return torch.Generator().manual_seed(key(*parts))


@contextlib.contextmanager
def isolated(*parts: int | str):
    """Run a block under ``key(*parts)`` and put torch's random state back afterwards."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        seed_torch(*parts)
        yield
