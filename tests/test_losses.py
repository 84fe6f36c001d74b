"""Law 10: a fixed-seed short run of every model and experiment keeps its stored losses, so that no refactor changes a number.

After a change that is meant to alter them: ``python -m tests.test_losses`` writes ``losses.json`` anew; say why in the commit.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.build import instantiate
from models.nn.data_init import initialize
from models.seeding import seed_torch
from tests.conftest import EXPERIMENTS, MODELS, build_model, compose
from tests.laws import random_batch

STORED = Path(__file__).with_name("losses.json")
COMPOSITIONS = [f"model={name}" for name in MODELS] + [f"experiment={name}" for name in EXPERIMENTS]
STEPS = 3


def short_run(composition: str) -> list[float]:
    """The losses of three steps on fixed random batches, each player's in turn, at tiny size."""
    config = compose(composition, "debug=tiny")
    model = build_model(config)
    system = instantiate({**config["system"], "_partial_": True})(model=model, seed=1, max_steps=STEPS, accumulate=1)
    torch.manual_seed(0)
    initialize(model, *random_batch(model.spec, 16))
    made = system.configure_optimizers()
    optimizers = made if isinstance(made, list) else [made]
    objectives = list(system.objectives.values()) if hasattr(system, "objectives") else [system.objective]
    losses = []
    for step in range(STEPS):
        seed_torch("losses", step)
        batch = random_batch(model.spec, 8, seed=step + 1)
        for objective, optimizer in zip(objectives, optimizers, strict=True):
            system.zero_grad(set_to_none=True)
            loss = objective(model, batch, step).value
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_losses_are_kept(composition):
    stored = json.loads(STORED.read_text())
    assert composition in stored, "store its losses: python -m tests.test_losses"
    assert short_run(composition) == pytest.approx(stored[composition], rel=1e-3, abs=1e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    STORED.write_text(json.dumps({c: [round(v, 7) for v in short_run(c)] for c in COMPOSITIONS}, indent=1) + "\n")
