"""Decode a file of coded images from a run folder alone: python -m models.coding.decode RUN FILE OUT.npz"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import torch
from torch import Tensor

from models.build import ConfigError
from models.coding.coder import Decoder, code_images, repeatable
from models.coding.file import CodedFile, images_fingerprint, model_fingerprint
from models.reopen import load_run


def decode(folder: Path, path: Path) -> tuple[Tensor, Tensor | None]:
    """The images [N, C, H, W] in ``path``, uint8, and the labels [N] where the model of the run in ``folder`` uses them.

    The model must give the encoder's probabilities to the bit, which is certain only on the encoder's type of machine with
    its versions of torch and constriction. Raises ConfigError with one line for a damaged file, one of another model, and one
    that does not decode to what was encoded.
    """
    coded = CodedFile.from_bytes(path.read_bytes(), str(path))
    model, _, config, step = load_run(folder, coded.weights, coded.checkpoint)
    if model_fingerprint(model, config["model"]) != coded.model:
        raise ConfigError(
            f"{path} was not written by the model in {folder} as it is now ({coded.weights} weights of the {coded.checkpoint} "
            f"checkpoint, step {step}): use the run and the step that wrote it"
        )
    if coded.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{path} was written on a GPU and can only be decoded on one of the same type")
    x = torch.zeros(coded.shape, dtype=torch.uint8, device=coded.device)
    y = torch.zeros(len(x), dtype=torch.int64, device=coded.device) if model.conditional else None
    other = f"{path} does not decode to what was encoded: this machine, or its torch or constriction, is not the encoder's"
    with repeatable(coded.threads):
        try:
            code_images(model.to(coded.device), Decoder(coded.payload), x, y, coded.batch_size)
        except ConfigError as error:
            raise ConfigError(other) from error
    if images_fingerprint(x, y) != coded.images:
        raise ConfigError(other)
    return x.cpu(), None if y is None else y.cpu()


def main(arguments: list[str]) -> int:
    """Writes the arrays ``x`` and, with labels, ``y``. Exit codes: 0, or 2 after one line that says why not."""
    try:
        if len(arguments) != 3:
            raise ConfigError("say what to decode: python -m models.coding.decode RUN FILE OUT.npz")
        folder, path, out = map(Path, arguments)
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")
        x, y = decode(folder, path)
        numpy.savez(out, x=x, **({} if y is None else {"y": y}))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
