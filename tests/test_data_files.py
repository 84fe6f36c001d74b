"""The documented file formats on small files made here, and the one line for a missing, truncated or altered one."""

import gzip
import hashlib
import pickle

import numpy
import pytest
import torch
from checks_data import RANDOM, assert_integrity, levels, make, message, same, write
from scipy.io import savemat

from datamodules.base import Split
from datamodules.caltech101_silhouettes import Caltech101Silhouettes
from datamodules.cifar10 import CIFAR10
from datamodules.freyfaces import FreyFaces
from datamodules.mnist import MNIST, FashionMNIST, ThresholdedMNIST
from datamodules.mnist_static import StaticMNIST
from datamodules.omniglot import Omniglot
from datamodules.svhn import SVHN
from datamodules.uci_binary import UCIBinary


@pytest.mark.parametrize("cls", [MNIST, FashionMNIST])
def test_mnist(cls, tmp_path, monkeypatch):
    images = {"train": levels(12, 28, 28), "t10k": levels(5, 28, 28)}
    labels = {"train": levels(12, high=10), "t10k": levels(5, high=10)}
    md5 = {}
    for part in images:
        for kind, array, header in (("images-idx3", images[part], 16), ("labels-idx1", labels[part], 8)):
            name = f"{part}-{kind}-ubyte.gz"
            packed = write(tmp_path / cls.published / "raw" / name, gzip.compress(bytes(header) + array.tobytes()))
            md5[name] = hashlib.md5(packed).hexdigest()
    assert set(md5) == set(cls.md5)
    monkeypatch.setattr(cls, "md5", md5)
    data = make(cls, tmp_path, (1, 28, 28), classes=10, val_size=4, download=True)
    assert same(data.split("train").x, images["train"][:8, None]) and same(data.split("val").x, images["train"][8:, None])
    assert same(data.split("test").x, images["t10k"][:, None]) and data.split("test").y.tolist() == labels["t10k"].tolist()
    path = tmp_path / cls.published / "raw" / "t10k-images-idx3-ubyte.gz"
    assert_integrity(lambda: make(cls, tmp_path, (1, 28, 28), val_size=4, download=False).split("test"), path)


def test_threshold(tmp_path, monkeypatch):
    grey = torch.tensor([0, 127, 128, 255], dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 1, 28, 28)
    monkeypatch.setattr(MNIST, "read", lambda self, part: Split(grey))
    data = make(ThresholdedMNIST, tmp_path, (1, 28, 28), levels=2, val_size=0, download=False)
    assert data.split("test").x[:, 0, 0, 0].tolist() == [0, 0, 1, 1]


def test_download_runs_only_where_files_are_missing(tmp_path, monkeypatch):
    class Fetched(CIFAR10):
        md5 = {"data_batch_1": "", "test_batch": ""}

        def _fetch(self):
            for name in ("data_batch_1", "test_batch"):
                batch = pickle.dumps({"data": levels(3, 3072), "labels": [0, 1, 2]})
                self.md5[name] = hashlib.md5(write(self.root / "cifar-10-batches-py" / name, batch)).hexdigest()

    rest = {"val_size": 1, "flip": False, "download": True}
    assert make(Fetched, tmp_path, (3, 32, 32), **rest).num_examples("test") == 3
    monkeypatch.setattr(Fetched, "_fetch", lambda self: pytest.fail("fetched again"))
    assert make(Fetched, tmp_path, (3, 32, 32), **rest).num_examples("train") == 2


def test_download_that_fails_is_one_line(tmp_path, monkeypatch):
    def offline(self):
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr(SVHN, "_fetch", offline)
    text = message(lambda: make(SVHN, tmp_path / "new", (3, 32, 32), val_size=0, download=True).split("test"))
    assert "could not be downloaded (Name or service not known)" in text and "LOGPX_DATA" in text


