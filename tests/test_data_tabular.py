"""The tabular sets of the MAF paper, from small files in the documented formats, against the preparation written out in NumPy."""

import sys

import h5py
import numpy
import pandas
import pytest
import torch
from checks_data import make, message

from datamodules.maf_tabular import BSDS300, Gas, Hepmass, Miniboone, Power

RANDOM = numpy.random.RandomState(1)


def rows(data, split):
    return data.split(split).x[:, :, 0, 0].numpy()


def stored(cls, tmp_path, dims):
    return make(cls, tmp_path, (dims, 1, 1), levels=None, folder="maf")


def folder(tmp_path, name):
    path = tmp_path / "maf" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def same(found, wanted):
    numpy.testing.assert_allclose(found, wanted.astype(numpy.float32), rtol=1e-6, atol=1e-6)


def test_miniboone_is_cut_in_order_and_standardised_without_the_test_rows(tmp_path):
    raw = 5 + 3 * RANDOM.randn(123, 43)
    numpy.save(folder(tmp_path, "miniboone/data.npy"), raw)
    data = stored(Miniboone, tmp_path, 43)
    assert [data.num_examples(split) for split in ("train", "val", "test")] == [100, 11, 12]
    mean, std = raw[:111].mean(0), raw[:111].std(0)
    for split, part in (("train", raw[:100]), ("val", raw[100:111]), ("test", raw[111:])):
        same(rows(data, split), (part - mean) / std)
    assert data.split("train").x.dtype == torch.float32 and data.split("train").x.shape[1:] == (43, 1, 1)


def test_power_gets_the_published_shuffle_and_noise(tmp_path):
    raw = numpy.round(100 * RANDOM.rand(50, 8))
    numpy.save(folder(tmp_path, "power/data.npy"), raw)
    data = stored(Power, tmp_path, 6)
    random = numpy.random.RandomState(42)
    rest = raw.copy()
    random.shuffle(rest)
    rest = rest[:, [0, 2, 4, 5, 6, 7]]
    rest[:, 1] += 0.01 * random.rand(50, 1)[:, 0]
    rest[:, 0] += 0.001 * random.rand(50, 1)[:, 0]
    rest[:, 2:5] += random.rand(50, 3)
    mean, std = rest[:45].mean(0), rest[:45].std(0)
    for split, part in (("train", rest[:41]), ("val", rest[41:45]), ("test", rest[45:])):
        same(rows(data, split), (part - mean) / std)


@pytest.mark.parametrize("as_csv", [False, True])
def test_gas_drops_the_first_of_correlated_sensors(tmp_path, as_csv):
    a, b, c = RANDOM.randn(3, 60)
    frame = pandas.DataFrame({"Time": range(60), "Meth": b, "Eth": a, "A": a, "B": b, "C": 2 * a + 0.01 * c, "D": c, "E": -b})
    path = folder(tmp_path, "gas/ethylene_CO.pickle")
    frame.to_csv(path.with_suffix(".csv"), index=False) if as_csv else frame.to_pickle(path)
    data = stored(Gas, tmp_path, 4)
    kept = frame[["B", "C", "D", "E"]]
    wanted = ((kept - kept.mean()) / kept.std()).to_numpy()
    for split, part in (("train", wanted[:49]), ("val", wanted[49:54]), ("test", wanted[54:])):
        same(rows(data, split), part)


def test_gas_that_pandas_cannot_read_says_what_to_write(tmp_path):
    folder(tmp_path, "gas/ethylene_CO.pickle").write_bytes(b"cpandas.core.nowhere\nFrame\n.")
    text = message(lambda: stored(Gas, tmp_path, 8).split("train"))
    assert "ethylene_CO.csv" in text and "to_csv" in text


def test_hepmass_keeps_the_signal_and_the_continuous_columns(tmp_path):
    train, test = RANDOM.randn(90, 4), RANDOM.randn(40, 5)
    train[:, 0], test[:, 0] = numpy.arange(90) % 3 > 0, numpy.arange(40) % 2
    train[:, 2], test[:, 2] = RANDOM.randint(0, 2, 90), RANDOM.randint(0, 2, 40)
    for name, table, columns in (("train", train, "# label,f0,f1,f2"), ("test", test, "# label,f0,f1,f2,mass")):
        path = folder(tmp_path, f"hepmass/1000_{name}.csv")
        numpy.savetxt(path, table, delimiter=",", header=columns, comments="", fmt="%.18e")
    data = stored(Hepmass, tmp_path, 2)
    seen, last = (table[table[:, 0] == 1][:, [1, 3]] for table in (train, test))
    mean, std = seen.mean(0), seen.std(0, ddof=1)
    for split, part in (("train", seen[:54]), ("val", seen[54:]), ("test", last)):
        same(rows(data, split), (part - mean) / std)


def test_bsds300_is_read_as_it_is(tmp_path):
    parts = {name: RANDOM.randn(n, 63).astype(numpy.float32) for name, n in (("train", 9), ("validation", 3), ("test", 5))}
    with h5py.File(folder(tmp_path, "BSDS300/BSDS300.hdf5"), "w") as file:
        for name, part in parts.items():
            file[name] = part
    data = stored(BSDS300, tmp_path, 63)
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        same(rows(data, split), parts[name])


@pytest.mark.parametrize(
    "cls, name, dims",
    [
        (Power, "power/data.npy", 6),
        (Gas, "gas/ethylene_CO.pickle", 8),
        (Hepmass, "hepmass/1000_train.csv", 21),
        (Miniboone, "miniboone/data.npy", 43),
        (BSDS300, "BSDS300/BSDS300.hdf5", 63),
    ],
)
def test_missing_and_broken_files_are_one_clear_line(cls, name, dims, tmp_path):
    text = message(lambda: stored(cls, tmp_path, dims).split("train"))
    assert f"maf/{name} is missing under" in text and "zenodo.org/records/1161203" in text
    folder(tmp_path, name).write_bytes(b"label\nbroken")
    assert name in message(lambda: stored(cls, tmp_path, dims).split("train"))


def test_bsds300_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    folder(tmp_path, "BSDS300/BSDS300.hdf5").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "logpx[tabular]" in message(lambda: stored(BSDS300, tmp_path, 63).split("train"))
