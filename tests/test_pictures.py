"""A picture shows every pixel of every image, exactly."""

import numpy as np
import pytest
import torch
from PIL import Image

from models.contracts import DataSpec
from models.pictures import GAP, grid, save_curves, save_grid, save_points


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("shape, scale", [((1, 8, 8), 8), ((3, 32, 32), 2), ((1, 28, 20), 2), ((3, 100, 64), 1)])
def test_tiles_enlarge_pixels_by_a_whole_factor_and_lose_nothing(shape, scale, levels, tmp_path):
    channels, height, width = shape
    x = torch.randint(levels, (5, *shape), dtype=torch.uint8)
    save_grid(x, DataSpec(shape, levels), tmp_path / "deep" / "grid.png")
    page = np.asarray(Image.open(tmp_path / "deep" / "grid.png"))
    assert page.shape == (2 * height * scale + GAP, 3 * width * scale + 2 * GAP, channels + 1)
    for i in range(5):
        top, left = i // 3 * (height * scale + GAP), i % 3 * (width * scale + GAP)
        tile = page[top : top + height * scale, left : left + width * scale]
        assert (tile[..., -1] == 255).all()
        shown = tile[..., :channels].reshape(height, scale, width, scale, channels)
        assert (shown == shown[:, :1, :, :1]).all(), "a pixel is a square of one colour"
        back = np.rint(shown[:, 0, :, 0].astype(float) / 255 * (levels - 1)).transpose(2, 0, 1)
        assert (back == x[i].numpy()).all()
    assert (page[height * scale : height * scale + GAP] == 0).all(), "the gap is transparent"


def test_darkest_and_brightest_level_are_black_and_white():
    page = np.asarray(grid(torch.tensor([0, 16]).reshape(1, 1, 1, 2), levels=17))
    assert page[0, 0, 0] == 0 and page[0, -1, 0] == 255


def test_other_numbers_of_channels_become_grey_tiles_one_row_an_image():
    assert grid(torch.zeros(3, 2, 8, 8), 2).size == (2 * 64 + GAP, 3 * 64 + 2 * GAP)


def test_points_are_drawn_where_they_are(tmp_path):
    points = torch.cat([torch.full((500, 2), 3.0), torch.full((500, 2), -3.0), torch.full((1, 2), float("nan"))])
    save_grid(points.reshape(-1, 1, 1, 2), DataSpec((1, 1, 2), None), tmp_path / "points.png")
    page = np.asarray(Image.open(tmp_path / "points.png").convert("RGB")).astype(int)
    brightest = np.abs(page - np.array([252, 253, 191])).sum(-1) < 12  # the top of the colour map
    row, column = np.argwhere(brightest).mean(0)
    top, left = (np.arange(s)[:, None] < c for s, c in ((page.shape[0], row), (page.shape[1], column)))
    quarter = {(v, h): (brightest & (top == v) & (left.T == h)).sum() for v in (True, False) for h in (True, False)}
    assert quarter[True, False] > 0 and quarter[False, True] > 0, "(3, 3) is at the upper right, (-3, -3) at the lower left"
    assert quarter[True, True] == quarter[False, False] == 0
    save_points({"data": points, "model": points}, tmp_path / "two.png")
    assert np.asarray(Image.open(tmp_path / "two.png")).shape[1] == 2 * page.shape[1]


def test_curves_become_a_file(tmp_path):
    save_curves({"a": ([0, 1], [1, 2]), "b": ([0, 1], [2, 1])}, tmp_path / "curves.png", "step", "nats")
    assert Image.open(tmp_path / "curves.png").size == (600, 600)
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"], "no temporary file is left"
