"""The laws of logpx, over every model and every experiment of ``conf/``, at tiny size."""

from __future__ import annotations

import inspect
import json
from functools import lru_cache

import pytest
import torch
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import OmegaConf

from models.build import check_target, instantiate
from models.contracts import CausalNet, DataSpec, Kind
from models.nn.data_init import initialize
from models.seeding import seed_all
from tests.checks_causal import check_cache, check_causal
from tests.conftest import EXPERIMENTS, MODELS, ROOT, build_model, compose, shaped
from tests.laws import (
    TINY, check_bijections, check_normalized, check_reload, check_round_trip, check_samples, check_score, random_batch, ready, widen,
)  # fmt: skip

COMPOSITIONS = [f"model={name}" for name in MODELS] + [f"experiment={name}" for name in EXPERIMENTS]
PAPER = {"title", "arxiv", "table", "row", "metric", "value", "unit", "kind", "split", "data", "checked"}


def tiny(composition: str, *overrides: str) -> dict:
    return compose(composition, "debug=tiny", *overrides)


def tiny_space(composition: str, shape: tuple[int, int, int] = TINY.shape) -> dict:
    """The composition on 1x2x2 images of 3 levels, or of 2 where its head takes only two."""
    full = compose(composition)
    levels = 2 if full["data"]["spec"]["levels"] == 2 else TINY.levels
    return tiny(composition, *shaped(shape, levels, 2 if full["model"].get("conditional") else None))


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_composes(composition):
    """Law 1: full-size and tiny compose; no reference is missing; names of runs differ."""
    full, small = compose(composition), tiny(composition)
    assert full["name"] != small["name"]
    if composition.startswith("experiment="):
        assert PAPER == set(full["paper"]), "an experiment states its paper, published value, unit, kind and split"
        assert full["paper"]["split"] in ("train", "val", "test")
        text = (ROOT / "conf/experiment" / f"{composition.split('=')[1]}.yaml").read_text()
        assert "_target_" not in text, "an experiment picks groups and sets numbers; parts belong to groups"


def _nodes(node):
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from _nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _nodes(value)


@pytest.mark.parametrize("composition", [f"model={name}" for name in MODELS])
def test_yaml_states_every_parameter(composition):
    """Every constructor argument of the project's own parts is in the YAML, and nothing else is.

    A factory's remaining arguments, shapes known only inside, are added by code.
    """
    for node in _nodes({k: v for k, v in compose(composition).items() if k != "system"}):
        target = check_target(node["_target_"])
        if not target.__module__.startswith(("models", "datamodules", "callbacks")):
            continue
        wanted = set(inspect.signature(target.__init__).parameters) - {"self"} if _own_init(target) else set()
        given = {k for k in node if not k.startswith("_")}
        assert given <= wanted, f"{node['_target_']} takes no {given - wanted}"
        if not node.get("_partial_"):
            assert given == wanted, f"the YAML of {node['_target_']} does not state {wanted - given}"


def _own_init(target: type) -> bool:
    return target.__init__ is not object.__init__ and target.__init__ is not torch.nn.Module.__init__


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_score_and_gradients(composition):
    """Law 2: the score is [B], finite, the sum of its terms; every parameter gets a gradient from its objective."""
    config = tiny(composition)
    _check_score_and_gradients(json.dumps({part: config[part] for part in ("model", "system")}))


