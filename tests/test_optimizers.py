"""Optimizers and schedules of the command line: they train, their state survives, a skipped update changes nothing."""

from __future__ import annotations

import copy
from math import inf, nan

import pytest
import torch

from models.build import instantiate
from models.contracts import Loss, Objective
from models.schedules import Constant, Cosine, Exponential, Stages
from models.system import System
from tests.conftest import ROOT, compose

OPTIMIZERS = sorted(p.stem for p in (ROOT / "conf/optimizer").glob("*.yaml"))
SCHEDULES = sorted(p.stem for p in (ROOT / "conf/schedule").glob("*.yaml"))


def problem():
    """A small regression whose parameters are a matrix, a vector and a kernel, and its loss."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(8, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    x, y = torch.randn(32, 1, 4, 4), torch.randn(32, 1)
    return net, lambda: (net(x) - y).square().mean()


def steps(optimizer, loss, count: int) -> float:
    for _ in range(count):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    return loss().item()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trains_and_resumes(name):
    node = compose(f"optimizer={name}", "model=vae")["optimizer"]
    net, loss = problem()
    before = loss().item()
    optimizer = instantiate(node)(net.parameters())
    steps(optimizer, loss, 5)
    assert steps(optimizer, loss, 20) < before
    twin, twin_loss = problem()
    twin.load_state_dict(net.state_dict())
    resumed = instantiate(node)(twin.parameters())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert steps(optimizer, loss, 3) == steps(resumed, twin_loss, 3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_compose(name):
    schedule = instantiate(compose(f"schedule={name}", "model=vae")["schedule"])
    assert all(0 <= schedule(step, 100) <= 1 for step in range(101))


def test_schedule_values():
    assert [Constant(4)(s, 10) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Exponential(0, 0.5)(3, 10) == 0.125
    assert Cosine(0, 0.0)(5, 10) == pytest.approx(0.5)
    assert Cosine(2, 0.1)(10, 10) == pytest.approx(0.1)
    iwae = Stages(0, 8, 3.0, 0.1)  # 3280 epochs: stage i is 3^i of them
    assert iwae(0, 3280) == 1.0
    assert iwae(1, 3280) == pytest.approx(10 ** (-1 / 7))
    assert iwae(3279, 3280) == pytest.approx(0.1)
    assert iwae((1 + 3 + 9) - 1, 3280) == pytest.approx(10 ** (-2 / 7))


class Scaled(Objective):
    """The mean square of the weights, times a factor that a test sets."""

    factor = 1.0

    def forward(self, model, batch, step):
        return Loss(self.factor * sum(p.square().sum() for p in model.parameters()))


def make_system(**changes) -> System:
    settings = dict(clip_norm=None, skip_above=None, skip_budget=2) | changes
    optimizer = lambda parameters: torch.optim.Adam(parameters, 0.1)  # noqa: E731
    return System(torch.nn.Linear(3, 2), Scaled(), optimizer, Constant(0), seed=1, max_steps=10, accumulate=1, **settings)


def move(system: System, optimizer, factor: float) -> None:
    system.objective.factor = factor
    optimizer.zero_grad()
    system.play((None, None)).backward()
    system.configure_gradient_clipping(optimizer)
    optimizer.step()


@pytest.mark.parametrize("factor", [nan, inf, 1e6])
def test_a_bad_update_is_skipped_whole(factor):
    """A non-finite or exploding step leaves weights and optimizer state as they were, and counts."""
    system = make_system(skip_above=1e3)
    optimizer = system.configure_optimizers()
    move(system, optimizer, 1.0)
    weights = [p.detach().clone() for p in system.parameters()]
    state = {k: {n: v.clone() for n, v in s.items()} for k, s in optimizer.state_dict()["state"].items()}
    move(system, optimizer, factor)
    assert system.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(weights, system.parameters(), strict=True))
    for key, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(values[name], state[key][name]) for name in values)


def test_the_budget_of_skipped_updates():
    system = make_system()
    optimizer = system.configure_optimizers()
    with pytest.raises(RuntimeError, match="budget is system.skip_budget=2"):
        for _ in range(3):
            move(system, optimizer, nan)


def test_gradients_are_clipped():
    system = make_system(clip_norm=0.5)
    move(system, system.configure_optimizers(), 100.0)
    norm = torch.nn.utils.get_total_norm([p.grad for p in system.parameters()])
    assert norm == pytest.approx(0.5, rel=1e-5)
    assert system.latest["grad_norm"] > 100