@pytest.mark.parametrize("packed", [True, False])
def test_static_mnist(packed, tmp_path, monkeypatch):
    arrays = {"train": levels(6, 784, high=2), "valid": levels(3, 784, high=2), "test": levels(4, 784, high=2)}
    sha256 = {}
    for part, array in arrays.items():
        text = "".join(" ".join(map(str, row)) + "\n" for row in array).encode()
        sha256[part] = hashlib.sha256(text).hexdigest()
        name = f"binarized_mnist_{part}.amat" + (".gz" if packed else "")
        write(tmp_path / "BinarizedMNIST" / name, gzip.compress(text) if packed else text)
    monkeypatch.setattr(StaticMNIST, "sha256", sha256)
    data = make(StaticMNIST, tmp_path, (1, 28, 28), levels=2)
    for split, part in (("train", "train"), ("val", "valid"), ("test", "test")):
        assert same(data.split(split).x, arrays[part].reshape(-1, 1, 28, 28))
    path = tmp_path / "BinarizedMNIST" / ("binarized_mnist_test.amat" + (".gz" if packed else ""))
    assert_integrity(lambda: make(StaticMNIST, tmp_path, (1, 28, 28), levels=2).split("test"), path)


def test_cifar10(tmp_path, monkeypatch):
    batches = {name: {"data": levels(4, 3072), "labels": RANDOM.randint(0, 10, 4).tolist()} for name in CIFAR10.md5}
    written = {name: write(tmp_path / "cifar-10-batches-py" / name, pickle.dumps(batch)) for name, batch in batches.items()}
    monkeypatch.setattr(CIFAR10, "md5", {name: hashlib.md5(content).hexdigest() for name, content in written.items()})
    rest = {"val_size": 3, "flip": False, "download": False}
    data = make(CIFAR10, tmp_path, (3, 32, 32), classes=10, **rest)
    planes = batches["data_batch_5"]["data"].reshape(4, 3, 32, 32)
    assert data.num_examples("train") == 17 and same(data.split("val").x, planes[1:])
    assert data.split("test").y.tolist() == batches["test_batch"]["labels"]
    flipped = make(CIFAR10, tmp_path, (3, 32, 32), classes=10, **(rest | {"flip": True}))
    for (x, _), (m, _) in zip(data.train_batches(0, 8), flipped.train_batches(0, 8), strict=True):
        assert all(torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(x, m, strict=True))
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    assert_integrity(lambda: make(CIFAR10, tmp_path, (3, 32, 32), **rest).split("test"), path)


