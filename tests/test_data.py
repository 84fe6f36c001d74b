"""What every data module promises: order, ranks, exact evaluation, limits, checksums, one-line errors."""

import inspect
from pathlib import Path

import numpy
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from datamodules.base import SPLITS, HeldOut, Split, horizontal_flip
from datamodules.digits import Digits
from datamodules.mnist import DynamicMNIST
from models.contracts import DataSpec

CONF = Path(__file__).parents[1] / "conf" / "data"


def config(name, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = OmegaConf.create({"seed": 1, "data": compose(name, overrides=list(overrides))})
    return OmegaConf.to_container(composed, resolve=True)["data"]


class Squares(HeldOut):
    """50 + 7 images of 256 levels whose first pixel is their row; flips in training."""

    file_levels = 256

    def read(self, part):
        n = 50 if part == "train" else 7
        x = torch.from_numpy(numpy.random.RandomState(n).randint(0, 256, (n, 3, 4, 4), dtype=numpy.uint8))
        x[:, 0, 0, 0] = torch.arange(n)
        return Split(x, torch.arange(n) % 3)

    def augment(self, x, random):
        return horizontal_flip(x, random)


def squares(**changes):
    arguments = {
        "spec": DataSpec((3, 4, 4), 256, 3), "name": "squares", "root": ".", "seed": 1, "batch_size": 12, "eval_batch_size": 4,
        "limit": None, "val_size": 10,
    }
    return Squares(**(arguments | changes))


def dynamic(images, labels, **changes):
    """DynamicMNIST over given images."""

    class Given(DynamicMNIST):
        def read(self, part):
            return Split(images, labels)

    arguments = {
        "spec": DataSpec((1, 28, 28), 2, 10), "name": "dynamic", "root": ".", "seed": 1, "batch_size": 8, "eval_batch_size": 4,
        "limit": None, "val_size": 0, "download": False,
    }
    return Given(**(arguments | changes))


def equal(a, b):
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))


def message(call):
    """The error of ``call``, which must be one line."""
    with pytest.raises(ValueError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_order_is_a_function_of_seed_and_index():
    whole = list(squares().train_batches(0, 20))
    assert equal(squares().train_batches(7, 20), whole[7:])
    assert equal(squares().train_batches(0, 20), whole)
    labels, others = (torch.cat([y for _, y in squares(seed=seed).train_batches(0, 20)]) for seed in (1, 2))
    assert not torch.equal(labels, others)  # the order itself, not only the flips


def test_epochs_visit_each_example_once_in_new_orders():
    data = squares(batch_size=8)
    assert data.batches_per_epoch == 5 and data.num_examples("train") == 40
    data.augment = lambda x, random: x
    epochs = [torch.cat([x[:, 0, 0, 0] for x, _ in data.train_batches(5 * e, 5 * e + 5)]) for e in range(3)]
    for rows in epochs:
        assert torch.equal(rows.sort().values.long(), torch.arange(40))
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_labels_follow_their_images():
    data = squares()
    data.augment = lambda x, random: x
    for x, y in data.train_batches(0, 9):
        assert torch.equal(x[:, 0, 0, 0].long() % 3, y) and y.dtype == torch.int64


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_together_are_one_rank(world):
    ranks = [list(squares().train_batches(3, 9, rank, world)) for rank in range(world)]
    joined = [tuple(torch.cat(part) for part in zip(*batch, strict=True)) for batch in zip(*ranks, strict=True)]
    assert equal(joined, squares().train_batches(3, 9))


def test_flip_mirrors_about_half():
    x = torch.arange(2000 * 4, dtype=torch.float32).reshape(2000, 1, 1, 4)
    flipped = horizontal_flip(x, torch.Generator().manual_seed(0))
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == x).flatten(1).all(1)).all()
    assert abs(mirrored.float().mean() - 0.5) < 5 * 0.5 / 2000**0.5


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_counts_each_example_once(world):
    data = squares()
    for split, batch_size in (("train", None), ("val", 3), ("test", 100)):
        batches = [b for rank in range(world) for b in data.eval_batches(split, rank, world, batch_size)]
        index = torch.cat([i for i, _, _ in batches])
        assert torch.equal(index.sort().values, torch.arange(data.num_examples(split)))
        stored = data.split(split)
        for i, x, y in batches:
            assert torch.equal(x, stored.x[i]) and torch.equal(y, stored.y[i])


def test_evaluation_batches_do_not_depend_on_the_number_of_ranks():
    alone = {int(i[0]): i.tolist() for i, _, _ in squares().eval_batches("train")}
    shared = {int(i[0]): i.tolist() for rank in range(3) for i, _, _ in squares().eval_batches("train", rank, 3)}
    assert alone == shared


def test_splits_are_disjoint_and_complete():
    data = squares()
    rows = {split: set(data.split(split).x[:, 0, 0, 0].tolist()) for split in ("train", "val")}
    assert rows["train"] | rows["val"] == set(range(50)) and len(rows["val"]) == 10


def test_nothing_held_out():
    data = squares(val_size=0)
    assert data.num_examples("train") == 50 and data.num_examples("val") == 0 and not list(data.eval_batches("val"))


