"""A sequence model around the RNN, and noisy RNNs inside a user's own Pyro model."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    BernoulliEmission,
    LanguageModel,
    Learned,
    Multiplicative,
    NoisinELBO,
    NoisyGRU,
    NoisyLSTM,
    NoisyRecurrent,
    NoisyRNN,
    NormalEmission,
    PriorGuide,
    SequenceModel,
    weight_drop,
)
from tests.helpers import NOISES, B, D, H, T, batch, build, site_kinds


class Translator(PyroModule):
    """A user's own Pyro model: two noisy RNNs, one pair of plates, an observed sequence."""

    def __init__(self, sites: Any) -> None:
        super().__init__()
        noise = Multiplicative(dist.Gamma(2.0, 1.0))
        self.reader = NoisyGRU(D, H, noise=noise, spread=Learned(0.4), sites=sites)
        self.writer = NoisyLSTM(H, H, 2, noise=[Additive(dist.Normal(0.0, 1.0)), None], sites=sites)
        self.emission = BernoulliEmission(H, 2)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        plates = (pyro.plate("steps", T, dim=-2), pyro.plate("sentences", B, dim=-1))
        read, _ = self.reader(x, plates=plates)
        written, _ = self.writer(read, plates=plates)
        with plates[0], plates[1]:
            return pyro.sample("y", self.emission(written), obs=y)


@site_kinds
def test_two_noisy_rnns_in_a_users_own_model(sites: str) -> None:
    model = Translator(sites)
    x, y = torch.randn(T, B, D), torch.randint(2, (T, B, 2)).float()
    trace = poutine.trace(model).get_trace(x, y)
    latent = {
        name
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"]
    } - {"steps", "sentences"}
    if sites == "sequence":
        assert latent == {"reader.noise_0", "writer.noise_0"}
    else:
        assert latent == {f"{rnn}.z_0_{t}" for rnn in ("reader", "writer") for t in range(T)}
    frames = {
        frame.name
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
    }
    ends = {"reader.end", "writer.end"}
    assert frames == {"steps", "sentences"} | ends  # and not reader.time, nor writer.batch

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        poutine.block(model, hide_fn=lambda s: s["name"] == "y" or s["is_observed"])(x)

    for options in ({}, {"num_particles": 3, "vectorize_particles": True, "max_plate_nesting": 2}):
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(**options))
        assert math.isfinite(svi.step(x, y))
    assert {"reader.spread_l0", "writer.weight_ih_l1"} <= set(pyro.get_param_store())
    assert model(x).shape == (T, B, 2)


def test_inside_a_users_plate_a_deterministic_rnn_is_torchs() -> None:
    """No site and no plate of its own, so nothing can collide."""
    rnn = NoisyLSTM(D, H, noise=NOISES["additive"][1])
    for one, options in ((NoisyLSTM(D, H), {}), (rnn, {"sample": False})):

        def program() -> Tensor:
            with pyro.plate("data", B, dim=-1):
                return one(torch.randn(T, B, D), **options)[0]  # noqa: B023

        nodes = poutine.trace(program).get_trace().nodes
        assert {name for name, site in nodes.items() if site["type"] == "sample"} == {"data"}


@pytest.mark.parametrize("kind", [Additive, Multiplicative])
def test_input_noise(kind: Any) -> None:
    """z = x m + a on the embedded input, with the mean path left alone."""
    rnn = NoisyRNN(D, H)
    model = SequenceModel(
        nn.Identity(),
        rnn,
        NormalEmission(H, 1),
        input_noise=kind(dist.Gamma(2.0, 1.0)),
        input_spread=0.3,
    )
    x = torch.randn(T, B, D)
    trace = poutine.trace(model).get_trace(x)
    site = trace.nodes["input_noise"]
    assert site["value"].shape == (T, B, D)
    assert {frame.name for frame in site["cond_indep_stack"]} == {"batch", "time"}
    noisy = x + 0.3 * site["value"] if kind is Additive else x * (1 + 0.3 * site["value"])
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"][1], rnn(noisy)[1])
    torch.testing.assert_close(model(x, sample=False)[1], rnn(x)[1])