def test_svhn(tmp_path, monkeypatch):
    images, md5 = {}, {}
    for part, n in (("train", 7), ("test", 10)):
        images[part] = levels(32, 32, 3, n)
        path = tmp_path / "SVHN" / f"{part}_32x32.mat"
        path.parent.mkdir(exist_ok=True)
        savemat(path, {"X": images[part], "y": numpy.arange(1, n + 1, dtype=numpy.uint8)[:, None]})
        md5[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(SVHN, "md5", md5)
    data = make(SVHN, tmp_path, (3, 32, 32), classes=10, val_size=2, download=False)
    assert [data.num_examples(split) for split in ("train", "val", "test")] == [5, 2, 10]
    assert data.split("test").y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert data.split("test").x[4, 2, 30, 7] == images["test"][30, 7, 2, 4]
    assert_integrity(lambda: make(SVHN, tmp_path, (3, 32, 32), val_size=2, download=False).split("test"), path)


def test_omniglot(tmp_path, monkeypatch):
    monkeypatch.setattr(Omniglot, "counts", {"train": 9, "test": 4})
    train, test = RANDOM.rand(784, 9), numpy.zeros((784, 4))
    test[3 * 28 + 5] = 1.0  # column 3, row 5: the file stores columns first
    (tmp_path / "OMNIGLOT").mkdir()
    path = tmp_path / "OMNIGLOT" / "chardata.mat"
    savemat(path, {"data": train, "testdata": test})
    data = make(Omniglot, tmp_path, (1, 28, 28), levels=2, val_size=3)
    assert data.num_examples("train") == 6 and data.num_examples("val") == 3
    x = data.split("test").x
    assert x.dtype == torch.uint8 and x.sum() == 4 and x[:, 0, 5, 3].all()
    batches = [x for x, _ in data.train_batches(0, 3)]
    probability = train.mean()
    assert all(x.unique().tolist() == [0, 1] for x in batches)
    assert abs(torch.cat(batches).double().mean() - probability) < 5 * 0.5 / (6 * 784) ** 0.5
    savemat(path, {"data": train, "testdata": 2 * test})
    assert "truncated or altered" in message(lambda: make(Omniglot, tmp_path, (1, 28, 28), levels=2, val_size=3).split("test"))
    path.write_bytes(path.read_bytes()[:200])
    assert "truncated or altered" in message(lambda: make(Omniglot, tmp_path, (1, 28, 28), levels=2, val_size=3).split("test"))
    path.unlink()
    assert "yburda/iwae" in message(lambda: make(Omniglot, tmp_path, (1, 28, 28), levels=2, val_size=3).split("test"))


def test_caltech101_silhouettes(tmp_path, monkeypatch):
    path = tmp_path / Caltech101Silhouettes.path
    path.parent.mkdir()
    stored = {}
    for split, n in (("train", 5), ("val", 3), ("test", 2)):
        stored[f"{split}_data"] = numpy.ones((n, 784), numpy.uint8)
        stored[f"{split}_data"][:, 3 * 28 + 5] = 0  # an object of one pixel in column 3, row 5
        stored[f"{split}_labels"] = numpy.arange(1, n + 1, dtype=numpy.uint8)[:, None]
    savemat(path, stored)
    monkeypatch.setattr(Caltech101Silhouettes, "md5", hashlib.md5(path.read_bytes()).hexdigest())
    data = make(Caltech101Silhouettes, tmp_path, (1, 28, 28), levels=2, classes=101)
    assert data.split("val").x.sum() == 3 and data.split("val").x[:, 0, 5, 3].all() and data.split("val").y.tolist() == [0, 1, 2]
    assert_integrity(lambda: make(Caltech101Silhouettes, tmp_path, (1, 28, 28), levels=2).split("test"), path)


def test_freyfaces(tmp_path, monkeypatch):
    faces = levels(560, 1965)
    path = tmp_path / FreyFaces.path
    path.parent.mkdir()
    savemat(path, {"ff": faces})
    monkeypatch.setattr(FreyFaces, "sha256", hashlib.sha256(faces.T.tobytes()).hexdigest())
    data = make(FreyFaces, tmp_path, (1, 28, 20), split_seed=0)
    rows = torch.cat([data.split(split).x for split in ("train", "val", "test")]).flatten(1).numpy()
    assert sorted(map(bytes, rows)) == sorted(map(bytes, numpy.ascontiguousarray(faces.T)))
    assert_integrity(lambda: make(FreyFaces, tmp_path, (1, 28, 20), split_seed=0).split("test"), path)


def test_uci_binary(tmp_path):
    parts = {f"{part}_data": levels(n, 6, high=2) for part, n in (("train", 5), ("valid", 2), ("test", 3))}
    path = tmp_path / "few.npz"
    numpy.savez(path, **parts)
    rest = {"file": "few.npz", "sha256": hashlib.sha256(b"".join(p.tobytes() for p in parts.values())).hexdigest()}
    data = make(UCIBinary, tmp_path, (1, 1, 6), levels=2, **rest)
    assert same(data.split("val").x, parts["valid_data"].reshape(2, 1, 1, 6)) and data.num_examples("train") == 5
    wrong = rest | {"sha256": "0"}
    assert "truncated or altered" in message(lambda: make(UCIBinary, tmp_path, (1, 1, 6), 2, **wrong).split("test"))
    path.write_bytes(path.read_bytes()[:300])
    assert "truncated or altered" in message(lambda: make(UCIBinary, tmp_path, (1, 1, 6), 2, **rest).split("test"))


def test_a_packed_file_is_read_in_place(tmp_path):
    import hashlib
    import lzma

    from datamodules import files

    content = b"the published bytes"
    digest = f"md5:{hashlib.md5(content).hexdigest()}"
    (tmp_path / "batch.xz").write_bytes(lzma.compress(content))
    assert files.read(tmp_path, "batch", digest, "somewhere") == content
    (tmp_path / "batch.xz").write_bytes(lzma.compress(content)[:-9])
    with pytest.raises(ValueError, match="batch.xz is truncated or altered"):
        files.read(tmp_path, "batch", digest, "somewhere")
