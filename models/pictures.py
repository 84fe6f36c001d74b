"""Pictures of integer images, of points in the plane and of curves, as PNG files that are always whole."""

from __future__ import annotations

import io
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from models.checkpoints import write_atomically
from models.contracts import DataSpec

TILE = 64
"""Smaller images are enlarged by a whole factor to about this many pixels."""

GAP = 4
"""Transparent pixels between tiles, so that a grid lies well on a white and on a dark page."""

INK = "#787d86"
"""Text and lines on a transparent ground: a grey that reads on a white and on a dark page."""

HIDDEN = (91, 121, 173)
"""The colour of what a model is not shown of an image: no image's grey."""

BLUE, ORANGE = "#4a7fe8", "#dd7426"
"""Two curves on a transparent ground."""


def save_grid(images: Tensor, spec: DataSpec, path: Path, columns: int | None = None) -> None:
    """``images`` [n, C, H, W] side by side, ``columns`` a row (None: about square). Continuous data becomes points."""
    if spec.levels is None:
        save_points({"": images}, path)
    else:
        _write(grid(images, spec.levels, columns), path)


def grid(images: Tensor, levels: int, columns: int | None = None, size: int = TILE, room: int = 0) -> Image.Image:
    """Every pixel of [n, C, H, W] as a square of equal size; 0 is black and ``levels - 1`` white.

    One channel is grey, three are red, green and blue; the channels of any other image become grey tiles of their own.
    Below every row of tiles ``room`` more transparent lines are left.
    """
    x = images.detach().cpu().long().clamp(0, levels - 1)
    if x.shape[1] not in (1, 3):
        columns = (columns or 1) * x.shape[1]
        x = x.flatten(0, 1).unsqueeze(1)
    n, channels, height, width = x.shape
    columns = min(n, columns or ceil(sqrt(n)))
    rows = ceil(n / columns)
    scale = max(1, round(size / max(height, width)))
    tiles = ((x * 255 + (levels - 1) // 2) // (levels - 1)).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale + GAP + room, width * scale + GAP
    page = np.zeros((rows * height - GAP, columns * width - GAP, channels + 1), np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        page[top : top + tile.shape[0], left : left + tile.shape[1], :channels] = tile
        page[top : top + tile.shape[0], left : left + tile.shape[1], channels] = 255
    return Image.fromarray(page, "LA" if channels == 1 else "RGBA")


def rgb(x: Tensor, levels: int) -> Tensor:
    """Integer images as uint8 [n, 3, H, W]; of any but one or three channels, these side by side in grey: [n, 3, H, C W]."""
    if x.shape[1] not in (1, 3):
        x = x.transpose(1, 2).flatten(2).unsqueeze(1)
    x = (x.detach().cpu().long() * 255 + (levels - 1) // 2) // (levels - 1)
    return x.to(torch.uint8).expand(-1, 3, -1, -1)


def heat(values: Tensor, low: float, high: float) -> Tensor:
    """Maps [n, H, W] as colours uint8 [n, 3, H, W]: dark at ``low`` and below, bright at ``high`` and above."""
    from matplotlib import colormaps

    share = ((values.detach().cpu().double() - low) / max(high - low, 1e-12)).clamp(0, 1)
    return torch.from_numpy(colormaps["magma"](share.numpy(), bytes=True)[..., :3].copy()).permute(0, 3, 1, 2)


def save_labelled(
    images: Tensor, path: Path, titles: list[str], captions: list[str] | None = None, size: int = TILE,
    bar: tuple[float, float, str] | None = None,
) -> None:  # fmt: skip
    """Colours uint8 [n, 3, H, W] in rows of ``len(titles)`` tiles of about ``size`` pixels, with words around them.

    A title stands over its column and over the empty ones after it, which are set apart from the others. A caption stands
    under its image. ``bar`` (low, high, label of the high end) is the scale of ``heat``, below.
    """
    columns, line, apart = len(titles), 18, 10
    tiles = grid(images, 256, columns, size, line if captions else 0).convert("RGBA")
    width, height = (tiles.width + GAP) // columns, (tiles.height + GAP) // ceil(len(images) / columns)
    left = [i * width + apart * sum(map(bool, titles[1 : i + 1])) for i in range(columns)]
    words = max(x + ceil(_font(12).getlength(title)) for x, title in zip(left, titles, strict=True))
    page = Image.new("RGBA", (max(left[-1] + width - GAP, words), line + tiles.height + (40 if bar else 0)))
    draw = ImageDraw.Draw(page)
    for i, (x, title) in enumerate(zip(left, titles, strict=True)):
        page.paste(tiles.crop((i * width, 0, (i + 1) * width - GAP, tiles.height)), (x, line))
        draw.text((x, 0), title, INK, _font(12))
    for i, caption in enumerate(captions or []):
        row, column = divmod(i, columns)
        draw.text((left[column] + (width - GAP) // 2, (row + 1) * height - GAP + 2), caption, INK, _font(11), anchor="ma")
    if bar:
        low, high, label = bar
        top, length = page.height - 30, min(256, page.width)
        ramp = heat(torch.linspace(low, high, length).expand(1, 10, length), low, high)[0]
        page.paste(Image.fromarray(ramp.permute(1, 2, 0).contiguous().numpy()), (0, top))
        draw.text((0, top + 13), f"{low:.3g}", INK, _font(11))
        draw.text((length, top + 13), label, INK, _font(11), anchor="ra")
    _write(page, path)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The letters of the figures."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def save_histograms(sets: dict[str, Tensor], path: Path, xlabel: str, title: str) -> None:
    """Two sets of numbers [n] as densities over the same bins; the first and last bin also hold what lies beyond them."""
    together = torch.cat(list(sets.values())).double()
    together = together[together.isfinite()]
    low, high = np.quantile(together.numpy(), [0.002, 0.998]) if len(together) else (0.0, 1.0)
    count = round(2 * min(map(len, sets.values())) ** (1 / 3))  # Rice's rule
    bins = np.linspace(low, max(high, low + 1e-6), max(count, 8) + 1)
    figure, (axis,) = _figure(1, 4.3, 2.8)
    for (name, values), colour in zip(sets.items(), (BLUE, ORANGE), strict=True):
        inside = np.clip(np.nan_to_num(values.numpy(), nan=high, posinf=high, neginf=low), bins[0], bins[-1])
        density, _ = np.histogram(inside, bins, density=True)
        axis.stairs(density, bins, fill=True, color=colour, alpha=0.3)
        axis.stairs(density, bins, color=colour, linewidth=1.5, label=name)
    axis.set_xlabel(xlabel, fontsize=8)
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    axis.set_yticks([])
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(frameon=False, labelcolor="linecolor", fontsize=8)
    _write(figure, path)


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


def save_maps(
    maps: dict[str, np.ndarray], extent: tuple[float, float, float, float], path: Path, lines: dict[str, np.ndarray] | None = None
) -> None:
    """Non-negative maps [rows, columns], row 0 at the bottom, over ``extent`` (left, right, bottom, top), one panel each.

    ``lines`` are sets of lines [n, points, 2] in the same frame, a panel each after the maps.
    """
    lines = lines or {}
    figure, axes = _figure(len(maps) + len(lines), 4.0, 4.3)
    for axis, (name, values) in zip(axes, maps.items()):
        axis.imshow(np.asarray(values), origin="lower", extent=extent, cmap="magma", aspect="equal", interpolation="nearest")
        axis.set_title(name, fontsize=10)
    for axis, (name, curves) in zip(axes[len(maps) :], lines.items(), strict=True):
        for curve in curves:
            axis.plot(curve[:, 0], curve[:, 1], color=BLUE, linewidth=0.7)
        axis.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
        axis.set_title(name, fontsize=10)
    _write(figure, path)


def save_scatter(panels: dict[str, Tensor], angle: Tensor, path: Path) -> None:
    """Points [n, 2] of each panel in its own frame, up to four panels in a row, each point in the colour of its ``angle`` [n]."""
    columns = min(4, len(panels))
    figure, axes = _figure(columns, 2.6, 2.7 * ceil(len(panels) / columns), ceil(len(panels) / columns))
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (name, points) in zip(axes, panels.items()):
        x, y = points.detach().cpu().double().T.numpy()
        axis.scatter(x, y, c=angle.detach().cpu().numpy(), cmap="hsv", s=1.5, linewidths=0)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.set_aspect("equal", "datalim")
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


def _figure(columns: int, inches: float, height: float | None = None, rows: int = 1):
    """A transparent figure and its axes, row by row; without pyplot, which would keep it alive and is not made for threads."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    inks = ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color", "xtick.color", "ytick.color")
    with rc_context(dict.fromkeys(inks, INK) | {"figure.facecolor": "none", "axes.facecolor": "none"}):
        figure = Figure(figsize=(inches * columns, height or inches), dpi=120, layout="constrained")
        return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _write(picture, path: Path) -> None:
    content = io.BytesIO()
    if isinstance(picture, Image.Image):
        picture.save(content, "PNG")
    else:
        picture.savefig(content, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.getvalue())