def test_the_spread_of_input_noise_is_set_at_any_time() -> None:
    noise = Additive(dist.Normal(0.0, 1.0))
    model = SequenceModel(
        nn.Identity(), NoisyRNN(D, H), NormalEmission(H, 1), input_noise=noise, input_spread=0.3
    )
    model.input_spread = Learned(0.4)
    model(torch.randn(T, B, D))[0].sum().backward()
    assert model.input_spread_unconstrained.grad is not None
    model.input_spread = 0.2
    assert not any("input_spread" in name for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match="spread must be positive and finite, got -1.0"):
        model.input_spread = -1.0
    with pytest.raises(AttributeError, match="input_noise, which this model lacks"):
        SequenceModel(nn.Identity(), NoisyRNN(D, H), NormalEmission(H, 1)).input_spread = 0.2


def test_the_spread_of_input_noise_in_a_state_dict() -> None:
    """As that of an RNN: a number is in it, and a learned γ keeps its value under another floor."""

    def model(spread: Any) -> SequenceModel:
        noise = Additive(dist.Normal(0.0, 1.0))
        rnn = NoisyRNN(D, H)
        return SequenceModel(
            nn.Identity(), rnn, NormalEmission(H, 1), input_noise=noise, input_spread=spread
        )

    number, saved, other = model(0.7), model(Learned(0.5, 0.1)), model(Learned(0.5, 0.02))
    number.load_state_dict(model(0.3).state_dict())
    assert number.input_spread == 0.3
    with torch.no_grad():
        saved.input_spread_unconstrained.sub_(0.7)
    state = saved.state_dict()
    other.load_state_dict(state)
    torch.testing.assert_close(other.input_spread, saved.input_spread)
    with pytest.raises(RuntimeError, match=r"input_spread was learned above 0.1 and ended at 0.29"):
        model(Learned(0.5, 0.4)).load_state_dict(state)
    del state["input_spread_floor"]  # as in 0.4.0
    saved.load_state_dict(state)
    with pytest.raises(RuntimeError, match=f"each of {D} units has its own"):
        model(0.3).load_state_dict(model(torch.full((D,), 0.2)).state_dict())


def test_an_emission_whose_densities_would_count_several_times_is_refused() -> None:
    """Pyro would expand the batch shape (T, 1, 1) to (T, T, 1)."""
    head = nn.Linear(H, 1)
    rnn = NoisyGRU(D, H, noise=Additive(dist.Normal(0.0, 1.0)))
    x, y = torch.randn(T, 1, D), torch.randn(T, 1, 1)
    model = SequenceModel(nn.Identity(), rnn, lambda z: dist.Normal(head(z), 1.0))
    with pytest.raises(ValueError, match=rf"\(T, B\) = \({T}, 1\), got \({T}, 1, 1\); .to_event"):
        NoisinELBO().loss(model, PriorGuide(model), x, y)
    model.emission = lambda z: dist.Normal(head(z), 1.0).to_event(1)
    assert NoisinELBO().loss(model, PriorGuide(model), x, y) > 0


@pytest.mark.parametrize(
    "emission", [nn.Linear(H, 1), lambda z: torch.distributions.Normal(z.sum(-1), 1.0)]
)
def test_an_emission_must_return_a_pyro_distribution(emission: Any) -> None:
    model = SequenceModel(nn.Identity(), NoisyGRU(D, H), emission)
    with pytest.raises(TypeError, match="a distribution of pyro.distributions, such as"):
        model(torch.randn(T, B, D))


def test_inputs_without_a_feature_dimension_are_refused() -> None:
    """The RNN would take a matrix for one unbatched sequence."""
    model = SequenceModel(nn.Identity(), NoisyGRU(1, H), NormalEmission(H, 1))
    with pytest.raises(ValueError, match=rf"\(T, B, 1\), got \({T}, {B}\); for one number"):
        model(torch.randn(T, B))


def test_dropout_of_the_input_and_the_output() -> None:
    """What the RNN reads and what the emission reads, while training, noise or not."""
    model, (x, _) = build(dropout_input=0.4, dropout_output=0.6), batch()
    logits = {}
    for training in (True, False):
        model.train(training)
        torch.manual_seed(1)
        logits[training] = model.predict(x, sample=False)[0].logits
        torch.manual_seed(1)
        embedded = nn.functional.dropout(model.embedding(x), 0.4, training)
        z = nn.functional.dropout(model.rnn(embedded, sample=False)[0], 0.6, training)
        torch.testing.assert_close(logits[training], model.emission(z).logits)
    assert not torch.allclose(logits[True], logits[False])


