"""Tests of the tests: known mistakes, planted one at a time into real models, must break the law that is there to find them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.laws import check_normalized, tiny, widen


def assert_caught(law: Callable[[], None], plant: Callable[[], None], message: str | None = None) -> None:
    """``law`` holds; once the mistake is planted it fails, for the reason in ``message`` if that is given."""
    torch.manual_seed(0)
    law()
    plant()
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=message):
        law()


def normalized(*overrides: str, **space) -> None:
    check_normalized(widen(tiny(*overrides, **space)), draws=1500)
