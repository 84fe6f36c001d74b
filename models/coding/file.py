"""The file of coded images: one header, then the coder's bits."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from models.build import ConfigError

_MAGIC = b"LPX\x01"
_HEADER = struct.Struct("<8sBBBHIIHHH8s")
_CHECKSUM = 8
HEADER_BYTES = len(_MAGIC) + _CHECKSUM + _HEADER.size
_WEIGHTS, _CHECKPOINTS, _DEVICES = ("raw", "ema"), ("last", "best"), ("cpu", "cuda")


@dataclass(frozen=True)
class CodedFile:
    """Images as a model has coded them, and all that a decoder must know besides the model itself.

    ``model`` and ``images`` are the fingerprints of the model and of what was coded. ``weights``, ``checkpoint``, ``device``,
    ``threads`` and ``batch_size`` are how the model was run; ``shape`` is (N, C, H, W).
    On disk: the format's name and version, a checksum of all that follows it, the fields (little-endian), the ``payload``.
    """

    model: bytes
    weights: str
    checkpoint: str
    device: str
    threads: int
    batch_size: int
    shape: tuple[int, int, int, int]
    images: bytes
    payload: bytes

    def to_bytes(self) -> bytes:
        labels = _WEIGHTS.index(self.weights), _CHECKPOINTS.index(self.checkpoint), _DEVICES.index(self.device)
        header = _HEADER.pack(self.model, *labels, self.threads, self.batch_size, *self.shape, self.images)
        return _MAGIC + _digest(header + self.payload) + header + self.payload

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> CodedFile:
        """Raises ConfigError with one line about ``name`` for a file of another kind and for a damaged one."""
        if not content.startswith(_MAGIC):
            raise ConfigError(f"{name} is no file of coded images: it does not begin as one of format {_MAGIC[-1]}")
        body = content[len(_MAGIC) + _CHECKSUM :]
        if len(content) < HEADER_BYTES or _digest(body) != content[len(_MAGIC) : len(_MAGIC) + _CHECKSUM]:
            raise ConfigError(f"{name} is damaged: its checksum does not hold; encode the images again")
        model, weights, checkpoint, device, threads, batch_size, *shape, images = _HEADER.unpack(body[: _HEADER.size])
        return cls(
            model=model, weights=_WEIGHTS[weights], checkpoint=_CHECKPOINTS[checkpoint], device=_DEVICES[device],
            threads=threads, batch_size=batch_size, shape=tuple(shape), images=images, payload=body[_HEADER.size :],
        )  # fmt: skip


def model_fingerprint(model: torch.nn.Module, node: dict) -> bytes:
    """8 bytes that change with the model's config ``node`` and with any bit of its weights."""
    state = model.state_dict()
    return _digest(json.dumps(node, sort_keys=True).encode(), *(part for item in state.items() for part in _named_bytes(*item)))


def images_fingerprint(x: Tensor, y: Tensor | None) -> bytes:
    """8 bytes that change with any value of images ``x`` and labels ``y``."""
    return _digest(_tensor_bytes(x), b"" if y is None else _tensor_bytes(y))


def _named_bytes(name: str, tensor: Tensor) -> tuple[bytes, bytes]:
    return f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), _tensor_bytes(tensor)


def _tensor_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()[:_CHECKSUM]
