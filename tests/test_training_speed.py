"""What makes PixelCNN++ fast and small changes no number: fused parts, checkpointing, memory format, compilation, half precision."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from models.autoregressive.pixelcnnpp import _Gate
from models.build import ConfigError
from models.contracts import DataSpec
from models.likelihoods.logistic import DiscretizedLogistic, MixtureLogistic
from models.nn.concat_elu import concat_elu, padded_concat_elu
from models.run import run
from tests.conftest import build_model, compose, run_program, shaped
from tests.laws import random_batch, ready

MARGINS = [(0, 0), (0, 1), (1, 2)]


def tiny(*overrides: str, shape=(3, 8, 8), dtype=torch.float32):
    """A tiny PixelCNN++ on coloured images, moved off its starting point, and a batch."""
    config = compose("model=pixelcnnpp", "debug=tiny", "likelihood.num_mixtures=2", *overrides, *shaped(shape, 256))
    model = ready(build_model(config, dtype), scale=0.05)
    return model, random_batch(model.spec, 4)[0]


def loss_and_gradients(model, x, seed=5):
    torch.manual_seed(seed)
    loss = -model(x).nats.mean()
    return loss, torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("margins", MARGINS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_padded_concat_elu_is_its_three_steps(layout, margins, dropout):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    outputs = []
    for step in (
        lambda: padded_concat_elu(x, margins, dropout),
        lambda: F.pad(F.dropout(concat_elu(x), dropout), (margins[0], 0, margins[1], 0)),
    ):
        torch.manual_seed(1)
        y = step()
        outputs.append((y, *torch.autograd.grad((y * torch.arange(y.numel()).view_as(y)).sum(), x)))
    for ours, plain in zip(*outputs, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-14, atol=1e-14)
    assert outputs[0][0].is_contiguous(memory_format=layout) and outputs[0][0].count_nonzero() > 50


def test_gate_is_a_gated_sum():
    x, h = (torch.randn(2, c, 3, 4, dtype=torch.float64, requires_grad=True) for c in (3, 6))
    torch.testing.assert_close(_Gate.apply(x, h), x + F.glu(h, 1))
    assert torch.autograd.gradcheck(_Gate.apply, (x, h))


@pytest.mark.parametrize("head", [MixtureLogistic(DataSpec((2, 1, 1), 5), 3, -7.0), DiscretizedLogistic(DataSpec((2, 1, 1), 5), -7.0)])
def test_gradient_of_a_table_of_masses(head):
    """Levels are broadcast against the parameters there, and gradients summed back."""
    torch.manual_seed(0)
    params = torch.randn(2, head.param_channels(), 1, 1, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[0, 4], [2, 3]])[:, :, None, None]
    assert torch.autograd.gradcheck(lambda p: head.log_pmf(p, x, 1), params)


def test_second_derivatives_of_a_logistic():
    head = DiscretizedLogistic(DataSpec((1, 1, 1), 5), -7.0)
    torch.manual_seed(0)
    params = torch.randn(5, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    x = torch.arange(5)[:, None, None, None]
    assert torch.autograd.gradgradcheck(lambda p: head.log_prob(p, x), params)


def kept_for_backward(model, x) -> int:
    """Bytes of distinct memory that the graph of a score holds, parameters aside."""
    sizes, own = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        nats = model(x).nats
    assert nats.requires_grad
    return sum(sizes.values())


def test_checkpointing_changes_memory_and_nothing_else():
    """Loss and gradients under dropout, bit by bit."""
    plain, x = tiny("model.net.num_resnet=2")
    lean, _ = tiny("model.net.num_resnet=2", "model.net.checkpoint=true")
    lean.load_state_dict(plain.state_dict())
    (loss, gradients), (lean_loss, lean_gradients) = (loss_and_gradients(model.train(), x) for model in (plain, lean))
    assert torch.equal(loss, lean_loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, lean_gradients, strict=True))
    assert not torch.equal(loss, loss_and_gradients(plain, x, seed=6)[0])
    assert kept_for_backward(lean, x) < 0.5 * kept_for_backward(plain, x)


def test_channels_last_is_kept_through_the_net_and_changes_no_number():
    model, x = tiny(dtype=torch.float64)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    (loss, gradients), (other_loss, other_gradients) = loss_and_gradients(model, x), loss_and_gradients(other, x)
    torch.testing.assert_close(loss, other_loss)
    for a, b in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(a, b)
    block = other.net.right.inner.after[0]
    seen = []
    block.register_forward_hook(lambda module, args, output: seen.extend((args[0], output)))
    other(x)
    assert all(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in seen) and len(seen) == 2


def test_half_precision_scores_the_same_bits_within_a_percent():
    model, x = tiny("model.net.num_filters=16")
    exact = model(x).nats
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x).nats
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0)


def test_compiles_as_one_graph_and_gives_the_same_numbers():
    """Without graph breaks; by a backend that runs the traced graph as it is, so that no compiler is needed."""
    for checkpoint in ("false", "true"):
        model, x = tiny("model.net.num_scales=1", f"model.net.checkpoint={checkpoint}", shape=(3, 4, 4), dtype=torch.float64)
        compiled = copy.deepcopy(model)
        compiled.compile(backend="aot_eager", fullgraph=True)
        (loss, gradients), (other_loss, other_gradients) = loss_and_gradients(model, x), loss_and_gradients(compiled, x)
        torch.testing.assert_close(loss, other_loss)
        for a, b in zip(gradients, other_gradients, strict=True):
            torch.testing.assert_close(a, b)


def test_dropout_by_bytes_keeps_its_share_and_its_gradient():
    """Compiled for a CPU, a byte decides on each value."""
    compiled = torch.compile(padded_concat_elu, backend="aot_eager", fullgraph=True)
    x = torch.rand(3, 5, 40, 41, dtype=torch.float64).add(0.5).requires_grad_()
    torch.manual_seed(2)
    y = compiled(x, (1, 2), 0.25)
    inner = y[:, :, 2:, 1:]
    kept = inner != 0
    torch.testing.assert_close(inner[kept], concat_elu(x)[kept] / 0.75)
    assert kept.double().mean().item() == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / kept.numel()) ** 0.5)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    slopes = torch.cat([torch.ones_like(x), -(-x).exp()], 1) * kept / 0.75
    torch.testing.assert_close(gradient, slopes[:, :5] + slopes[:, 5:])
    assert not torch.equal(y, compiled(x, (1, 2), 0.25))


def test_a_run_in_channels_last_half_precision_ends_and_is_judged(tmp_path):
    run = run_program("train.py", "debug=tiny", "trainer.channels_last=true", "trainer.precision=bf16-mixed", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    (results,) = tmp_path.glob("runs/*/results.json")
    records = json.loads(results.read_text())
    assert any(record["metric"] == "nll_bpd" and 0 < record["value"] < 20 for record in records)


def test_a_score_that_takes_gradients_is_not_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr("models.training.compile_scoring", lambda model, device: model.compile(backend="aot_eager"))
    config = compose("model=ffjord", "debug=tiny", "compile=true", f"runs_dir={tmp_path}")
    euler = {"_target_": "models.transforms.solvers.FixedSteps", "method": "euler", "num_steps": 1, "adjoint": False}
    config["model"]["architecture"]["step"]["flow"]["solver"] = euler  # so that there is little to trace
    with pytest.raises(ConfigError, match="takes gradients itself.* set compile=false"):
        run(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU, and there is no g++")
def test_a_compiled_run_ends_and_is_judged(tmp_path):
    run = run_program("train.py", "debug=tiny", "compile=true", cwd=tmp_path, timeout=1800)
    assert run.returncode == 0, run.stderr
    (results,) = tmp_path.glob("runs/*/results.json")
    records = json.loads(results.read_text())
    assert any(record["metric"] == "nll_bpd" and 0 < record["value"] < 20 for record in records)
