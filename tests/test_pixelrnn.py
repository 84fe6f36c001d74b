"""PixelRNN: its recurrences against torch's LSTM cell pixel by pixel, its contexts by Jacobian, its cached sampling."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models.autoregressive.diagonal_lstm import DiagonalBiLSTM
from models.autoregressive.model import Autoregressive
from models.autoregressive.orders import Raster
from models.autoregressive.pixelrnn import PixelRNN
from models.autoregressive.row_lstm import RowLSTM
from models.contracts import DataSpec
from models.likelihoods.bernoulli import Bernoulli
from models.likelihoods.categorical import Categorical
from models.likelihoods.gaussian import DiscretizedGaussian
from models.likelihoods.logistic import DiscretizedLogistic, MixtureLogistic
from models.nn.lstm_cell import lstm_cell, zero_states
from tests.checks_causal import check_cache, check_causal, dependence
from tests.laws import check_normalized, check_samples, check_score, disturb

ROW, DIAGONAL = partial(RowLSTM, kernel=3), partial(DiagonalBiLSTM)
BOTH = pytest.mark.parametrize("lstm", [ROW, DIAGONAL], ids=["row", "diagonal"])


def build(lstm, shape, groups=1, classes=None, num_layers=1, width=24, head_width=48, first_kernel=3, out_channels=6):
    torch.manual_seed(0)
    net = PixelRNN(shape, out_channels, groups, classes, lstm, num_layers, width, head_width, first_kernel)
    return disturb(net.double().eval(), 0.1)


def model_of(lstm, head, spec, conditional=False, width=6):
    torch.manual_seed(0)
    net = partial(PixelRNN, lstm=lstm, num_layers=2, width=width, head_width=12, first_kernel=3)
    return disturb(Autoregressive(spec, net, Raster(spec, 1, False), head(spec), conditional).double().eval(), 0.2)


# --- the recurrences -----------------------------------------------------------------------------------------------------


def torch_cell(matrix, bias):
    """torch's LSTM cell with our gates o, f, i, g = x @ matrix + bias; its states enter as part of its input."""
    cell = torch.nn.LSTMCell(*matrix.shape[:1], matrix.shape[1] // 4, dtype=torch.float64)
    output, forget, write, content = torch.cat([matrix, bias[None]]).T.chunk(4)
    rows = torch.cat([write, forget, content, output])  # torch's order
    with torch.no_grad():
        cell.weight_ih.copy_(rows[:, :-1])
        cell.bias_ih.copy_(rows[:, -1])
        cell.weight_hh.zero_()
        cell.bias_hh.zero_()
    return cell


@torch.no_grad()
def pixel_by_pixel(cell, x, labels, taps, neighbours, carried):
    """States [B, h, H, W]: pixel (r, c) reads x there and at the ``taps``, and states at the ``neighbours``, by offsets."""
    batch, _, height, width = x.shape
    size = cell.hidden_size
    states = {}

    def state(row, column, which):
        return states[row, column][which] if (row, column) in states else torch.zeros(batch, size, dtype=x.dtype)

    def pixel(row, column):
        inside = 0 <= row < height and 0 <= column < width
        return x[:, :, row, column] if inside else torch.zeros_like(x[:, :, 0, 0])

    for row, column in product(range(height), range(width)):
        inputs = [pixel(row + r, column + c) for r, c in taps]
        inputs += [state(row + r, column + c, 0) for r, c in neighbours]
        previous = state(row + carried[0], column + carried[1], 1)
        states[row, column] = cell(torch.cat([*inputs, labels], 1), (torch.zeros(batch, size, dtype=x.dtype), previous))
    rows = [torch.stack([states[row, column][0] for column in range(width)], 2) for row in range(height)]
    return torch.stack(rows, 2)


def a_layer(lstm, shape, classes=3):
    torch.manual_seed(0)
    layer = disturb(lstm(shape=shape, features=[0] * 5, cells=[0] * 4, classes=classes).double())
    x = torch.randn(2, 5, shape[1], shape[2] + layer.margin, dtype=torch.float64)
    return layer, x, torch.tensor([1, 0]), torch.eye(classes, dtype=torch.float64)[[1, 0]]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", [(5, 1), (1, 4), (4, 6)])
def test_row_lstm_is_torchs_cell_at_every_pixel(size, kernel):
    """On images one pixel wide it is an ordinary LSTM over rows."""
    layer, x, y, one_hot = a_layer(partial(RowLSTM, kernel=kernel), (1, *size))
    conv, margin = layer.input_to_state, kernel // 2
    taps = [(0, c) for c in range(-margin, 1)]
    matrix = torch.cat([*conv.weight[:, :, 0].permute(2, 1, 0), layer.state_to_state, layer.label.weight])
    neighbours = [(-1, c) for c in range(-margin, margin + 1)]
    expected = pixel_by_pixel(torch_cell(matrix, conv.bias), x, one_hot, taps, neighbours, carried=(-1, 0))
    torch.testing.assert_close(layer(x, y), expected)


@pytest.mark.parametrize("size", [(1, 5), (5, 1), (4, 6), (6, 3)])
def test_diagonal_bilstm_is_torchs_cell_at_every_pixel(size):
    """On images of one row it is an ordinary LSTM over columns, and the other direction enters nowhere."""
    layer, x, y, one_hot = a_layer(DIAGONAL, (1, *size))

    def direction(side, x):
        conv, label = layer.input_to_state[side], layer.label.weight.chunk(2, 1)[side]
        matrix = torch.cat([conv.weight[:, :, 0, 0].T, layer.state_to_state[side], label])
        return pixel_by_pixel(torch_cell(matrix, conv.bias), x, one_hot, [(0, 0)], [(-1, 0), (0, -1)], carried=(0, -1))

    expected = direction(0, x)
    expected[:, :, 1:] += direction(1, x.flip(3)).flip(3)[:, :, :-1]
    torch.testing.assert_close(layer(x, y), expected)


class Count(TorchDispatchMode):
    """How many operations run."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += 1
        return function(*args, **(kwargs or {}))


def operations(lstm, height, width):
    net = build(lstm, (1, height, width))
    with Count() as count:
        net(torch.randn(2, 1, height, width, dtype=torch.float64)).sum().backward()
    return count.number


def test_loops_run_over_rows_and_over_diagonals_only():
    assert operations(ROW, 3, 4) == operations(ROW, 3, 9)
    a, b, c = (operations(DIAGONAL, *size) for size in ((3, 4), (3, 7), (6, 7)))
    assert b - a == c - b > 0


def test_the_cell_is_summed_in_float32_where_gates_have_half_precision():
    gates = torch.randn(3, 8).bfloat16()
    hidden, cell = lstm_cell(gates, zero_states(gates, 3, 2)[1])
    assert hidden.dtype == torch.bfloat16 and cell.dtype == torch.float32


@BOTH
def test_half_precision_keeps_the_score(lstm):
    model = model_of(lstm, Categorical, DataSpec((1, 6, 6), 4)).float()
    x = torch.randint(4, (8, 1, 6, 6), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(x).nats
    torch.testing.assert_close(rounded.float(), model(x).nats, rtol=0.01, atol=0)


# --- contexts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, groups", [((1, 4, 9), 1), ((1, 1, 12), 1), ((1, 6, 1), 1), ((3, 3, 5), 3), ((2, 3, 5), 1)])
def test_one_diagonal_layer_sees_every_earlier_pixel(shape, groups):
    check_causal(build(DIAGONAL, shape, groups, width=48, head_width=96), shape)


def test_without_the_margin_the_end_of_the_row_above_is_out_of_sight():
    """What the empty column is for: only features to the right of a pixel or below it have seen it."""
    net, shape = build(DIAGONAL, (1, 3, 7), num_layers=2), (1, 3, 7)
    first = net.first.forward
    net.first.forward = lambda x: torch.cat([first(x)[..., :7], first(torch.zeros_like(x))[..., 7:]], 3)
    with pytest.raises(AssertionError, match=r"output 7 does not see the earlier pixel 6 \(10 such pairs\)"):
        check_causal(net, shape)


@pytest.mark.parametrize("kernel, first_kernel, height, width", [(3, 3, 5, 14), (3, 5, 4, 14), (5, 3, 4, 16), (1, 3, 4, 7)])
def test_one_row_layer_sees_a_triangle(kernel, first_kernel, height, width):
    """States widen by m on each side from row to row; a feature is read by the states up to m to its right."""
    net = build(partial(RowLSTM, kernel=kernel), (1, height, width), first_kernel=first_kernel)
    m, k = kernel // 2, first_kernel // 2

    def context(row, column):
        for up in range(row + 1):
            for feature in range(max(0, column - (up + 1) * m), min(width - 1, column + up * m) + 1):
                yield from ((row - up, feature - left) for left in range(1, k + 1))
                yield from ((row - up - above, feature + side) for above in range(1, k + 1) for side in range(-k, k + 1))

    pixels = list(product(range(height), range(width)))
    expected = torch.tensor([[pixel in seen for pixel in pixels] for seen in (set(context(*place)) for place in pixels)])
    assert torch.equal(dependence(net, (1, height, width)), expected)
    assert not expected[-1, : width - 1].all(), "the triangle leaves no pixel out here"


# --- cached sampling -----------------------------------------------------------------------------------------------------

SPACES = [
    ((1, 4, 5), 1, None), ((3, 4, 3), 3, 2), ((3, 3, 4), 1, 3), ((2, 1, 5), 2, None), ((2, 5, 1), 2, 2), ((1, 2, 2), 1, None),
]  # fmt: skip


@pytest.mark.parametrize("num_layers, first_kernel", [(1, 3), (3, 5)])
@pytest.mark.parametrize("shape, groups, classes", SPACES)
@pytest.mark.parametrize("lstm", [ROW, partial(RowLSTM, kernel=5), partial(RowLSTM, kernel=1), DIAGONAL])
def test_cached_parameters_equal_the_full_pass(lstm, shape, groups, classes, num_layers, first_kernel):
    net = build(lstm, shape, groups, classes, num_layers, width=7, head_width=9, first_kernel=first_kernel)
    y = None if classes is None else torch.arange(3) % classes
    check_causal(net, shape, None if y is None else y[:1], sees_all=False)
    check_cache(net, torch.randn(3, *shape, dtype=torch.float64), y)


@BOTH
def test_cached_samples_and_completions_equal_the_uncached(lstm, monkeypatch):
    model = model_of(lstm, Categorical, DataSpec((3, 4, 5), 17, 3), conditional=True)
    x, y = torch.randint(17, (4, 3, 4, 5), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])

    def draw():
        torch.manual_seed(3)
        return model.sample(4, y, temperature=0.8), model.complete(x, 11, y)

    cached = draw()
    monkeypatch.setattr(model.net, "start", lambda n, y: None)
    for one, other in zip(cached, draw()):
        assert torch.equal(one, other)
    assert torch.equal(cached[1].flatten(2)[:, :, :11], x.flatten(2)[:, :, :11])


@BOTH
def test_all_steps_do_the_arithmetic_of_one_pass(lstm):
    """The check of the cache is one pass and all steps."""
    net, x = build(lstm, (3, 6, 6), groups=3, num_layers=2, first_kernel=7), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    counts = []
    for run in (net, partial(check_cache, net)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(x)
        counts.append(counter.get_total_flops())
    assert 1.5 < counts[1] / counts[0] < 2.05


# --- the model -----------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "head",
    [
        Bernoulli,
        Categorical,
        partial(DiscretizedLogistic, min_log_scale=-7.0),
        partial(DiscretizedGaussian, min_log_scale=-7.0),
        partial(MixtureLogistic, num_mixtures=2, min_log_scale=-7.0),
    ],
    ids=["bernoulli", "categorical", "discretized_logistic", "discretized_gaussian", "mixture_logistic"],
)
def test_every_head(lstm, head):
    """On colour images its probabilities sum to one; a channel sees those before it through the net, or through the head."""
    check_normalized(model_of(lstm, head, DataSpec((3, 2, 1), 2, 2), conditional=True), y=1)
    model = model_of(lstm, head, DataSpec((3, 5, 4), 2 if head is Bernoulli else 256))
    check_score(model)
    check_samples(model)


@BOTH
def test_one_long_row(lstm):
    model = model_of(lstm, Bernoulli, DataSpec((1, 1, 180), 2))
    check_score(model)
    check_samples(model)


@BOTH
def test_labels_change_the_score(lstm):
    model = model_of(lstm, Categorical, DataSpec((1, 4, 4), 4, 3), conditional=True)
    x, y = torch.randint(4, (8, 1, 4, 4), dtype=torch.uint8), torch.arange(8) % 3
    assert (model(x, y).nats - model(x, (y + 1) % 3).nats).abs().min() > 1e-6


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_layers": 0}, "num_layers of at least 1"),
        ({"first_kernel": 1}, "first_kernel of at least 3"),
        ({"first_kernel": 4}, "odd size"),
        ({"lstm": partial(RowLSTM, kernel=2)}, "odd size"),
        ({"width": 2}, "cannot be shared among 3"),
    ],
)
def test_sizes_are_checked(change, message):
    arguments = {"lstm": ROW, "num_layers": 1, "width": 6, "head_width": 6, "first_kernel": 3} | change
    with pytest.raises(ValueError, match=message):
        PixelRNN((3, 4, 4), 6, 3, None, **arguments)
