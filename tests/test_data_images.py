"""ImageNet's two archives and a folder of images, in their documented formats, on small files made here."""

import io
import os
import pickle
import tarfile

import numpy
import pytest
import torch
from checks_data import levels, make, message, same, write
from PIL import Image

from datamodules import imagenet
from datamodules.folder import ImageFolder


def net(root, archives, size=32, **rest):
    return make(imagenet.ImageNet, root, (3, size, size), val_size=3, archives=archives, flip=False, **rest)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """van den Oord's archive: an unpacked training folder, a packed validation folder."""
    monkeypatch.setattr(imagenet.Small, "counts", {"train": 9, "test": 4})
    folder = tmp_path / "imagenet32_small"
    train, test = levels(9, 3, 32, 32), levels(4, 3, 32, 32)
    for k, image in enumerate(train):
        write(folder / "train_32x32" / f"{k:07}.png", png(image))
    with tarfile.open(folder / "valid_32x32.tar", "w") as tar:
        for k in (2, 0, 3, 1):
            member = tarfile.TarInfo(f"valid_32x32/{k:05}.png")
            member.size = len(png(test[k]))
            tar.addfile(member, io.BytesIO(png(test[k])))
    return tmp_path, train, test


@pytest.fixture
def box(tmp_path, monkeypatch):
    """Chrabaszcz's archive: ten pickled batches and one."""
    monkeypatch.setattr(imagenet.Box, "counts", {"train": 20, "test": 4})
    train, test = levels(20, 3072), levels(4, 3072)
    for k in range(10):
        batch = {"data": train[2 * k : 2 * k + 2], "labels": [2 * k + 1, 2 * k + 2], "mean": train.mean(0)}
        write(tmp_path / "imagenet32_box" / f"train_data_batch_{k + 1}", pickle.dumps(batch))
    write(tmp_path / "imagenet32_box" / "val_data", pickle.dumps({"data": test, "labels": [1, 1000, 3, 4]}, protocol=2))
    return tmp_path, train.reshape(-1, 3, 32, 32), test.reshape(-1, 3, 32, 32)


def test_imagenet_small(small):
    root, train, test = small
    data = net(root, [imagenet.Small()])
    assert data.name == "set_small" and data.num_examples("train") == 6 and data.num_examples("val") == 3
    assert same(data.split("test").x, test)
    both = torch.cat([data.split("train").x, data.split("val").x]).flatten(1).numpy()
    assert sorted(map(bytes, both)) == sorted(map(bytes, train.reshape(9, -1)))
    (root / "imagenet32_small" / "valid_32x32.tar").unlink()  # written once, read from the map from then on
    again = net(root, [imagenet.Small()])
    assert again.checksum("test") == data.checksum("test") and not list((root / "imagenet32_small").glob("*.partial"))
    assert next(again.train_batches(5, 6))[0].shape == (2, 3, 32, 32)
    assert "5bit" in make(imagenet.ImageNet, root, (3, 32, 32), 32, val_size=3, archives=[imagenet.Small()], flip=False).name


def test_imagenet_small_damaged(small, monkeypatch):
    root, _, _ = small
    tar = root / "imagenet32_small" / "valid_32x32.tar"
    tar.write_bytes(tar.read_bytes()[:3000])
    assert "truncated or altered" in message(lambda: net(root, [imagenet.Small()]).split("test"))
    tar.unlink()
    text = message(lambda: net(root, [imagenet.Small()]).split("test"))
    assert "valid_32x32.tar is missing" in text and "torrents" in text
    (root / "imagenet32_small" / "train_32x32" / "0000000.png").unlink()
    assert "8 train images, published 9" in message(lambda: net(root, [imagenet.Small()]).split("train"))
    numpy.save(root / "imagenet32_small" / "test.npy", levels(4, 3, 32, 32))
    os.truncate(root / "imagenet32_small" / "test.npy", 500)
    assert "test.npy is truncated or altered" in message(lambda: net(root, [imagenet.Small()]).split("test"))


def test_imagenet_box(box):
    root, train, test = box
    data = net(root, [imagenet.Box()], classes=1000)
    assert data.name == "set_box" and same(data.split("test").x, test) and data.split("test").y.tolist() == [0, 999, 2, 3]
    for split in ("train", "val"):
        for image, label in zip(data.split(split).x, data.split(split).y, strict=True):
            assert same(image, train[label])
    assert net(root, [imagenet.Box()]).split("test").y is None


