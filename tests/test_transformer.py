from functools import partial

import pytest
import torch
from torch import nn

from models.autoregressive.model import Autoregressive
from models.autoregressive.orders import Random, Raster
from models.autoregressive.transformer import Transformer
from models.contracts import DataSpec
from models.likelihoods.categorical import Categorical
from models.likelihoods.logistic import MixtureLogistic
from tests.checks_causal import check_cache, check_causal, dependence, tokens
from tests.laws import check_frequencies, check_normalized, disturb, random_batch, ready

SIZES = {"width": 8, "num_layers": 2, "num_heads": 2, "expansion": 2, "dropout": 0.5, "block": None, "checkpoint": False}


def build(shape, groups=1, classes=None, outputs=5, **arguments):
    """A float64 net in eval mode, moved off its initial values."""
    torch.manual_seed(0)
    return disturb(Transformer(shape, outputs * groups, groups, classes, **SIZES | arguments).double().eval())


def build_model(spec, head, order=None, **arguments):
    likelihood = MixtureLogistic(spec, 3, -7.0) if head == "mixture" else Categorical(spec)
    torch.manual_seed(0)
    net, order = partial(Transformer, **SIZES | arguments), order or Raster(spec, 1, False)
    return ready(Autoregressive(spec, net, order, likelihood, conditional=spec.classes is not None).double())


SEQUENCES = [((1, 4, 4), 1), ((3, 3, 5), 1), ((3, 3, 3), 3), ((2, 1, 7), 2), ((1, 1, 11), 1)]


@pytest.mark.parametrize("shape, groups", SEQUENCES)
def test_full_attention_sees_every_earlier_token(shape, groups):
    check_causal(build(shape, groups, num_layers=1), shape)


