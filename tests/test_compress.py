"""Coded images: every value comes back, at the cost that the model states, and a file that is not right is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from math import log, log2
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import evaluate
from datamodules.base import DataModule
from models.autoregressive.model import Autoregressive
from models.autoregressive.orders import Column, Random, Raster
from models.autoregressive.pixelcnnpp import PixelCNNpp
from models.build import ConfigError
from models.coding import decode as decoding
from models.coding.coder import Decoder, Encoder, code_images
from models.coding.file import HEADER_BYTES, CodedFile, images_fingerprint, model_fingerprint
from models.contracts import CausalNet, DataSpec
from models.evaluators.base import Context
from models.evaluators.compress import Compress
from models.likelihoods.bernoulli import Bernoulli
from models.likelihoods.categorical import Categorical
from models.likelihoods.gaussian import DiscretizedGaussian, Gaussian
from models.likelihoods.logistic import DiscretizedLogistic, MixtureLogistic
from models.reopen import evaluate_run, load_run
from models.run import run
from tests.conftest import compose, run_program
from tests.laws import random_batch, ready

COMPRESS = {"compress": {"_target_": "models.evaluators.compress.Compress", "num": 6, "batch_size": 4}}
CODE = CodedFile(b"modelmod", "ema", "best", "cpu", 3, 70_000, (10, 3, 32, 28), b"imagesim", bytes(range(256)))


# --- the coder ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels, spread", [(2, 1.0), (2, 12.0), (17, 2.0), (256, 6.0), (60_000, 1.0)])
def test_values_cost_what_their_probabilities_say(levels, spread):
    """Against -sum log2 p of NumPy: a thousandth and the end of the stream, also where one of two values is nearly certain."""
    random = numpy.random.default_rng(levels)
    count = 400_000 // levels + 50
    logits = random.normal(size=(count, levels)) * spread
    log_pmf = logits - numpy.logaddexp.reduce(logits, 1, keepdims=True)
    values = (numpy.exp(log_pmf).cumsum(1) > random.random((count, 1))).argmax(1)
    encoder = Encoder()
    for rows in numpy.array_split(numpy.arange(count), 7):
        encoder(torch.from_numpy(values[rows]), torch.from_numpy(log_pmf[rows]))
    bits = -log_pmf[numpy.arange(count), values].sum() / log(2)
    assert -32 <= 8 * len(encoder.content) - bits <= 1e-3 * bits + 64
    decoder, decoded = Decoder(encoder.content), torch.empty(count, dtype=torch.int64)
    for rows in numpy.array_split(numpy.arange(count), 7):
        decoder(decoded[rows[0] : rows[-1] + 1], torch.from_numpy(log_pmf[rows]))
    assert numpy.array_equal(decoded.numpy(), values)


def test_what_the_model_calls_impossible_is_coded_all_the_same():
    log_pmf = torch.tensor([[0.0, -torch.inf, -torch.inf]]).expand(5, 3)
    values, decoded = torch.tensor([0, 2, 1, 0, 2], dtype=torch.uint8), torch.zeros(5, dtype=torch.uint8)
    encoder = Encoder()
    encoder(values, log_pmf)
    Decoder(encoder.content)(decoded, log_pmf)
    assert torch.equal(decoded, values)


def test_probabilities_that_are_none_are_refused():
    with pytest.raises(ValueError, match="not normalizable"):
        Encoder()(torch.zeros(1), torch.tensor([[torch.nan, 0.0]]))


def test_bits_that_no_table_gives_are_refused():
    with pytest.raises(ConfigError, match="under other probabilities"):
        Decoder(b"\xff" * 8)(torch.zeros(1), torch.tensor([[0.5, 0.5]]).log())


# --- models -------------------------------------------------------------------------------------------------------


class Linear(CausalNet):
    """The parameters at each position are linear in all values before it (with ``leaky``, in all values). No cache."""

    leaky = False

    def __init__(self, shape, out_channels, groups, classes):
        super().__init__()
        self.groups = groups
        channels, height, width = shape
        positions, inside = height * width * groups, channels // groups
        self.weight = nn.Parameter(torch.zeros(positions, out_channels // groups, positions, inside))
        self.bias = nn.Parameter(torch.zeros(positions, out_channels // groups))
        self.label = nn.Embedding(classes or 1, out_channels // groups)

    def forward(self, x, y=None):
        n, _, height, width = x.shape
        tokens = x.flatten(2).unflatten(1, (self.groups, -1)).permute(0, 3, 1, 2).flatten(1, 2)  # [n, positions, C / groups]
        before = torch.ones(2 * [tokens.shape[1]]).tril(-1)[:, None, :, None]
        weight = self.weight if self.leaky else self.weight * before
        out = torch.einsum("tpsc,nsc->ntp", weight, tokens) + self.bias
        out = out + self.label(torch.zeros(n, dtype=torch.int64) if y is None else y)[:, None]
        return out.unflatten(1, (height * width, self.groups)).permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (height, width))


def autoregressive(spec, head, order=Raster, net=Linear, conditional=False, **order_arguments):
    order = order(spec, order_arguments.pop("num", 1), False, **order_arguments)
    return ready(Autoregressive(spec, net, order, head(spec), conditional), 0.2)


def round_trip(model, x, y, batch_size=3) -> bytes:
    """The bits of the images; asserts that they come back, and that encoding leaves its input as it was."""
    encoder, before = Encoder(), x.clone()
    code_images(model, encoder, x, y, batch_size)
    assert torch.equal(x, before)
    labels = torch.zeros(len(x), dtype=torch.int64) if model.conditional else None
    code_images(model, Decoder(encoder.content), decoded := torch.zeros_like(x), labels, batch_size)
    assert torch.equal(decoded, x)
    assert not model.conditional or torch.equal(labels, y)
    return encoder.content


PP = partial(PixelCNNpp, num_filters=4, num_resnet=1, num_scales=2, dropout=0.0)
MIX = partial(MixtureLogistic, num_mixtures=2, min_log_scale=-7.0)
LOGISTIC, NORMAL = partial(DiscretizedLogistic, min_log_scale=-7.0), partial(DiscretizedGaussian, min_log_scale=-7.0)


@pytest.mark.parametrize("shape, levels, head, order, net, conditional", [
    ((1, 4, 5), 2, Bernoulli, Raster, Linear, False),
    ((2, 3, 4), 2, Bernoulli, Column, Linear, False),
    ((3, 3, 4), 5, Categorical, partial(Random, seed=3), Linear, False),
    ((3, 2, 3), 256, LOGISTIC, Raster, Linear, True),
    ((1, 4, 5), 17, NORMAL, Column, Linear, False),
    ((3, 3, 4), 256, MIX, Raster, PP, False),
    ((1, 5, 4), 17, MIX, partial(Random, seed=3), PP, True),
    ((3, 4, 3), 17, Categorical, Column, partial(PP, num_scales=1), False),
])  # fmt: skip
def test_images_come_back_at_the_cost_of_their_score(shape, levels, head, order, net, conditional):
    spec = DataSpec(shape, levels, classes=4)
    model = autoregressive(spec, head, order, net, conditional)
    y = torch.arange(7) % 4
    x = model.sample(7, y)  # of its own, so that no value costs more than the 24 bits of the rarest
    with torch.no_grad():
        bits = -model(x, y).nats.double().sum().item() / log(2) + (7 * 2 if conditional else 0)
    assert -32 <= 8 * len(round_trip(model, x, y)) - bits <= 1e-3 * bits + 64


def test_a_net_that_sees_the_future_is_shown_none():
    """Encoder and decoder show the net the same images, of what was visited: else its last bits, here all, would differ."""
    model = autoregressive(DataSpec((2, 3, 3), 5), Categorical)
    model.net.leaky = True
    round_trip(model, random_batch(model.spec, 5)[0], None)


def test_models_without_a_code(tmp_path):
    x, y = random_batch(DataSpec((1, 2, 2), 3), 2)
    with pytest.raises(ValueError, match="a code needs one order, and this model averages 2 of them"):
        round_trip(autoregressive(DataSpec((1, 2, 2), 3), Categorical, Random, num=2, seed=0), x, y)
    density = autoregressive(DataSpec((1, 2, 2), None), partial(Gaussian, min_log_scale=-7.0))
    for model in (density, nn.Linear(1, 1)):
        with pytest.raises(ConfigError, match="this model has no code"):
            Compress(2, 2)(Context(model, None, "test", tmp_path, seed=1, weights="raw"))


# --- the file -----------------------------------------------------------------------------------------------------


def test_the_file_keeps_every_field_within_its_header():
    content = CODE.to_bytes()
    assert CodedFile.from_bytes(content, "f") == CODE
    assert len(content) - len(CODE.payload) == HEADER_BYTES <= 64 - 8  # the coder's end may take 8 bytes


def test_one_flipped_bit_anywhere_and_any_cut_are_refused():
    content = CODE.to_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(ConfigError, match="^f is (damaged: its checksum does not hold|no file of coded images)"):
            CodedFile.from_bytes(bytes(flipped), "f")
        with pytest.raises(ConfigError, match="^f is "):
            CodedFile.from_bytes(content[:position], "f")


def test_fingerprints_see_every_bit():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).to(torch.bfloat16)
    prints = {model_fingerprint(model, {"a": 1})}
    prints.add(model_fingerprint(model, {"a": 2}))
    for value in model.state_dict().values():
        value.view(-1)[-1] += 1
        prints.add(model_fingerprint(model, {"a": 1}))
    assert len(prints) == 2 + 7
    x, y = torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    other = x.clone()
    other[1, 0, 1, 1] = 1
    assert len({images_fingerprint(*pair) for pair in ((x, y), (other, y), (x, y + 1), (x, None))}) == 4


# --- the program --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A tiny class-conditional run, and six coded test images of the command's."""
    runs = tmp_path_factory.mktemp("runs")
    tiny = ["debug=tiny", "data.spec.classes=10", "model.conditional=true", "evaluators=nll", f"runs_dir={runs}"]
    folder = run(compose("model=pixelcnnpp", *tiny)).folder
    options = ["evaluators=compress", "evaluators.compress.num=6", "evaluators.compress.batch_size=4"]
    done = run_program("evaluate.py", f"run={folder}", *options, cwd=runs)
    assert done.returncode == 0 and "coded_overhead_bytes" in done.stdout, done.stderr
    return folder


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_records_state_the_file(trained):
    found = {item["metric"]: item for item in json.loads((trained / "results.json").read_text()) if item["evaluator"] == "compress"}
    path = trained / "compressed/test_ema.lpx"
    size = path.stat().st_size
    model, datamodule, _, _ = load_run(trained, "ema")
    part = datamodule.split("test")
    part = part[torch.arange(6) * len(part) // 6]
    with torch.no_grad():
        bits = -model(part.x, part.y).nats.double().sum().item() / log(2)
    assert found["coded_bpd"]["value"] == 8 * size / (6 * 64) and found["coded_bpd"]["file"] == path.name
    assert {(item["kind"], item["count"], item["weights"]) for item in found.values()} == {("exact", 6, "ema")}
    assert found["coded_bpd"]["unit"] == found["coded_model_bpd"]["unit"] == "bits/dim"
    assert found["coded_model_bpd"]["value"] == pytest.approx(bits / (6 * 64), rel=1e-5)
    overhead = found["coded_overhead_bytes"]
    assert overhead["value"] == pytest.approx(size - (bits + 6 * log2(10)) / 8, abs=0.01)
    assert overhead["passed"] and overhead["value"] <= overhead["limit"] == pytest.approx(64 + bits / 8000, rel=1e-5)
    x, y = decoding.decode(trained, path)
    assert torch.equal(x, part.x) and torch.equal(y, part.y)


def test_the_decoder_reads_no_data(trained, monkeypatch):
    monkeypatch.setattr(DataModule, "_source", lambda *_: pytest.fail("the decoder read data"))
    assert decoding.decode(trained, trained / "compressed/test_ema.lpx")[0].shape == (6, 1, 8, 8)


def test_the_decode_program(copied, capsys):
    path, out = copied / "compressed/test_ema.lpx", copied / "out.npz"
    assert decoding.main([str(copied), str(path), str(out)]) == 0
    with numpy.load(out) as arrays:
        assert arrays["x"].shape == (6, 1, 8, 8) and arrays["x"].dtype == numpy.uint8 and arrays["y"].shape == (6,)
    out.unlink()
    content = bytearray(path.read_bytes())
    content[-3] ^= 16
    path.write_bytes(content)
    assert decoding.main([str(copied), str(path), str(out)]) == 2 and not out.exists()
    assert capsys.readouterr().err == f"error: {path} is damaged: its checksum does not hold; encode the images again\n"


@pytest.mark.parametrize("arguments, message", [([], "say what to decode"), (["a", "b", "c"], "there is no file b")])
def test_the_decode_programs_mistakes(arguments, message, capsys):
    assert decoding.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_foreign_file_is_refused(copied):
    """Of other weights of the same model, and of another configuration with the same weights."""
    path = copied / "compressed/test_ema.lpx"
    file = CodedFile.from_bytes(path.read_bytes(), "f")
    path.write_bytes(replace(file, weights="raw").to_bytes())
    with pytest.raises(ConfigError, match="was not written by the model in .* as it is now .raw weights of the last"):
        decoding.decode(copied, path)
    config = (copied / "config.yaml").read_text()
    assert config.count("dropout: 0.3") == 1
    (copied / "config.yaml").write_text(config.replace("dropout: 0.3", "dropout: 0.4"))
    path.write_bytes(file.to_bytes())
    with pytest.raises(ConfigError, match="was not written by the model in .* as it is now .ema weights of the last"):
        decoding.decode(copied, path)


def test_other_probabilities_are_never_silent(trained, monkeypatch):
    """What a machine with other arithmetic would do: the same model, another table."""
    pmf = MixtureLogistic.log_pmf
    changed = lambda self, params, *rest: pmf(self, params * 1.01, *rest)
    monkeypatch.setattr(MixtureLogistic, "log_pmf", changed)
    with pytest.raises(ConfigError, match="does not decode to what was encoded: this machine"):
        decoding.decode(trained, trained / "compressed/test_ema.lpx")


@pytest.mark.parametrize("what", ["pixel", "label"])
def test_every_value_is_compared(copied, monkeypatch, what):
    def changed(folder, path):
        x, y = decoding.decode(folder, path)
        (x if what == "pixel" else y).view(-1)[-1] += 1
        return x, y

    monkeypatch.setattr("models.evaluators.compress.decode_elsewhere", changed)
    with pytest.raises(ConfigError, match="is no code: 1 values came back changed"):
        evaluate_run(copied, "raw", "test", COMPRESS)


def test_a_decoder_that_refuses_fails_the_command(copied, monkeypatch):
    """The encoder's file is changed on its way to the new process."""
    def damaged(path, content):
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    monkeypatch.setattr("models.evaluators.compress.write_atomically", damaged)
    command = {"run": str(copied), "weights": "raw", "split": "test", "evaluators": COMPRESS, "checkpoint": "last", "data_root": None}
    with pytest.raises(ConfigError, match="^decoding failed: .*test_raw.lpx is damaged"):
        evaluate.evaluate_command(command)


def test_only_the_first_rank_codes(trained):
    model, datamodule, _, _ = load_run(trained, "raw")

    class Second(Context):
        def gather(self, item):
            return [["records"], item]

    here = Second(model, datamodule, "test", trained / "nowhere", seed=1, weights="raw", rank=1, world=2)
    assert Compress(6, 4)(here) == ["records"] and not (trained / "nowhere").exists()
