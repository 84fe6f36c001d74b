"""The laws that every system obeys, as plain functions: the suite runs them on all models, the mutation tests on broken ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import product

import torch
from torch import Tensor, nn

from models.contracts import Bijection, DataSpec, GenerativeModel, Kind
from models.flow.flow import flow_over_data
from models.latent.posteriors import DiagonalPosterior
from models.nn.data_init import initialize
from models.transforms.sequence import Sequential
from tests.checks_bijection import check_bijection
from tests.conftest import build_model, compose, shaped

TINY = DataSpec((1, 2, 2), 3)


def random_batch(spec: DataSpec, n: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """``n`` examples of ``spec``: uniform integers, or normal floats for continuous data."""
    generator = torch.Generator().manual_seed(seed)
    if spec.levels is None:
        x = torch.randn(n, *spec.shape, generator=generator)
    else:
        x = torch.randint(0, spec.levels, (n, *spec.shape), generator=generator, dtype=torch.uint8)
    return x, None if spec.classes is None else torch.randint(0, spec.classes, (n,), generator=generator)


def disturb(model: nn.Module, scale: float = 0.3, seed: int = 0) -> nn.Module:
    """Move every parameter away from its initial value (zero-initialised layers hide errors)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def ready(model: GenerativeModel, scale: float = 0.3, seed: int = 0) -> GenerativeModel:
    """The model initialised on random data, disturbed by ``scale``, in eval mode."""
    torch.manual_seed(seed)
    initialize(model, *_cast(random_batch(model.spec, 64, seed), model))
    return disturb(model, scale, seed).eval()


def widen(model: nn.Module, log_factor: float = 1.0) -> nn.Module:
    """Posterior scales times e: the weights of a posterior narrower than the prior have no variance, nor their mean an error."""
    for module in model.modules():
        if isinstance(module, DiagonalPosterior):
            module.linear.bias.data.chunk(2)[1].add_(log_factor)
    return model


def _cast(batch, model):
    x, y = batch
    dtype = next(model.parameters()).dtype
    return (x.to(dtype) if x.is_floating_point() else x), y


def check_score(model: GenerativeModel, n: int = 4) -> None:
    """Law 2: ``score`` is [B] and finite, and its terms sum to it."""
    x, y = _cast(random_batch(model.spec, n), model)
    score = model.score(x, y)
    assert score.nats.shape == (n,), score.nats.shape
    assert score.nats.isfinite().all(), score.nats
    assert score.terms and all(term.shape == (n,) for term in score.terms.values()), {k: v.shape for k, v in score.terms.items()}
    total = sum(score.terms.values())
    torch.testing.assert_close(total, score.nats, rtol=1e-5, atol=1e-4)


def all_images(spec: DataSpec) -> Tensor:
    """Every image of a small space: [K^D, C, H, W]."""
    rows = torch.tensor(list(product(range(spec.levels), repeat=spec.dims)), dtype=torch.uint8)
    return rows.view(-1, *spec.shape)


