"""The published files under LOGPX_DATA: sizes of the literature's splits, checksums, and facts known from elsewhere."""

import os
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from datamodules.base import SPLITS

CONF = Path(__file__).parents[1] / "conf" / "data"
NEEDS = {"mnist_8bit": "MNIST", "mnist_dynamic": "MNIST", "mnist_threshold": "MNIST", "mnist_static": "BinarizedMNIST",
         "fashion_mnist": "FashionMNIST", "cifar10": "cifar-10-batches-py", "svhn": "SVHN/train_32x32.mat", "omniglot": "OMNIGLOT",
         "omniglot28nn": "Omniglot28nn", "caltech101_silhouettes": "Caltech101Silhouettes", "freyfaces": "FreyFaces",
         "uci_dna": "UCIbinary", "uci_mushrooms": "UCIbinary"}  # fmt: skip


def published(name, *overrides):
    root = os.environ.get("LOGPX_DATA")
    if not root or not (Path(root) / NEEDS[name]).exists():
        pytest.skip(f"LOGPX_DATA/{NEEDS[name]} is not there")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = OmegaConf.create({"seed": 1, "data": compose(name, overrides=list(overrides))})
    return instantiate(composed.data, _convert_="all")


@pytest.mark.parametrize(
    "name, sizes, highest, checksum",
    [
        ("mnist_8bit", (50_000, 10_000, 10_000), 255, "879d7abe38514f17"),
        ("mnist_dynamic", (50_000, 10_000, 10_000), 1, "f2fc99977dff2f2b"),
        ("mnist_threshold", (50_000, 10_000, 10_000), 1, "8534dc6f55f8f7ae"),
        ("mnist_static", (50_000, 10_000, 10_000), 1, "092c0e0936b476f9"),
        ("fashion_mnist", (50_000, 10_000, 10_000), 255, "d89c2704ddfba7e4"),
        ("cifar10", (45_000, 5_000, 10_000), 255, "5fd113382f67df9d"),
        ("svhn", (68_257, 5_000, 26_032), 255, None),
        ("omniglot", (23_000, 1_345, 8_070), 1, None),
        ("omniglot28nn", (17_280, 2_000, 13_180), 1, "210617ed81294eae"),
        ("caltech101_silhouettes", (4_100, 2_264, 2_307), 1, "4a5cb874eb2e1aaf"),
        ("freyfaces", (1_565, 200, 200), 235, "b4e017f28cea0bd7"),
        ("uci_dna", (1_400, 600, 1_186), 1, "d15e7e9ab3933a41"),
        ("uci_mushrooms", (2_000, 500, 5_624), 1, "6afbdf4455f3a05d"),
    ],
)
def test_splits(name, sizes, highest, checksum):
    data = published(name)
    assert tuple(data.num_examples(split) for split in SPLITS) == sizes
    test = data.split("test")
    assert test.x.dtype == torch.uint8 and tuple(test.x.shape) == (sizes[2], *data.spec.shape) and test.x.max() == highest
    if data.spec.classes:
        assert test.y.dtype == torch.int64 and test.y.unique().tolist() == list(range(data.spec.classes))
    if checksum:
        assert data.checksum("test")[:16] == checksum
    x, y = next(data.train_batches(10, 11))
    assert tuple(x.shape) == (data.batch_size, *data.spec.shape) and x.dtype == torch.uint8
    assert (y is None) == (data.spec.classes is None)


def test_cifar10_statistics_of_all_training_images():
    # mean and deviation of each channel over the 50,000, as everywhere in the literature
    x = published("cifar10", "val_size=0").split("train").x.transpose(0, 1).reshape(3, -1)
    shares = torch.stack([torch.bincount(channel, minlength=256) for channel in x]).double() / x.shape[1]
    level = torch.arange(256).double()
    mean, second = shares @ level, shares @ level**2
    assert torch.allclose(mean, torch.tensor([125.307, 122.950, 113.865]).double(), atol=1e-3)
    assert torch.allclose((second - mean**2).sqrt(), torch.tensor([62.993, 62.089, 66.705]).double(), atol=1e-3)


def test_mnist_variants_are_four_data_sets():
    tests = {name: published(name).split("test") for name in ("mnist_8bit", "mnist_threshold", "mnist_dynamic", "mnist_static")}
    grey = tests["mnist_8bit"].x
    assert torch.equal(tests["mnist_threshold"].x.bool(), grey > 127)
    drawn = tests["mnist_dynamic"].x
    assert not drawn[grey == 0].any() and drawn[grey == 255].all()
    p = grey.double() / 255
    assert abs(drawn.double().sum() - p.sum()) < 5 * (p * (1 - p)).sum().sqrt()
    assert len({published(name).checksum("test") for name in tests}) == 4


def test_static_mnist_is_sorted_by_digit_and_made_of_mnist():
    static = published("mnist_static").split("test").x.flatten(1)
    data = published("mnist_8bit").split("test")
    grey = data.x.flatten(1)[data.y == 0]  # 980 zeros come first; each binarization is possible under some zero
    zeros = static[:980].float()
    impossible = zeros @ (grey == 0).float().T + (1 - zeros) @ (grey == 255).float().T
    assert (impossible.min(1).values == 0).all()


def test_frey_split_seed_makes_another_split():
    assert published("freyfaces").checksum("test") != published("freyfaces", "split_seed=1").checksum("test")


def test_five_bit_cifar10():
    data = published("cifar10", "spec.levels=32")
    assert data.name == "cifar10_5bit" and torch.equal(data.split("test").x, published("cifar10").split("test").x >> 3)