def test_limit_is_a_fixed_subset():
    data, again, whole = squares(limit=5), squares(limit=5, seed=2), squares()
    assert [data.num_examples(split) for split in SPLITS] == [5, 5, 5]
    assert torch.equal(data.split("train").x, again.split("train").x)
    rows = data.split("train").x[:, 0, 0, 0].long()
    assert torch.equal(whole.split("train").x[rows], data.split("train").x) and not torch.equal(rows, torch.arange(5))


def test_checksum_tells_data_apart():
    changed = squares()
    changed.split("test").x[0, 0, 0, 1] ^= 1
    relabelled = squares()
    relabelled.split("test").y[0] += 1
    unlabelled = squares(spec=DataSpec((3, 4, 4), 256, None))
    variants = [squares(), changed, relabelled, unlabelled, squares(limit=3)]
    assert len({v.checksum("test") for v in variants}) == len(variants)
    assert squares(seed=5, batch_size=4).checksum("test") == squares().checksum("test")


def test_fewer_levels_keep_the_upper_bits_and_change_the_name():
    data, full = squares(spec=DataSpec((3, 4, 4), 32, 3)), squares()
    assert data.name == "squares_5bit" and full.name == "squares"
    assert torch.equal(data.split("test").x, full.split("test").x // 8) and data.split("test").x.dtype == torch.uint8
    assert "power of two" in message(lambda: squares(spec=DataSpec((3, 4, 4), 17, 3)))


def test_errors_are_one_line_that_says_what_to_do():
    assert "multiple of 5" in message(lambda: squares().train_batches(0, 1, 0, 5))
    assert "smaller data.batch_size" in message(lambda: squares(batch_size=41).train_batches(0, 1))
    assert "data.val_size must be 0 to 49" in message(lambda: squares(val_size=50).split("train"))
    assert "data.limit must be at least 1" in message(lambda: squares(limit=0))
    assert "train, val, test" in message(lambda: squares().split("valid"))
    assert "data.spec.shape" in message(lambda: squares(spec=DataSpec((3, 4, 5), 256, 3)).split("test"))
    data = squares()
    data.read = lambda part: Split(torch.zeros(9, 3, 4, 4, dtype=torch.uint8))
    assert "classes=null" in message(lambda: data.split("test"))


def test_a_level_too_high_is_refused():
    digits = Digits(DataSpec((1, 8, 8), 16, 10), "digits", ".", 1, 64, 64, None)
    assert "level 16" in message(lambda: digits.split("train"))


def test_dynamic_binarization_is_bernoulli():
    levels = torch.tensor([0, 1, 77, 200, 255], dtype=torch.uint8).repeat_interleave(8)
    data = dynamic(levels.reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous(), torch.arange(40) % 10, batch_size=40)
    ((batch, _),) = data.train_batches(0, 1)
    assert batch.unique().tolist() == [0, 1] and batch.dtype == torch.uint8
    for x in (data.augment(data._source("train").x, torch.Generator().manual_seed(3)), data.split("train").x):
        rates = x.reshape(5, -1).double().mean(1)
        exact = torch.tensor([0, 1, 77, 200, 255], dtype=torch.float64) / 255
        assert ((rates - exact).abs() <= 5 * (exact * (1 - exact) / (8 * 784)).sqrt()).all()


def test_dynamic_binarization_is_fresh_in_training_and_fixed_in_evaluation():
    images = torch.full((16, 1, 28, 28), 128, dtype=torch.uint8)
    data, other_seed = dynamic(images, torch.zeros(16).long()), dynamic(images, torch.zeros(16).long(), seed=9)
    first, second = (x for x, _ in data.train_batches(0, 2))
    assert not torch.equal(first, second)
    assert equal(data.train_batches(1, 2), [(second, torch.zeros(8).long())])
    halves = [torch.cat([x for x, _ in data.train_batches(0, 2, rank, 2)]) for rank in range(2)]
    assert torch.equal(torch.cat([halves[0][:4], halves[1][:4]]), first)
    assert torch.equal(data.split("test").x, other_seed.split("test").x) and data.checksum("test") == other_seed.checksum("test")
    assert not torch.equal(data.split("test").x, data.split("train").x)
    assert data.split("test").x.max() == 1


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_yaml_states_every_argument(name, tmp_path):
    for variant in ("imagenet32_small", "imagenet64_small"):
        (tmp_path / variant).mkdir()
    node = config(name, f"root={tmp_path}")
    wanted = set(inspect.signature(get_class(node["_target_"])).parameters)
    assert wanted == set(node) - {"_target_"}
    data = instantiate(node, _convert_="all")
    assert data.spec.shape == tuple(node["spec"]["shape"]) and data.spec.levels == node["spec"]["levels"]
    assert data.name == {"mnist": "mnist_8bit", "toy2d": "toy2d_checkerboard", "omniglot28nn": "omniglot28nn_not_comparable",
                         "imagenet32": "imagenet32_small", "imagenet64": "imagenet64_small"}.get(name, name)  # fmt: skip


def test_digits():
    data = instantiate(config("digits"), _convert_="all")
    assert [data.num_examples(split) for split in SPLITS] == [1293, 144, 360]
    everything = torch.cat([data.split(split).x for split in SPLITS]).flatten(1)
    from sklearn.datasets import load_digits

    published = torch.tensor(load_digits().data).to(torch.uint8)
    assert sorted(map(tuple, everything.tolist())) == sorted(map(tuple, published.tolist()))
    assert data.checksum("test") == "29503adcc6e32910f8df6db2c6f2e88de2e31fead07d958b55c96874c56ebc85"
