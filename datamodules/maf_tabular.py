"""The five continuous data sets of the MAF paper, prepared as its released code does.

Papamakarios et al. 2017, arXiv:1705.07057. Vectors [D, 1, 1] of float32; densities are in nats. The files are those of the
published bundle, unpacked below ``root``/``folder``.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy
import torch
from numpy import ndarray

from datamodules import files
from datamodules.base import SPLITS, DataModule, Split
from models.contracts import DataSpec

ORIGIN = "zenodo.org/records/1161203, data.tar.gz (md5 9b9c9b0375315ad270eba4ce80c093ab)"
Parts = tuple[ndarray, ndarray, ndarray]


class MAFTabular(DataModule):
    """Training, validation and test rows that a subclass reads in ``prepare``.

    Args:
        folder: where the bundle lies, below ``root``.
    """

    def __init__(
        self, spec: DataSpec, name: str, root: str, seed: int, batch_size: int, eval_batch_size: int, limit: int | None,
        folder: str,
    ):
        super().__init__(spec, name, root, seed, batch_size, eval_batch_size, limit)
        self.folder = folder

    def prepare(self) -> Parts:
        """Rows [N, D] of the three splits."""
        raise NotImplementedError

    @cached_property
    def _parts(self) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(part.astype(numpy.float32))[:, :, None, None] for part in self.prepare())

    def load(self, split: str) -> Split:
        return Split(self._parts[SPLITS.index(split)])

    def _locate(self, name: str) -> Path:
        return files.locate(self.root, f"{self.folder}/{name}", ORIGIN)

    def _array(self, name: str) -> ndarray:
        path = self._locate(name)
        with files.parsing(path, ORIGIN):
            return numpy.load(path)


def cut(rows: ndarray) -> Parts:
    """The last tenth is the test split, the last tenth of the rest the validation split."""
    rest, test = rows[: -(len(rows) // 10)], rows[-(len(rows) // 10) :]
    return rest[: -(len(rest) // 10)], rest[-(len(rest) // 10) :], test


def standardised(train: ndarray, val: ndarray, test: ndarray) -> Parts:
    """Mean 0 and variance 1 over training and validation rows together."""
    seen = numpy.concatenate([train, val])
    mean, std = seen.mean(0), seen.std(0)
    return (train - mean) / std, (val - mean) / std, (test - mean) / std


class Power(MAFTabular):
    """Electric power of a household: 1,659,917 / 184,435 / 204,928 rows of 6.

    Of eight columns, the second and fourth are dropped; rows are shuffled and get uniform noise of the meters' resolution, all
    from one stream of seed 42.
    """

    def prepare(self) -> Parts:
        rows, random = self._array("power/data.npy"), numpy.random.RandomState(42)
        random.shuffle(rows)
        n = len(rows)
        voltage, reactive, meters = 0.01 * random.rand(n, 1), 0.001 * random.rand(n, 1), random.rand(n, 3)
        noise = numpy.concatenate([reactive, voltage, meters, numpy.zeros((n, 1))], 1)
        return standardised(*cut(numpy.delete(rows, [1, 3], 1) + noise))


class Gas(MAFTabular):
    """Sixteen gas sensors, of which those correlated above 0.98 with another are dropped: 852,174 / 94,685 / 105,206 rows of 8.

    Standardised over all rows. The bundle's file is a pickle of an old pandas, which today's may refuse; a table
    ``gas/ethylene_CO.csv`` beside it, with the same columns, is read instead where there is one. Unpickling runs what the file
    says: use the published one only.
    """

    dropped = ("Time", "Meth", "Eth")

    def prepare(self) -> Parts:
        names, rows = self._table()
        rows = rows[:, [i for i, name in enumerate(names) if name not in self.dropped]]
        while True:
            correlated = (numpy.corrcoef(rows.T) > 0.98).sum(1) > 1
            if not correlated.any():
                return cut((rows - rows.mean(0)) / rows.std(0, ddof=1))
            rows = numpy.delete(rows, correlated.argmax(), 1)

    def _table(self) -> tuple[list[str], ndarray]:
        table = self.root / self.folder / "gas/ethylene_CO.csv"
        if table.exists():
            with files.parsing(table, ORIGIN):
                return _csv(table)
        path = self._locate("gas/ethylene_CO.pickle")
        try:
            import pandas

            frame = pandas.read_pickle(path)
            return list(frame.columns), frame.to_numpy(dtype=numpy.float64)
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read ({type(error).__name__}: {files.one_line(error)}): it is a pickle of pandas 0.x. "
                f"Write it once, with a pandas that reads it, as {table}: read_pickle(...).to_csv(..., index=False)"
            ) from error


class Hepmass(MAFTabular):
    """Collisions with a particle of mass 1000 (label 1 only): 315,123 / 35,013 / 174,987 rows of 21.

    The test file's last column, which the training file lacks, is dropped; so are columns whose smallest value occurs more than
    five times in the training file. Standardised over that file, whose last tenth is the validation split.
    """

    def prepare(self) -> Parts:
        seen, test = (self._signal(f"hepmass/1000_{part}.csv") for part in ("train", "test"))
        test = test[:, : seen.shape[1]]
        kept = (seen == seen.min(0)).sum(0) <= 5
        mean, std = seen.mean(0), seen.std(0, ddof=1)
        seen, test = (((rows - mean) / std)[:, kept] for rows in (seen, test))
        last = len(seen) // 10
        return seen[:-last], seen[-last:], test

    def _signal(self, name: str) -> ndarray:
        path = self._locate(name)
        with files.parsing(path, ORIGIN):
            _, rows = _csv(path)
            return rows[rows[:, 0] == 1, 1:]


class Miniboone(MAFTabular):
    """Electron neutrinos, cleaned in the bundle: 29,556 / 3,284 / 3,648 rows of 43."""

    def prepare(self) -> Parts:
        return standardised(*cut(self._array("miniboone/data.npy")))


class BSDS300(MAFTabular):
    """Grey 8x8 patches with uniform noise, mean removed and last pixel dropped: 1,000,000 / 50,000 / 250,000 rows of 63.

    The bundle has them ready. Needs h5py.
    """

    def prepare(self) -> Parts:
        path = self._locate("BSDS300/BSDS300.hdf5")
        try:
            import h5py
        except ImportError:
            raise ValueError("BSDS300 is an HDF5 file: pip install 'logpx[tabular]'") from None
        with files.parsing(path, ORIGIN), h5py.File(path, "r") as stored:
            return tuple(stored[part][:] for part in ("train", "validation", "test"))


def _csv(path: Path) -> tuple[list[str], ndarray]:
    """The header's names and the rows under it, as many columns as there are names."""
    with open(path) as lines:
        names = next(lines).strip().split(",")
        return names, numpy.loadtxt(lines, delimiter=",", usecols=range(len(names)), ndmin=2)