@lru_cache(maxsize=None)
def _check_score_and_gradients(text: str) -> None:
    """Experiments that are alike when shrunk share this check, as they do those below."""
    config = json.loads(text)
    model = build_model(config)
    seed_all("score")
    x, y = random_batch(model.spec, 8)
    initialize(model, x, y)
    check_score(ready(model))
    model.train()
    system = instantiate({**config["system"], "_partial_": True})(model=model, seed=1, max_steps=10, accumulate=1)
    objectives = system.objectives.values() if hasattr(system, "objectives") else [system.objective]
    for objective in objectives:
        objective(model, (x, y), 0).value.backward()
    missing = [name for name, p in system.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f"no gradient reaches {missing}"


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_normalized(composition):
    """Law 3: on a space small enough to enumerate, probabilities sum to one (a bound's: to at most one)."""
    _check_normalized(json.dumps(tiny_space(composition)["model"]))


@lru_cache(maxsize=None)
def _check_normalized(node: str) -> None:
    model = widen(ready(build_model({"model": json.loads(node)}, torch.float64), scale=0.1))
    if Kind.UNNORMALIZED in model.score(*random_batch(model.spec, 2)).kind:
        return  # an energy states no probability; its normalizer is what `ais` estimates
    torch.manual_seed(0)
    check_normalized(model, y=None if model.spec.classes is None else 1)


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_bijections(composition):
    """Law 5: every bijection inside a model inverts, and contributes the log-determinant that autograd finds, both ways.

    On 4x4 images: 2x2 are squeezed to a single position, where a forgotten factor H W is 1.
    """
    _check_bijections(json.dumps(tiny_space(composition, (1, 4, 4))["model"]))


@lru_cache(maxsize=None)
def _check_bijections(node: str) -> None:
    check_bijections(ready(build_model({"model": json.loads(node)}, torch.float64), scale=0.1))


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_round_trip(composition):
    """Law 5: between data and latents a precise float32 flow loses what the rounding of the latents costs, and nothing else."""
    _check_round_trip(json.dumps(tiny_space(composition, (1, 4, 4))["model"]))


@lru_cache(maxsize=None)
def _check_round_trip(node: str) -> None:
    check_round_trip(ready(build_model({"model": json.loads(node)}), scale=0.1))


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_causality(composition):
    """Law 4: an output of a causal net depends on earlier pixels only, and its cached steps equal the full pass."""
    _check_causality(json.dumps(tiny_space(composition, (2, 4, 4))["model"]))


@lru_cache(maxsize=None)
def _check_causality(node: str) -> None:
    model = ready(build_model({"model": json.loads(node)}, torch.float64))
    y = None if model.spec.classes is None else torch.zeros(1, dtype=torch.long)
    for net in model.modules():
        if isinstance(net, CausalNet):
            check_causal(net, model.spec.shape, y, sees_all=False)
            if net.start(1, y) is not None:
                check_cache(net, torch.randn(1, *model.spec.shape, dtype=torch.float64), y)


@pytest.mark.parametrize("name", MODELS)
def test_reloaded(name):
    """Law 8: a model with another's state scores the same and is not initialised again."""
    config = tiny(f"model={name}")
    check_reload(ready(build_model(config)), build_model(config))


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_samples(composition):
    """Law 7: samples are integers in range."""
    _check_samples(json.dumps(tiny(composition)["model"]))


@lru_cache(maxsize=None)
def _check_samples(node: str) -> None:
    model = ready(build_model({"model": json.loads(node)}))
    torch.manual_seed(0)
    with torch.no_grad():
        check_samples(model)


@pytest.mark.parametrize("name", MODELS)
def test_fits_a_constant_image(name):
    """Law 7: a model fitted to a constant image samples it."""
    config = tiny_space(f"model={name}")
    model = build_model(config)
    if Kind.UNNORMALIZED in ready(build_model(config)).score(*random_batch(model.spec, 2)).kind:
        return  # a short-run energy model draws near the data, not from a normalized density
    target = torch.tensor([[0, 2], [1, 2]], dtype=torch.uint8).clamp(max=model.spec.levels - 1).expand(64, 1, 2, 2)
    initialize(model, target)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    torch.manual_seed(0)
    for _ in range(250):
        optimizer.zero_grad()
        (-model.score(target).nats.mean()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = (model.sample(64) == target).float().mean()
    assert right > 0.9, f"only {right:.0%} of the pixels are right"


@pytest.mark.parametrize("shape", [(1, 8, 8, 17, 10), (1, 28, 28, 2, None), (1, 28, 20, 256, None), (3, 32, 32, 256, 10)])
@pytest.mark.parametrize("name", MODELS)
def test_every_shape(name, shape):
    """Models build, score and sample on every data set's shape."""
    *chw, levels, classes = shape
    model = build_model(tiny(f"model={name}", *shaped(tuple(chw), levels, classes)))
    seed_all("shape")
    check_score(ready(model), n=2)
    with torch.no_grad():
        check_samples(model, n=1)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_instantiates_at_full_size(name):
    """Law 1: the paper's full-size model can be built (on the meta device: no memory, no time)."""
    node = compose(f"experiment={name}")["model"]
    with torch.device("meta"):
        hydra_instantiate(OmegaConf.create(node), _convert_="all")


def test_data_spec_is_checked():
    with pytest.raises(ValueError, match="channels, height, width"):
        DataSpec((8, 8), 17)
    with pytest.raises(ValueError, match="2 to 256"):
        DataSpec((1, 8, 8), 1)
