"""Models and data of which evaluators' answers are known."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from datamodules.base import DataModule, Split
from datamodules.digits import Digits
from models.autoregressive.model import Autoregressive
from models.autoregressive.orders import Raster
from models.contracts import CausalNet, DataSpec, GenerativeModel, Kind, Score, sum_event
from models.evaluators.base import Context
from models.likelihoods.categorical import Categorical

SPEC = DataSpec((1, 4, 6), 5, classes=2)


class Seeded(DataModule):
    """Uniform images; the first training image is also the first test image."""

    def load(self, split):
        if split == "val":
            return Split(torch.zeros(0, *self.spec.shape, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
        x = torch.randint(self.spec.levels, (23, *self.spec.shape), generator=torch.Generator().manual_seed(len(split)))
        if split == "test":
            x[0] = torch.from_numpy(self.split("train").x[0].numpy())
        return Split(x.to(torch.uint8), torch.arange(23) % 2)


class Places(CausalNet):
    """Independent pixels: logits of its own for every place [P, H, W] of the data, whatever the order."""

    def __init__(self, shape, out_channels, groups, classes):
        super().__init__()
        self.groups, self.shape = groups, shape
        self.logits = nn.Parameter(torch.randn(1, out_channels, 4, 6, generator=torch.Generator().manual_seed(0)))
        self.permutation = None

    def select(self, permutation, member):
        self.permutation = permutation

    def forward(self, x, y=None):
        return Raster.arrange(self.logits, self.permutation, self.shape).expand(len(x), -1, -1, -1)


def places(order=Raster, **settings) -> Autoregressive:
    return Autoregressive(SPEC, Places, order(SPEC, 1, False, **settings), Categorical(SPEC), conditional=False)


def context(folder, model, data=Seeded, split="test", rank=0, world=1) -> Context:
    settings = {"name": data.__name__.lower(), "seed": 0, "batch_size": 4, "eval_batch_size": 5, "limit": None}
    data = data(spec=model.spec, root=str(folder), **settings)
    return Context(model.eval(), data, split, Path(folder), seed=1, weights="raw", rank=rank, world=world)


def by_metric(records) -> dict[str, dict]:
    return {item["metric"]: item for item in records}


class Inverted(Digits):
    """Digits, dark on bright."""

    def load(self, split):
        data = super().load(split)
        return Split((16 - data.x.int()).to(torch.uint8), data.y)


class Histograms(GenerativeModel):
    """Independent pixels, fitted to the digits by counting."""

    def __init__(self, kind=Kind.EXACT):
        super().__init__()
        self.spec, self.kind = DataSpec((1, 8, 8), 17, 10), kind
        train = digits(Digits, ".").split("train").x.long()
        counts = torch.stack([(train == level).sum(0) for level in range(17)]).double() + 1
        self.log_p = (counts / counts.sum(0)).log()

    def score(self, x, y=None):
        assert y is None
        nats = sum_event(self.log_p[:, 0].gather(0, x[:, 0].long()))
        return Score(nats, self.kind, {"data": nats})


def digits(module, root):
    spec = DataSpec((1, 8, 8), 17, 10)
    return module(spec=spec, name=module.__name__.lower(), root=root, seed=0, batch_size=5, eval_batch_size=50, limit=100)


def other(module, spec=None, **settings):
    """What the configuration builds: a data module without its root."""
    spec = spec or DataSpec((1, 8, 8), 17, 10)
    rest = {"name": module.__name__.lower(), "seed": 0, "batch_size": 5, "eval_batch_size": 40, "limit": None}
    return partial(module, spec=spec, root="nowhere", **rest | settings)


def beside(folder, run_data=Digits, model=None) -> Context:
    return Context(model or Histograms(), digits(run_data, str(folder)), "test", Path(folder), 1, "raw")
