"""Mistakes planted into autoregressive nets and their caches: the laws find each."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from models.autoregressive import diagonal_lstm, masked_conv_cache, pixelcnnpp, pixelcnnpp_cache, pixelrnn, row_lstm, transformer
from models.nn.attention import CausalAttention
from models.nn.masked import MADE
from models.nn.masked_conv import MaskedConv2d
from tests.checks_causal import check_cache, check_causal
from tests.laws import check_bijections, tiny
from tests.mutations import assert_caught, normalized

# --- autoregressive nets -------------------------------------------------------------------------------------------------

LEAKS = pytest.mark.parametrize("shift", ["right_shift", "down_shift"])


@LEAKS
def test_a_net_that_sees_the_pixel_it_predicts_is_not_causal(shift, monkeypatch):
    def law():
        check_causal(tiny("model=pixelcnnpp", shape=(1, 4, 4)).net, (1, 4, 4))

    assert_caught(law, lambda: monkeypatch.setattr(pixelcnnpp, shift, lambda x: x), "is not before it")


@LEAKS
def test_a_net_that_sees_the_pixel_it_predicts_is_not_normalized(shift, monkeypatch):
    law = partial(normalized, "model=pixelcnnpp", scale=0.3)
    assert_caught(law, lambda: monkeypatch.setattr(pixelcnnpp, shift, lambda x: x), "probabilities sum to")


@pytest.mark.parametrize("slot", ["posterior=iaf", "prior=flow"])
def test_a_leaky_mask(slot, monkeypatch):
    """An output that sees the input of its own place."""
    original = MADE.__init__

    def leaky(self, order, hidden, outputs, *rest):
        original(self, order, hidden, outputs, *rest)
        self.last.mask.fill_(1.0)

    law = lambda: check_bijections(tiny("model=vae", slot, "model.latent_dim=3", scale=0.3))  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(MADE, "__init__", leaky), "not close")


def forgets_a_row(monkeypatch) -> None:
    """A convolution over rows keeps the second window it was given."""
    write = pixelcnnpp_cache.RowConv.write

    def stale(self, row, column=0):
        self.count = getattr(self, "count", 0) + 1
        if self.count < 3:
            write(self, row, column)

    monkeypatch.setattr(pixelcnnpp_cache.RowConv, "write", stale)


def forgets_a_pixel(monkeypatch) -> None:
    """A convolution over pixels is not told of the last column."""
    write = pixelcnnpp_cache.PixelConv.write

    def stale(self, pixel, column):
        if column < self.row.shape[1] // self.channels - self.margin - 1 or column == 0:
            write(self, pixel, column)

    monkeypatch.setattr(pixelcnnpp_cache.PixelConv, "write", stale)


def forgets_what_is_above(monkeypatch) -> None:
    """The row above is taken once and for all."""
    begin_row = pixelcnnpp_cache.PixelConv.begin_row

    def stale(self, sides=0.0):
        if not hasattr(self, "known"):
            begin_row(self, sides)

    monkeypatch.setattr(pixelcnnpp_cache.PixelConv, "begin_row", stale)


def forgets_a_coarse_pixel(monkeypatch) -> None:
    """An enlarged pixel stays from the row before."""
    write = pixelcnnpp_cache.PixelGrow.write

    def stale(self, pixel, column):
        if self.pixels[column] is None:
            write(self, pixel, column)

    monkeypatch.setattr(pixelcnnpp_cache.PixelGrow, "write", stale)


@pytest.mark.parametrize("plant", [forgets_a_row, forgets_a_pixel, forgets_what_is_above, forgets_a_coarse_pixel])
def test_a_stale_cache(plant, monkeypatch):
    model = tiny("model=pixelcnnpp", shape=(1, 8, 8), levels=17)
    reals = 2 * torch.rand(2, 1, 8, 8, dtype=torch.float64) - 1
    assert_caught(lambda: check_cache(model.net, reals), lambda: plant(monkeypatch), "not close")


# --- masked convolutions --------------------------------------------------------------------------------------------------

MASKED = pytest.mark.parametrize("model", ["model=pixelcnn", "model=gated_pixelcnn"])
WIDE = ["model.net.width=24", "model.net.head_width=48"]


def shows_the_pixel_itself(monkeypatch) -> None:
    """Mask B in the first layer."""
    init = MaskedConv2d.__init__
    monkeypatch.setattr(MaskedConv2d, "__init__", lambda self, inputs, outputs, kernel, mask: init(self, inputs, outputs, kernel, "B"))


def shows_later_channels(monkeypatch) -> None:
    """Mask B lets the green features see the blue ones."""
    init = MaskedConv2d.__init__

    def swapped(self, inputs, outputs, kernel, mask):
        init(self, inputs, [min(owner + 1, 2) for owner in outputs] if mask == "B" else outputs, kernel, mask)

    monkeypatch.setattr(MaskedConv2d, "__init__", swapped)


@MASKED
@pytest.mark.parametrize("plant", [shows_the_pixel_itself, shows_later_channels])
def test_wrong_masks(model, plant, monkeypatch):
    with monkeypatch.context() as patch:
        law = lambda: check_causal(tiny(model, *WIDE, shape=(3, 2, 2)).net, (3, 2, 2), sees_all=False)  # noqa: E731
        assert_caught(law, lambda: plant(patch), "is not before it")
    law = partial(normalized, model, *WIDE, shape=(3, 1, 1), scale=0.3)
    assert_caught(law, lambda: plant(monkeypatch), "probabilities sum to")


def skips(cls, name, skipped):
    """A method that does nothing at the calls whose number or arguments ``skipped`` names."""

    def plant(monkeypatch):
        original, calls = getattr(cls, name), {}

        def stale(self, *args):
            calls[id(self)] = calls.get(id(self), 0) + 1
            return None if skipped(calls[id(self)], *args) else original(self, *args)

        monkeypatch.setattr(cls, name, stale)

    return plant


@MASKED
@pytest.mark.parametrize(
    "plant",
    [
        skips(masked_conv_cache.Spatial, "end_pixel", lambda call, column: column == 5),
        skips(masked_conv_cache.Spatial, "begin_pixel", lambda call, column: call == 7),
        skips(masked_conv_cache.Rows, "write", lambda call, row: call == 3),
    ],
    ids=["a pixel", "the pixels to the left", "a row"],
)
def test_a_stale_cache_of_masked_convolutions(model, plant, monkeypatch):
    net = tiny(model, *WIDE, shape=(1, 8, 8), levels=17).net
    reals = 2 * torch.rand(2, 1, 8, 8, dtype=torch.float64) - 1
    assert_caught(lambda: check_cache(net, reals), lambda: plant(monkeypatch), "not close")


def test_a_direction_from_the_right_that_stays_in_its_row(monkeypatch):
    """Not moved down, its states have seen what lies right of the pixel."""

    def law():
        check_causal(tiny("model=pixelrnn_diagonal", shape=(1, 4, 4)).net, (1, 4, 4), sees_all=False)

    with monkeypatch.context() as patch:
        assert_caught(law, lambda: patch.setattr(diagonal_lstm, "down_shift", lambda x: x), "is not before it")
    law = partial(normalized, "model=pixelrnn_diagonal", scale=0.5)
    assert_caught(law, lambda: monkeypatch.setattr(diagonal_lstm, "down_shift", lambda x: x), "probabilities sum to")


@pytest.mark.parametrize(
    "model, plant",
    [
        ("model=pixelrnn_row", skips(row_lstm.RowStates, "begin_row", lambda call, row: row == 3)),
        ("model=pixelrnn_row", skips(row_lstm.RowStates, "step", lambda call, *rest: call == 9)),
        ("model=pixelrnn_diagonal", skips(diagonal_lstm.DiagonalStates, "_run_from_the_right", lambda call: call == 3)),
        ("model=pixelrnn_diagonal", skips(diagonal_lstm.DiagonalStates, "end_pixel", lambda call, column: column == 3)),
        ("model=pixelrnn_diagonal", skips(diagonal_lstm.DiagonalStates, "step", lambda call, *rest: call == 9)),
        ("model=pixelrnn_diagonal", skips(pixelrnn.Cache, "_visit_margin", lambda call: call == 3)),
    ],
    ids=["the row above", "a state", "the other direction", "a pixel", "a state on the diagonal", "the margin"],
)
def test_a_stale_state(model, plant, monkeypatch):
    net = tiny(model, scale=0.3, shape=(1, 5, 5), levels=17).net
    reals = 2 * torch.rand(2, 1, 5, 5, dtype=torch.float64) - 1
    assert_caught(lambda: check_cache(net, reals), lambda: plant(monkeypatch), "not close")


# --- the transformer -----------------------------------------------------------------------------------------------------


def transformer_in_blocks():
    return tiny("model=image_transformer", "model.net.block=4", shape=(1, 16, 1), scale=0.3).net


def is_causal() -> None:
    check_causal(transformer_in_blocks(), (1, 16, 1), sees_all=False)


@pytest.mark.parametrize("law, message", [
    (is_causal, "is not before it"), (partial(normalized, "model=image_transformer", scale=0.3), "probabilities sum to"),
])  # fmt: skip
def test_a_transformer_that_forgets_the_shift(law, message, monkeypatch):
    assert_caught(law, lambda: monkeypatch.setattr(transformer, "shift", lambda values: values), message)


def test_attention_that_sees_the_rest_of_its_block(monkeypatch):
    original = CausalAttention.__init__

    def leaky(self, *sizes):
        original(self, *sizes)
        self.mask.fill_(True)

    assert_caught(is_causal, lambda: monkeypatch.setattr(CausalAttention, "__init__", leaky), "is not before it")


def keeps_an_old_key(memory, before, position):
    if position == 2:
        memory[0, :, 2] = memory[0, :, 1]


def forgets_to_move_a_block(memory, before, position):
    if position == 12:
        memory[:, :, :4] = before[:, :, :4]


@pytest.mark.parametrize("spoil", [keeps_an_old_key, forgets_to_move_a_block])
def test_a_stale_memory_of_keys(spoil, monkeypatch):
    step = CausalAttention.step

    def stale(self, x, memory, position):
        before = memory.clone()
        output = step(self, x, memory, position)
        spoil(memory, before, position)
        return output

    net, reals = transformer_in_blocks(), torch.randn(2, 1, 16, 1, dtype=torch.float64)
    assert_caught(lambda: check_cache(net, reals), lambda: monkeypatch.setattr(CausalAttention, "step", stale), "not close")