def test_imagenet_box_damaged(box):
    root, _, _ = box
    path = root / "imagenet32_box" / "val_data"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2000])
    assert "val_data is truncated or altered" in message(lambda: net(root, [imagenet.Box()]).split("test"))
    path.write_bytes(pickle.dumps(os.system))
    assert "does not belong" in message(lambda: net(root, [imagenet.Box()]).split("test"))
    path.unlink()
    assert "image-net.org" in message(lambda: net(root, [imagenet.Box()]).split("test"))


def test_imagenet_takes_what_is_there_and_says_so(small, capsys):
    root, _, _ = small
    candidates = [imagenet.Small(), imagenet.Box()]
    assert net(root, candidates).name == "set_small" and "set is set_small here" in capsys.readouterr().err
    text = message(lambda: net(root, candidates, size=64))
    assert "no ImageNet 64 x 64" in text and "torrents" in text and "after registration" in text
    (root / "imagenet32_box").mkdir()
    assert "say which you mean with data=imagenet32_small or data=imagenet32_box" in message(lambda: net(root, candidates))
    assert net(root, [imagenet.Box()]).name == "set_box"


def folder(root, shape=(3, 8, 8), levels=256, classes=None, **changes):
    rest = {"path": "mine", "val_fraction": 0.2, "test_fraction": 0.2, "flip": False}
    return make(ImageFolder, root, shape, levels, classes, **(rest | changes))


def test_folder(tmp_path):
    for k in range(60):
        shade = numpy.full((12, 16, 3), 4 * k, numpy.uint8)
        path = tmp_path / "mine" / ("cats" if k % 2 else "dogs") / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shade).save(path)
    data = folder(tmp_path, classes=2)
    splits = {split: data.split(split) for split in ("train", "val", "test")}
    shades = {split: set(part.x[:, 0, 0, 0].tolist()) for split, part in splits.items()}
    assert sum(map(len, splits.values())) == 60 and set.union(*shades.values()) == {4 * k for k in range(60)}
    assert all(3 <= len(splits[split]) <= 24 for split in ("val", "test"))
    for part in splits.values():
        assert (part.x == part.x[:, :1, :1, :1]).all()
        assert (part.y == 1 - part.x[:, 0, 0, 0].long() // 4 % 2).all()  # cats before dogs
    (tmp_path / "mine" / "dogs" / "0.png").unlink()
    after = {split: set(folder(tmp_path).split(split).x[:, 0, 0, 0].tolist()) for split in splits}
    assert all(shades[split] - after[split] <= {0} and after[split] <= shades[split] for split in splits)
    grey = folder(tmp_path, (1, 5, 9), 4)
    assert grey.split("train").x.shape[1:] == (1, 5, 9) and grey.split("train").x.max() <= 3 and grey.name == "set_2bit"


def test_folder_crops_to_the_middle(tmp_path):
    image = numpy.zeros((8, 24, 3), numpy.uint8)
    image[:, 8:16] = 200
    write(tmp_path / "mine" / "wide.png", png(image.transpose(2, 0, 1)))
    x = folder(tmp_path, val_fraction=0.0, test_fraction=0.0).split("train").x
    assert (x == 200).all()


def test_folder_errors(tmp_path):
    assert "set data.path" in message(lambda: folder(tmp_path).split("train"))
    write(tmp_path / "mine" / "a" / "broken.jpg", b"not an image")
    text = message(lambda: [folder(tmp_path).split(split) for split in ("train", "val", "test")])
    assert "broken.jpg is not a readable image" in text
    write(tmp_path / "mine" / "a" / "broken.jpg", png(levels(3, 9, 9)))
    whole = {"val_fraction": 0.0, "test_fraction": 0.0}
    assert "has 1 sub-folders" in message(lambda: folder(tmp_path, classes=2, **whole).split("train"))
    assert "1 channel" in message(lambda: folder(tmp_path, (2, 8, 8)))
    assert "leave some images" in message(lambda: folder(tmp_path, val_fraction=0.6, test_fraction=0.4))
