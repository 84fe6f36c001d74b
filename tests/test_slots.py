"""Every choice of a slot works wherever it fits, and says in one line why where it does not."""

from __future__ import annotations

import pytest
import torch

from models.build import ConfigError
from tests.conftest import ROOT, build_model, compose, shaped
from tests.laws import check_normalized, check_samples, check_score, ready


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (ROOT / "conf" / group).glob("*.yaml"))


def check(levels: int, *overrides: str) -> None:
    model = ready(build_model(compose(*overrides, "debug=tiny", *shaped((1, 2, 2), levels)), torch.float64), scale=0.03)
    check_score(model)
    torch.manual_seed(0)
    check_normalized(model)
    with torch.no_grad():
        check_samples(model)


@pytest.mark.parametrize("prior", options("prior"))
@pytest.mark.parametrize("posterior", options("posterior"))
def test_posteriors_and_priors(posterior, prior):
    check(3, "model=vae", f"posterior={posterior}", f"prior={prior}")


@pytest.mark.parametrize("likelihood", [name for name in options("likelihood") if name != "gaussian"])
@pytest.mark.parametrize("model", ["vae", "pixelcnnpp"])
def test_heads(model, likelihood):
    check(2 if likelihood == "bernoulli" else 3, f"model={model}", f"likelihood={likelihood}")


@pytest.mark.parametrize("model", ["vae", "pixelcnnpp"])
def test_heads_that_do_not_fit(model):
    for likelihood, levels in (("bernoulli", 256), ("gaussian", 256), ("categorical", None)):
        config = compose(f"model={model}", "debug=tiny", f"likelihood={likelihood}", *shaped((1, 2, 2), levels))
        with pytest.raises(ConfigError, match=f"likelihood={likelihood} (needs|is a density for|scores integers)"):
            build_model(config)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("model=glow", "likelihood=bernoulli"), "model=glow has no likelihood: remove likelihood=bernoulli"),
        (("model=pixelcnnpp", "posterior=iaf"), "model=pixelcnnpp has no posterior"),
        (("model=vae", "dequantization=uniform"), "model=vae has no dequantization"),
        (("model=vae", "sampler=langevin"), "model=vae has no sampler"),
    ],
)
def test_a_slot_the_model_lacks(overrides, says):
    with pytest.raises(ConfigError, match=says):
        compose(*overrides)