def test_timestep_sites_under_dropout_need_noisin_elbo() -> None:
    model = build(sites="timestep", dropout_input=0.5)
    guide, (x, y) = PriorGuide(model), batch()
    with pytest.raises(ValueError, match="dropout_input=0.5.*another mask.*sites='sequence'"):
        Trace_ELBO()(model, guide)(x, y)
    assert NoisinELBO()(model, guide)(x, y).isfinite()
    model.eval()
    assert Trace_ELBO()(model, guide)(x, y).isfinite()


class Masked(nn.Module):
    """A cell with a dropout of its own."""

    input_size, hidden_size = D, H

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.inner = nn.Dropout(0.3), nn.GRUCell(D, H)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        return self.inner(self.drop(x), h)


def dropping(part: str, sites: Any) -> SequenceModel:
    """A model with dropout inside a part that a user has made."""
    options: Any = {"noise": Multiplicative(dist.Normal(0.0, 1.0)), "sites": sites}
    embedding = nn.Sequential(nn.Linear(2, D), nn.Dropout(0.3 if part == "embedding" else 0.0))
    rnn = NoisyRecurrent(Masked(), **options) if part == "cell" else NoisyGRU(D, H, **options)
    if part == "weight_drop":
        weight_drop(rnn, p=0.3)
    return SequenceModel(embedding, rnn, NormalEmission(H, 1))


@pytest.mark.parametrize(
    "part, name",
    [
        ("embedding", "embedding.1.p"),
        ("cell", "rnn.cell_l0.drop.p"),
        ("weight_drop", "rnn.parametrizations.weight_hh_l0.0.p"),
    ],
)
def test_dropout_inside_a_part_empties_the_kl_or_is_refused(part: str, name: str) -> None:
    """With other masks in guide and model Trace_ELBO was a hundred times the likelihood's loss."""
    x, y = torch.randn(T, B, 2), torch.randn(T, B, 1)
    model = dropping(part, "timestep")
    guide = PriorGuide(model)
    with pytest.raises(ValueError, match=f"{name}=0.3 would draw another mask"):
        Trace_ELBO()(model, guide)(x, y)
    pyro.clear_param_store()
    for sites in ("sequence", "timestep"):
        model = dropping(part, sites).train(sites == "sequence")
        guide = PriorGuide(model)
        losses = []
        for elbo in (Trace_ELBO(), NoisinELBO()):
            pyro.set_rng_seed(1)
            losses.append(elbo(model, guide)(x, y).item())
        assert math.isclose(*losses, rel_tol=1e-5)


def test_noise_of_another_call_is_refused() -> None:
    """Its input noise too, which an assertion or torch met."""
    normal = Additive(dist.Normal(0.0, 1.0))

    def build(**options: Any) -> LanguageModel:
        return LanguageModel(7, NoisyRNN(3, 4, noise=normal), **options)

    noisy, plain = build(input_noise=normal), build()
    tied = LanguageModel(7, NoisyRNN(3, 4, noise=normal, tied=True))
    x = torch.zeros(5, 2, dtype=torch.long)
    for model, drawn in (
        (plain, noisy.draw_noise(5, 2)),
        (noisy, plain.draw_noise(5, 2)),
        (noisy, noisy.draw_noise(4, 2)),
        (noisy, noisy.draw_noise(5, 3)),
        (plain, plain.draw_noise(4, 2)),
        (plain, plain.draw_noise(1, 2)),  # which would tie the noise of all steps
        (plain, plain.draw_noise(5, 1)),
        (tied, plain.draw_noise(5, 2)),
    ):
        with pytest.raises(ValueError, match=r"take drawn from this model's draw_noise\(5, 2\)"):
            model.predict(x, drawn=drawn)
    for model in (noisy, plain, tied):
        emitted, _ = model.predict(x, drawn=model.draw_noise(5, 2))
        assert emitted.batch_shape == (5, 2)


@pytest.mark.parametrize("noise", [None, Additive(dist.Normal(0.0, 1.0))], ids=["clean", "noisy"])
def test_the_final_state_is_a_site_of_every_model(noise: Any) -> None:
    """So that ``Predictive`` returns it, also without noise."""
    model = LanguageModel(7, NoisyGRU(3, 4, 2, noise=noise))
    trace = poutine.trace(model).get_trace(torch.zeros(5, 2, dtype=torch.long))
    _, state = trace.nodes["_RETURN"]["value"]
    assert torch.equal(trace.nodes["rnn.state"]["value"].squeeze(0), state.transpose(0, 1))
