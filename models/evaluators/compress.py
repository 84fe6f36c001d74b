"""Images written to a file at the cost that the model states, and read back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from math import log
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy
import torch
from torch import Tensor

from models.build import ConfigError
from models.checkpoints import write_atomically
from models.coding.coder import Encoder, code_images, repeatable
from models.coding.file import HEADER_BYTES, CodedFile, images_fingerprint, model_fingerprint
from models.evaluators.base import Context, Evaluator, Statistics, non_finite, record
from models.folder import read_config
from models.units import bits, bits_per_dim

MAX_OVERHEAD, MAX_HEADER_BYTES = 0.001, 64
"""What a code may cost beyond the model's bits: a fraction of them, and a header."""


class Compress(Evaluator):
    """Codes ``num`` examples of the split, evenly spaced and ``batch_size`` at a time, into compressed/SPLIT_WEIGHTS.lpx.

    A new process, which is given the run folder and that file alone, decodes it; every value is compared. Then

    * ``coded_bpd``: all bytes of the file, header and labels included, as bits per dimension of the images;
    * ``coded_model_bpd``: what the model's score says of the same images (given their labels, where it is conditional);
    * ``coded_overhead_bytes``: how much longer the file is than the model says, labels taken as uniform; ``limit`` is 64
      bytes of header and 0.1 % of the model's bytes. ``percent`` compares the two numbers above as they are.

    Raises ConfigError for a model that has no code, and if one value does not come back.
    """

    def __init__(self, num: int, batch_size: int):
        if min(num, batch_size) < 1:
            raise ValueError(f"compress needs at least one image, and one in a batch; got {num} and {batch_size}")
        self.num, self.batch_size = num, batch_size

    def __call__(self, context: Context) -> list[dict]:
        if not hasattr(context.model, "code_walk") or context.model.spec.levels is None:
            raise ConfigError(
                "this model has no code: only autoregressive models and integer flows, of data with levels, are also coders; "
                "remove the evaluator compress"
            )
        if context.datamodule.num_examples(context.split) == 0:
            raise ConfigError(f"{context.datamodule.name} has no examples in split={context.split}: choose another split")
        return context.gather(None if context.rank else self._records(context))[0]

    def _records(self, context: Context) -> list[dict]:
        model, data = context.model, context.examples(self.num)
        x, y = data.x.contiguous(), data.y if model.conditional else None
        path = context.folder / "compressed" / f"{context.split}_{context.weights}.lpx"

        started = time.perf_counter()
        content = self._encode(context, x, y)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, content)
        encoded = time.perf_counter()
        different = sum(int((a != b).sum()) for a, b in zip((x, y), decode_elsewhere(context.folder, path)) if a is not None)
        if different:
            raise ConfigError(f"{path} is no code: {different} values came back changed")
        decoded = time.perf_counter()

        nats, count, dims = self._score(context, x, y), len(x), model.spec.dims
        coded_bpd, model_bpd = 8 * len(content) / (count * dims), bits_per_dim(nats.mean, dims)
        stderr = None if nats.stderr is None else bits(nats.stderr) / dims
        model_bytes = model_bpd * count * dims / 8
        label_bytes = 0.0 if y is None else count * bits(log(model.spec.classes)) / 8
        overhead, limit = len(content) - model_bytes - label_bytes, MAX_HEADER_BYTES + MAX_OVERHEAD * model_bytes
        about = {"file": path.name, "file_bytes": len(content), "header_bytes": HEADER_BYTES, "label_bytes": label_bytes}
        times = {"encode_seconds": round(encoded - started, 2), "decode_seconds": round(decoded - encoded, 2)}
        check = {"percent": 100 * (coded_bpd / model_bpd - 1), "limit": limit, "passed": overhead <= limit}
        return [
            record("coded_bpd", coded_bpd, None, "bits/dim", "exact", count, **about, **times),
            record("coded_model_bpd", model_bpd, stderr, "bits/dim", "exact", count, non_finite=non_finite(nats)),
            record("coded_overhead_bytes", overhead, None, "bytes", "exact", count, **check),
        ]

    def _encode(self, context: Context, x: Tensor, y: Tensor | None) -> bytes:
        encoder, threads, device = Encoder(), torch.get_num_threads(), torch.device(context.device)
        with repeatable(threads):
            images, labels = x.to(device, copy=True), None if y is None else y.to(device)
            code_images(context.model, encoder, images, labels, self.batch_size)
        return CodedFile(
            model=model_fingerprint(context.model, read_config(context.folder)["model"]),
            weights=context.weights,
            checkpoint=context.about["checkpoint"],
            device=device.type,
            threads=threads,
            batch_size=self.batch_size,
            shape=tuple(x.shape),
            images=images_fingerprint(x, y),
            payload=encoder.content,
        ).to_bytes()

    @torch.no_grad()
    def _score(self, context: Context, x: Tensor, y: Tensor | None) -> Statistics:
        nats = Statistics()
        for index in torch.arange(len(x)).split(self.batch_size):
            labels = None if y is None else y[index].to(context.device)
            nats.add(index, context.model(x[index].to(context.device), labels).nats)
        return nats


def decode_elsewhere(folder: Path, path: Path) -> tuple[Tensor, Tensor | None]:
    """What a new process reads from the file at ``path``. Raises ConfigError with its line if it refuses."""
    root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "decoded.npz"
        command = [sys.executable, "-m", "models.coding.decode", str(folder), str(path), str(out)]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
            raise ConfigError(f"decoding failed: {reason.removeprefix('error: ')}")
        with numpy.load(out) as arrays:
            return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]) if "y" in arrays else None
