"""Pictures of integer images, of points in the plane and of curves, as PNG files that are always whole."""

from __future__ import annotations

import io
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.checkpoints import write_atomically
from models.contracts import DataSpec

TILE = 64
"""Smaller images are enlarged by a whole factor to about this many pixels."""

GAP = 4
"""Transparent pixels between tiles, so that a grid lies well on a white and on a dark page."""


def save_grid(images: Tensor, spec: DataSpec, path: Path, columns: int | None = None) -> None:
    """``images`` [n, C, H, W] side by side, ``columns`` a row (None: about square). Continuous data becomes points."""
    if spec.levels is None:
        save_points({"": images}, path)
    else:
        _write(grid(images, spec.levels, columns), path)


def grid(images: Tensor, levels: int, columns: int | None = None) -> Image.Image:
    """Every pixel of [n, C, H, W] as a square of equal size; 0 is black and ``levels - 1`` white.

    One channel is grey, three are red, green and blue; the channels of any other image become grey tiles of their own.
    """
    x = images.detach().cpu().long().clamp(0, levels - 1)
    if x.shape[1] not in (1, 3):
        columns = (columns or 1) * x.shape[1]
        x = x.flatten(0, 1).unsqueeze(1)
    n, channels, height, width = x.shape
    columns = min(n, columns or ceil(sqrt(n)))
    rows = ceil(n / columns)
    scale = max(1, round(TILE / max(height, width)))
    tiles = ((x * 255 + (levels - 1) // 2) // (levels - 1)).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale + GAP, width * scale + GAP
    page = np.zeros((rows * height - GAP, columns * width - GAP, channels + 1), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        page[top : top + tile.shape[0], left : left + tile.shape[1], :channels] = tile
        page[top : top + tile.shape[0], left : left + tile.shape[1], channels] = 255
    return Image.fromarray(page, "LA" if channels == 1 else "RGBA")


def save_points(panels: dict[str, Tensor], path: Path, bins: int = 160) -> None:
    """One density map a panel, side by side on the same square, of points [n, ...] by their first two coordinates."""
    flat = {name: p.detach().cpu().double().flatten(1)[:, :2].numpy() for name, p in panels.items()}
    finite = np.concatenate(list(flat.values()))
    finite = finite[np.isfinite(finite).all(1)]
    low, high = np.quantile(finite, [0.001, 0.999], axis=0) if len(finite) else (np.zeros(2), np.zeros(2))
    centre, half = (low + high) / 2, max(float((high - low).max()) * 0.55, 1e-3)
    edges = [np.linspace(c - half, c + half, bins + 1) for c in centre]
    maps = {name: np.histogram2d(p[:, 0], p[:, 1], bins=edges)[0].T for name, p in flat.items()}
    save_maps(maps, (edges[0][0], edges[0][-1], edges[1][0], edges[1][-1]), path)


def save_maps(maps: dict[str, np.ndarray], extent: tuple[float, float, float, float], path: Path) -> None:
    """Non-negative maps [rows, columns], row 0 at the bottom, over ``extent`` (left, right, bottom, top), one panel each."""
    figure, axes = _figure(len(maps), 4.0)
    for axis, (name, values) in zip(axes, maps.items(), strict=True):
        axis.imshow(np.asarray(values), origin="lower", extent=extent, cmap="magma", aspect="equal", interpolation="nearest")
        axis.set_title(name, fontsize=10)
    _write(figure, path)


def save_curves(curves: dict[str, tuple], path: Path, xlabel: str, ylabel: str) -> None:
    """Named curves (x, y) in one frame."""
    figure, (axis,) = _figure(1, 5.0)
    for name, (x, y) in curves.items():
        axis.plot(x, y, label=name, linewidth=1.5)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axis.legend(frameon=False)
    _write(figure, path)


def _figure(panels: int, inches: float):
    """A figure without pyplot, which would keep it alive and is not made for threads."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(inches * panels, inches), dpi=120, layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _write(picture, path: Path) -> None:
    content = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(content, "PNG")
    else:
        picture.savefig(content, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