@pytest.mark.parametrize("shape, groups", SEQUENCES)
@pytest.mark.parametrize("block, num_layers", [(4, 1), (4, 2), (5, 1), (1, 3), (8, 1), (100, 1)])
def test_local_attention_sees_its_blocks_and_nothing_else(shape, groups, block, num_layers):
    found = dependence(build(shape, groups, block=block, num_layers=num_layers), shape)
    i, j = torch.arange(len(found))[:, None], torch.arange(len(found))
    assert torch.equal(found, (j < i) & (j >= (i // block - num_layers) * block - 1))


@pytest.mark.parametrize("shape, groups", SEQUENCES)
@pytest.mark.parametrize("block", [None, 1, 3, 4, 8, 100])
def test_cached_parameters_equal_the_full_pass(shape, groups, block):
    net, x = build(shape, groups, classes=3, block=block), torch.randn(4, *shape, dtype=torch.float64)
    y = torch.arange(4) % 3
    check_cache(net, x, y)
    length = shape[1] * shape[2] * groups
    assert net.start(4, y).memories[0].shape == (2, 4 * 2, min(length, 2 * (block or length)), 4)


@pytest.mark.parametrize("head, block", [("mixture", None), ("categorical", None), ("categorical", 4), ("mixture", 4)])
def test_cached_samples_and_completions_equal_the_uncached(head, block, monkeypatch):
    model = build_model(DataSpec((3, 3, 5), 17), head, block=block)
    x, _ = random_batch(model.spec, 4)

    def draw():
        torch.manual_seed(3)
        return model.sample(4, temperature=0.8), model.complete(x, 7)

    cached = draw()
    monkeypatch.setattr(model.net, "start", lambda n, y: None)
    assert all(torch.equal(*pair) for pair in zip(cached, draw()))
    assert torch.equal(cached[1].flatten(2)[:, :, :7], x.flatten(2)[:, :, :7]) and not torch.equal(cached[1], x)


@torch.no_grad()
def reference(net: Transformer, x, y, num_heads, seen):
    """The net's output by PyTorch's own encoder layer with a mask [L, L], its inputs put together one token at a time."""
    groups, values = net.groups, tokens(x, net.groups)
    pixels = range(x.shape[2] * x.shape[3]) if net.permutation is None else net.permutation.tolist()
    rows = []
    for i in range(values.shape[1]):
        row = net.target.pixel[pixels[i // groups]] + net.target.channel[i % groups] + net.label.weight[y]
        if i == 0:
            row = row + net.first
        else:
            row = row + net.source.pixel[pixels[(i - 1) // groups]] + net.source.channel[(i - 1) % groups]
            row = row + values[:, i - 1] @ net.value[(i - 1) % groups]
        rows.append(row)
    h = torch.stack(rows, 1)
    width, hidden = h.shape[2], net.blocks[0].mlp[0].out_features
    for block in net.blocks:
        layer = nn.TransformerEncoderLayer(width, num_heads, hidden, 0.5, "gelu", batch_first=True, norm_first=True)
        layer.double().eval()
        for theirs, ours in zip((layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias), block.attention.qkv.parameters()):
            theirs.copy_(ours.unflatten(0, (num_heads, 3, -1)).transpose(0, 1).flatten(0, 2))
        for theirs, ours in [
            (layer.self_attn.out_proj, block.attention.out), (layer.linear1, block.mlp[0]), (layer.linear2, block.mlp[2]),
            (layer.norm1, block.norm_attention), (layer.norm2, block.norm_mlp),
        ]:  # fmt: skip
            theirs.load_state_dict(ours.state_dict())
        h = layer(h, src_mask=~seen)
    return net.head(net.norm(h))


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("groups, block", [(1, None), (3, None), (1, 4), (3, 4)])
def test_agrees_with_the_encoder_layer_of_pytorch(groups, block, permuted):
    shape = (3, 3, 5)
    net, x, y = build(shape, groups, classes=2, block=block), torch.randn(2, *shape, dtype=torch.float64), torch.tensor([0, 1])
    if permuted:
        net.select(torch.randperm(15), 0)
    i, j = torch.arange(15 * groups)[:, None], torch.arange(15 * groups)
    seen = (j <= i) & (j // (block or 1000) >= i // (block or 1000) - 1)
    torch.testing.assert_close(tokens(net(x, y), groups), reference(net, x, y, 2, seen), rtol=0, atol=1e-10)


@pytest.mark.parametrize("head, block", [("categorical", 1), ("categorical", None), ("mixture", 1)])
def test_probabilities_sum_to_one(head, block):
    check_normalized(build_model(DataSpec((2, 1, 2), 3, 2), head, block=block), y=1)


@pytest.mark.parametrize("num", [1, 3])
def test_random_orders(num):
    spec = DataSpec((1, 2, 2), 3)
    model = build_model(spec, "categorical", Random(spec, num, False, seed=1))
    check_normalized(model)
    torch.manual_seed(0)
    check_frequencies(model)


def test_checkpointing_changes_memory_alone():
    """The same loss and gradients, also with dropout, from less than a third of the bytes."""
    x = torch.randn(4, 1, 6, 6, dtype=torch.float64)
    results = []
    for checkpoint in (False, True):
        net, kept = build((1, 6, 6), num_layers=6, expansion=4, checkpoint=checkpoint).train(), []
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            loss = net(x).square().mean()
        weights = {p.data_ptr() for p in net.parameters()}
        size = sum(t.nbytes for t in kept if t.data_ptr() not in weights)
        loss.backward()
        results.append((loss, [p.grad for p in net.parameters()], size))
    (plain, gradients, bytes_plain), (again, same, bytes_again) = results
    assert torch.equal(plain, again) and all(torch.equal(*pair) for pair in zip(gradients, same))
    assert bytes_again < bytes_plain / 3


def test_bfloat16_keeps_the_score():
    """Under autocast a score stays within 1 % of the float32 one, and the cache still samples."""
    model = build_model(DataSpec((3, 4, 4), 256), "mixture").float()
    x, _ = random_batch(model.spec, 16)
    exact = model.score(x).nats
    with torch.autocast("cpu", torch.bfloat16):
        nats = model.score(x).nats
        assert model.sample(2).shape == (2, 3, 4, 4)
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats, exact, rtol=1e-2, atol=0)


def test_dropout_is_for_training():
    net, x = build((1, 4, 4)), torch.randn(2, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


def test_impossible_sizes():
    with pytest.raises(ValueError, match="num_heads must divide"):
        build((1, 2, 2), num_heads=3)
    with pytest.raises(ValueError, match="block must be at least 1"):
        build((1, 2, 2), block=0)
