"""Pictures of latents and densities over reals, from models whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from models.build import ConfigError
from models.contracts import DataSpec, Kind, Score
from models.evaluators.attributes import Attributes
from models.evaluators.flow_steps import FlowSteps
from models.evaluators.inpaint import Inpaint, masks
from models.evaluators.partial_latents import PartialLatents
from models.evaluators.temperature_sweep import TemperatureSweep
from models.pictures import HIDDEN, rgb
from models.transforms.dequantize import UniformDequantization
from tests.laws import tiny
from tests.test_evaluators import Table, context

SPEC = DataSpec((1, 4, 4), 16, classes=2)


@pytest.fixture
def pages(monkeypatch) -> dict:
    """What would have been drawn, by file: [rows, columns, 3, H, W]."""
    kept = {}
    for name in ("attributes", "inpaint", "partial_latents", "temperature_sweep"):
        save = lambda images, path, titles, *_: kept.update({path.name: images.unflatten(0, (-1, len(titles)))})  # noqa: E731
        monkeypatch.setattr(f"models.evaluators.{name}.save_labelled", save)
    return kept


class Halves(Table):
    """Latents: the upper half of the image, and the lower one. What is not given is drawn as level 5."""

    def __init__(self):
        super().__init__(SPEC)

    def encode(self, x, y=None):
        return list(x.double().chunk(2, 2))

    def decode(self, z, y=None):
        upper, lower = z
        return torch.cat([torch.full_like(lower, 5) if upper is None else upper, lower], 2)


def test_partial_latents_keep_the_coarsest(tmp_path, pages):
    here = context(tmp_path, Halves())
    PartialLatents(3)(here)
    x = here.examples(3).x
    image, all_kept, half_kept = pages["partial_latents_test_raw.png"].unbind(1)
    assert torch.equal(image, rgb(x, 16)) and torch.equal(all_kept, image)
    assert torch.equal(half_kept[:, :, 2:], image[:, :, 2:])
    assert (half_kept[:, :, :2] == 5 * 17).all()
    with pytest.raises(ConfigError, match="no levels"):
        PartialLatents(3)(context(tmp_path, type("One", (Halves,), {"encode": lambda self, x, y=None: x.double()})()))


def test_attributes_move_along_the_difference_of_means(tmp_path, pages):
    here = context(tmp_path, Halves())
    Attributes(2, [0.0, 0.37], 100)(here)
    train, split = here.datamodule.split("train"), here.datamodule.split("test")
    means = [train.x[train.y == c].double().mean(0) for c in (0, 1)]
    for c, row in enumerate(pages["attributes_test_raw.png"]):
        start = split.x[(split.y != c).nonzero()[0 if c == 0 else min(1, int((split.y != c).sum()) - 1)]].double()
        moved = (start + 0.37 * (means[c] - means[1 - c])).round().clamp(0, 15).to(torch.uint8)
        assert torch.equal(row[1], row[0]) and torch.equal(row[0], rgb(start.to(torch.uint8), 16)[0])
        assert torch.equal(row[2], rgb(moved, 16)[0])
    unlabelled = Halves()
    unlabelled.spec = DataSpec((1, 4, 4), 16)
    with pytest.raises(ConfigError, match="labels"):
        Attributes(2, [1.0], 100)(context(tmp_path, unlabelled))


def test_temperatures_share_their_noise(tmp_path, pages):
    model = tiny("model=nice").float().eval()
    here = context(tmp_path, model)
    TemperatureSweep(4, [0.0, 0.5, 1.0])(here)
    cold, _, warm = pages["temperature_sweep_raw.png"].unbind(1)
    assert (cold == cold[0]).all(), "the base's mode alone"
    with here.noise("samples"):
        wanted = model.sample(4, None)
    assert torch.equal(warm, rgb(wanted, model.spec.levels)) and not torch.equal(warm, cold)


def test_flow_steps_end_in_the_flow_s_own_draws(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr("models.evaluators.flow_steps.save_scatter", lambda panels, angle, path: shown.update(panels, angle=angle))
    model = tiny("model=maf", shape=(1, 1, 2), levels=None).float().eval()
    here = context(tmp_path, model)
    FlowSteps(50, 4)(here)
    with here.noise("flow_steps"):
        wanted = model.sample(50).flatten(1)
    torch.testing.assert_close(shown["data"], wanted, rtol=0, atol=0)
    assert len(shown) == 5 and not torch.equal(shown["base"], shown["data"])
    torch.testing.assert_close(torch.tan(shown["angle"]), shown["base"][:, 1] / shown["base"][:, 0])
    with pytest.raises(ConfigError, match="toy2d"):
        FlowSteps(50, 4)(context(tmp_path, Halves()))


class Bump(Table):
    """Independent reals around 0.7, whose scales differ by a factor of 100."""

    def __init__(self):
        super().__init__(SPEC)
        self.dequantization = UniformDequantization(16)
        self.scale = torch.logspace(-3, -1, 16).view(1, 4, 4)

    def score_continuous(self, v, y=None):
        return Score(Normal(0.7, self.scale).log_prob(v).flatten(1).sum(1), Kind.EXACT)


def test_inpainting_finds_the_mode_and_leaves_what_is_shown(tmp_path, pages):
    here = context(tmp_path, Bump())
    Inpaint(2, 3000)(here)
    x = rgb(here.examples(2).x, 16)
    for i, row in enumerate(pages["inpaint_test_raw.png"]):
        assert torch.equal(row[0], x[i])
        for k, mask in enumerate(masks(4, 4).values()):
            shown, found = row[1 + 2 * k], row[2 + 2 * k]
            assert (shown[:, mask] == torch.tensor(HIDDEN, dtype=torch.uint8)[:, None]).all()
            assert torch.equal(shown[:, ~mask], x[i][:, ~mask]) and torch.equal(found[:, ~mask], x[i][:, ~mask])
            assert ((found[:, mask].float() / 17 - 0.7 * 16).abs() < 3).all()
    with pytest.raises(ConfigError, match="density over reals"):
        Inpaint(2, 1)(context(tmp_path, Halves()))
