"""What the tests of the data files share."""

import numpy
import pytest
import torch

from models.contracts import DataSpec

RANDOM = numpy.random.RandomState(0)


def make(cls, root, shape, levels=256, classes=None, **rest):
    spec = DataSpec(shape, levels, classes)
    return cls(spec=spec, name="set", root=str(root), seed=1, batch_size=2, eval_batch_size=3, limit=None, **rest)


def message(call):
    """The error of ``call``, which must be one line."""
    with pytest.raises(ValueError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return content


def levels(*shape, high=256):
    return RANDOM.randint(0, high, shape, dtype=numpy.uint8)


def same(x, array):
    return torch.equal(x, torch.from_numpy(numpy.ascontiguousarray(array)))


def assert_integrity(load, path):
    """``load`` names ``path`` when it is truncated, altered and missing, and works again when it is put back."""
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:-9] + bytes(255 - b for b in whole[-9:])):
        path.write_bytes(broken)
        text = message(load)
        assert str(path) in text and "truncated or altered" in text and "get it again from" in text
    path.unlink()
    text = message(load)
    assert path.name.removesuffix(".gz") in text and "is missing under" in text and "LOGPX_DATA" in text
    path.write_bytes(whole)
    load()
