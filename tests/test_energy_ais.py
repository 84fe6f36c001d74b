"""The AIS evaluator: numbers against an exact partition function, the same in any chunking and on any number of ranks."""

import pytest
import torch

from models.build import ConfigError
from models.contracts import DataSpec, GenerativeModel
from models.energy.rbm import RBM
from models.evaluators.ais import AIS
from models.evaluators.base import Context
from models.evaluators.energy import Energies


class Data:
    name, eval_batch_size = "binary", 8

    def __init__(self, x):
        self.x = x

    def eval_batches(self, split, rank, world):
        for index in torch.arange(len(self.x))[rank::world].split(self.eval_batch_size):
            yield index, self.x[index], None


def context(model=None, **changes):
    if model is None:
        torch.manual_seed(0)
        model = RBM(DataSpec((1, 3, 4), 2), 20, 1)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randint(2, (30, 1, 3, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Context(model.eval(), Data(x), "test", None, 1, "raw", **changes)


def settings(**changes):
    values = dict(num_chains=200, num_temperatures=100, power=1.0, num_leapfrog=1, step_size=0.1, acceptance=0.65, chunk=64)
    return values | changes


def test_ais_reports_the_exact_likelihood_of_a_small_machine():
    c = context()
    state = torch.get_rng_state()
    z, lower, nll = AIS(**settings())(c)
    assert torch.equal(state, torch.get_rng_state())
    log_z = c.model.log_partition().item()
    nats = c.model(c.datamodule.x).nats.double() - log_z
    assert [r["metric"] for r in (z, lower, nll)] == ["log_z_nats", "log_z_lower_nats", "ais_nll_nats"]
    assert [r["kind"] for r in (z, lower, nll)] == ["estimate", "bound", "estimate"]
    assert {r["unit"] for r in (z, lower, nll)} == {"nats"} and nll["space"] == "probability on {0, 1}^12"
    assert 0 < z["stderr"] < 0.05 and abs(z["value"] - log_z) < 5 * z["stderr"]
    assert lower["value"] < z["value"] and nll["count"] == 30 and z["count"] == 200
    assert abs(nll["value"] + nats.mean().item()) < 5 * z["stderr"]
    assert nll["stderr"] >= nats.std().item() / 30**0.5
    assert 150 < z["effective_chains"] <= 200


def test_ranks_share_the_chains_and_agree_with_one():
    """Two ranks, played one after the other: what each would send is what one rank computes, chunk by chunk."""
    alone = context()
    path = alone.model.annealing_path(None)
    whole = AIS(**settings())._weights(alone, path)
    sent = []

    class Ranks(Context):
        def gather(self, item):
            sent.append(item)
            return sent

    for rank in (0, 1):
        c = context(alone.model, rank=rank, world=2)
        both = Ranks(**vars(c))
        if rank == 1:
            assert torch.equal(AIS(**settings())._weights(both, path), whole)
        else:
            with pytest.raises(KeyError):  # rank 0 alone lacks the chunks of rank 1
                AIS(**settings())._weights(both, path)
    assert len(whole) == 200 and not set(sent[0]) & set(sent[1])


def test_a_collapsed_estimate_has_no_standard_error():
    """Large weights and two temperatures: one chain outweighs all others, and the spread of the weights says nothing."""
    c = context()
    with torch.no_grad():
        c.model.weight.mul_(12)
    z, lower, nll = AIS(**settings(num_temperatures=2))(c)
    assert z["effective_chains"] < 10 and z["stderr"] is None and nll["stderr"] is None
    assert lower["value"] < c.model.log_partition() - 5 * lower["stderr"]


def test_ais_refuses_a_density():
    class Density(GenerativeModel):
        pass

    with pytest.raises(ConfigError, match="not energy-based"):
        AIS(**settings())(context(Density()))
    with pytest.raises(ValueError, match="at least two"):
        AIS(**settings(num_chains=1))


def test_energies_of_data_and_of_samples():
    c = context()
    state = torch.get_rng_state()
    data, drawn, difference = Energies(num=4000)(c)
    assert torch.equal(state, torch.get_rng_state())
    model, v = c.model, torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 12)
    assert data["value"] == pytest.approx(model.energy(c.datamodule.x.flatten(1).float()).mean().item(), rel=1e-5)
    assert (data["kind"], drawn["kind"], difference["kind"]) == ("unnormalized", "unnormalized", "estimate")
    assert difference["value"] == pytest.approx(data["value"] - drawn["value"]) and data["count"] == 30
    model.num_gibbs = 50
    mixed = Energies(num=4000)(c)[1]
    exact = ((-model.energy(v)).softmax(0) * model.energy(v)).sum().item()
    assert abs(mixed["value"] - exact) < 5 * mixed["stderr"]
    with pytest.raises(ConfigError, match="no energy"):
        Energies(num=4)(context(GenerativeModel()))