def total_probability(model: GenerativeModel, draws: int = 4000, y: int | None = None) -> tuple[float, float, Kind]:
    """(sum over all x of exp(nats), its standard error over ``draws`` repetitions, kind). EXACT needs one repetition."""
    x = all_images(model.spec)
    labels = None if y is None else torch.full((len(x),), y)
    with torch.no_grad():
        kind = model.score(x[:2], None if labels is None else labels[:2]).kind
        if kind == Kind.EXACT:
            return float(model.score(x, labels).nats.double().exp().sum()), 0.0, kind
        repeats = 50
        many, labels = x.repeat(repeats, 1, 1, 1), None if labels is None else labels.repeat(repeats)
        nats = torch.cat([model.score(many, labels).nats.double().view(repeats, -1) for _ in range(draws // repeats)])
    if Kind.WEIGHT in kind:
        sums = nats.exp().sum(1)
        return float(sums.mean()), float(sums.std() / draws**0.5), kind
    mean = nats.mean(0)  # LOWER, NOISY: statements about the mean of nats
    spread = float((nats.std(0) / draws**0.5 * mean.exp()).sum())
    return float(mean.exp().sum()), spread, kind


def broaden(model: GenerativeModel) -> None:
    """Pull a posterior towards its parameters' zero, near the prior, where importance weights have finite variance."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "posterior":
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter *= 0.2


def mass_on_data(model: GenerativeModel, y: int | None, draws: int = 20_000) -> tuple[float, float]:
    """What the probabilities must sum to, and its standard error: 1, or of a model of all reals or integers what is on the data.

    Found from the sampling direction alone: the fraction of draws on the data.
    """
    if not hasattr(model, "sample_continuous"):
        return 1.0, 0.0
    with torch.no_grad():
        v = model.sample_continuous(draws, None if y is None else torch.full((draws,), y))
    inside = float(flow_over_data(model).dequantization.on_data(v).double().mean())
    assert inside > 0.05, f"only {inside:.1%} of the mass is on the data: this check would say nothing"
    return inside, (inside * (1 - inside) / draws) ** 0.5


def check_normalized(model: GenerativeModel, y: int | None = None, draws: int = 4000) -> None:
    """Law 3: the probabilities of all images sum to 1 (EXACT, WEIGHT) or to at most 1 (LOWER)."""
    broaden(model)
    total, error, kind = total_probability(model, draws, y)
    target, target_error = mass_on_data(model, y)
    error = (error**2 + target_error**2) ** 0.5
    if kind == Kind.EXACT:
        assert abs(total - target) < 1e-6 + 5 * error, f"probabilities sum to {total}, not {target}, +- {error}"
    elif Kind.LOWER in kind:
        assert total <= target + 5 * error, f"a lower bound whose probabilities sum to {total} +- {error}"
    else:
        assert abs(total - target) < 5 * error, f"probabilities sum to {total}, not {target}, +- {error}"
        assert error < 0.05 * target, f"{total} +- {error} is too uncertain to say anything"


def check_samples(model: GenerativeModel, n: int = 3) -> None:
    """Law 7: samples are integers in range, of the model's shape."""
    classes = model.spec.classes
    samples = model.sample(n, None if classes is None else torch.arange(n) % classes)
    assert samples.shape == (n, *model.spec.shape), samples.shape
    if model.spec.levels is not None:
        assert samples.dtype == torch.uint8
        assert int(samples.max()) < model.spec.levels
    else:
        assert samples.isfinite().all()


def check_frequencies(model: GenerativeModel, draws: int = 20_000) -> None:
    """Law 7: every image of a small space is drawn as often as an EXACT model says, within five standard errors."""
    images, spec = all_images(model.spec), model.spec
    with torch.no_grad():
        score = model.score(images)
        samples = model.sample(draws)
    assert score.kind == Kind.EXACT
    place = spec.levels ** torch.arange(spec.dims - 1, -1, -1)
    counts = torch.bincount((samples.long().flatten(1) * place).sum(1), minlength=len(images))
    expected = draws * score.nats.exp()
    wrong = ((counts - expected).abs() > 5 * (expected.sqrt() + 1)).nonzero().flatten().tolist()
    assert not wrong, f"image {wrong[0]} was drawn {counts[wrong[0]]} times, not {expected[wrong[0]]:.1f}"


@torch.no_grad()
def check_round_trip(model: GenerativeModel) -> None:
    """Law 5 for float32 flows: precise latents, and the reals they decode to, are those of a float64 copy, rounded once.

    For models with a flow over the data that draws no latents.
    """
    flow = flow_over_data(model)
    if flow is None or any(Kind.WEIGHT in transform.kind for transform in flow.transforms):
        return
    wide, encoded = copy.deepcopy(flow).double(), []
    for one in (flow, wide):
        x, y = _cast(random_batch(flow.spec, 8), one)
        torch.manual_seed(0)  # of Hutchinson's estimates
        encoded.append(one.encode(x, y, precise=True))
    for own, reference in zip(*encoded, strict=True):
        assert own.dtype == torch.float32, f"latents of a float32 model came as {own.dtype}"
        assert own.equal(reference.float()), "latents are not those of float64"
    decoded = []
    for one, latents in ((flow, encoded[0]), (wide, [z.double() for z in encoded[0]])):
        torch.manual_seed(1)
        decoded.append(one.decode_continuous(latents, y, precise=True))
    assert decoded[0].dtype == torch.float32, f"reals of a float32 model came as {decoded[0].dtype}"
    assert decoded[0].equal(decoded[1].float()), "reals are not those of float64"


def check_bijections(model: GenerativeModel) -> None:
    """Law 5 for every bijection that scoring runs, in whichever direction, each on the input it gets there."""
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, Bijection):
            module.register_forward_hook(lambda m, inputs, output, name=name: (seen.setdefault(name, (m, inputs)), None)[1])
            _watch_inverse(module, name, seen)
        if isinstance(module, Sequential):
            module.register_forward_hook(_each_part)
    model.score(*random_batch(model.spec, 2))
    for module, inputs in list(seen.values()):
        x, context = inputs[0], inputs[1] if len(inputs) > 1 else None
        check_bijection(module, x.detach(), context if context is None else context.detach())


def _each_part(sequence: Sequential, inputs: tuple, output: tuple) -> None:
    """Run each part by itself too, as a sequence may run several as one."""
    x, *context = inputs
    for part in sequence.parts:
        x, _ = part(x, *context)


def _watch_inverse(module: Bijection, name: str, seen: dict) -> None:
    """Posterior flows run backwards only: note what their inverse gave."""
    original = module.inverse_and_log_det

    def watched(z, context=None, *folded):
        x, log_det = original(z, context, *folded)
        seen.setdefault(name, (module, (x, context)))
        return x, log_det

    module.inverse_and_log_det = watched


def check_reload(model: GenerativeModel, twin: GenerativeModel) -> None:
    """Law 8: with the model's state, a twin waits for no first batch, and scoring changes nothing in it."""
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    twin.load_state_dict(saved)
    x, y = _cast(random_batch(model.spec, 8, seed=1), model)
    assert not initialize(twin.eval(), x, y), "a loaded model was initialised again"
    scores = []
    for one in (model, twin):
        torch.manual_seed(0)
        scores.append(one.score(x, y).nats)
    for name, value in twin.state_dict().items():
        assert torch.equal(value, saved[name]), f"scoring changed {name}"
    assert torch.equal(*scores), "a loaded model scores differently"


def check_swap(swap: Callable[..., AbstractContextManager], model: nn.Module) -> None:
    """``swap(model, average)`` puts the average in, and leaves the raw weights as they were, also after an error."""
    raw = {name: p.detach().clone() for name, p in model.named_parameters()}
    average = {name: value + 1 for name, value in raw.items()}

    def holds(weights: dict[str, Tensor]) -> bool:
        return all(torch.equal(p, weights[name]) for name, p in model.named_parameters())

    with swap(model, average):
        assert holds(average), "the average is not in use"
    assert holds(raw), "the raw weights did not come back"
    try:
        with swap(model, average):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert holds(raw), "the raw weights did not come back after an error"


def untrained(*overrides: str, shape=(1, 2, 2), levels=3) -> GenerativeModel:
    """The tiny float64 model of a composition, as ``train.py`` would build it."""
    return build_model(compose(*overrides, "debug=tiny", *shaped(shape, levels)), torch.float64)


def tiny(*overrides: str, scale: float = 0.1, **space) -> GenerativeModel:
    """The same, initialised and moved off its starting point."""
    return ready(untrained(*overrides, **space), scale)
