"""Priors on weights by one call: the point estimate is a penalised one, exactly; η is learned."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn
from torch.testing import assert_close

from noisin_pyro import (
    Additive,
    AnnealedELBO,
    FilteringELBO,
    LanguageModel,
    Learned,
    Multiplicative,
    NoisinELBO,
    NoisyLSTM,
    NoisyRecurrent,
    NoisyRGLRU,
    NoisyRNN,
    PriorGuide,
    SequenceModel,
    Vocabulary,
    evaluate,
    sample_text,
    weight_priors,
)
from noisin_pyro.text.averaging import evaluate_each
from tests.helpers import K, batch, site_kinds, value_and_gradients

NORMAL = Additive(dist.Normal(0.0, 1.0))
WEIGHTS = [
    *(f"rnn.weight_{part}_l{layer}" for layer in (0, 1) for part in ("ih", "hh")),
    "emission.weight",
]


def words(sites: Any = "sequence", **options: Any) -> LanguageModel:
    noise = Multiplicative(dist.Gamma(2.0, 1.0))
    return LanguageModel(K, NoisyLSTM(3, 4, 2, noise=noise, sites=sites, **options)).double()


def twins(sites: Any = "sequence") -> tuple[LanguageModel, LanguageModel]:
    model, latent = words(sites), words(sites)
    latent.load_state_dict(model.state_dict())
    return model, latent


@site_kinds
@pytest.mark.parametrize("learned", [False, True])
def test_a_point_estimate_is_noisin_with_a_penalty(sites: str, learned: bool) -> None:
    """Value and gradients: −log N(W; 0, η²) in the loss, W/η² in W's, 1/η − W²/η³ in η's."""
    (model, latent), (x, y), eta = twins(sites), batch(K), 0.7
    start = weight_priors(latent, Learned(eta, lower=0.01) if learned else eta)
    guide: Any = PriorGuide(latent, rest=partial(AutoDelta, init_loc_fn=start))
    guide(x, y)  # makes the automatic guide's parameters
    point = value_and_gradients(model, lambda: NoisinELBO()(model, PriorGuide(model))(x, y))
    weights = {name: p.detach() for name, p in model.named_parameters() if name in WEIGHTS}
    assert set(weights) == set(WEIGHTS)
    locs = {name: guide.rest.get_parameter(f"{name}_unconstrained") for name in WEIGHTS}
    others = dict(latent.named_parameters())
    leaves = [locs[name] if name in locs else others[name] for name, _ in model.named_parameters()]
    raws = [others[f"{name}_scale_unconstrained"] for name in WEIGHTS] if learned else []
    found = value_and_gradients([*leaves, *raws], lambda: Trace_ELBO()(latent, guide)(x, y))
    penalty = sum(
        (w / eta).square().sum() / 2 + w.numel() * math.log(eta * math.sqrt(2 * math.pi))
        for w in weights.values()
    )
    assert_close(found[0], point[0] + penalty, rtol=1e-12, atol=0)
    for (name, _), theirs, ours in zip(model.named_parameters(), point[1:], found[1:]):
        pull = weights[name] / eta**2 if name in weights else 0.0
        assert_close(ours, theirs + pull, rtol=1e-9, atol=1e-10)
    for name, ours in zip(WEIGHTS, found[1 + len(leaves) :]):
        w = weights[name]
        expected = (w.numel() / eta - w.square().sum() / eta**3) * (eta - 0.01)  # η = 0.01 + exp
        assert_close(ours, expected, rtol=1e-9, atol=1e-10)


def test_wide_priors_leave_the_point_estimate() -> None:
    """The Dirac limit: ten steps of Adam under a prior that is flat in effect, and without one."""
    (model, latent), (x, y) = twins(), batch(K)
    start = weight_priors(latent, 1e9)
    guide = PriorGuide(latent, rest=partial(AutoDelta, init_loc_fn=start))
    guide(x, y)
    for program, other in ((model, PriorGuide(model)), (latent, guide)):
        pyro.clear_param_store()
        svi = SVI(program, other, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
        for step in range(10):
            pyro.set_rng_seed(step)
            svi.step(x, y)
    ours = guide.median()
    for name in WEIGHTS:
        assert_close(ours[name], model.get_parameter(name).detach(), rtol=1e-7, atol=1e-9)
        assert float((ours[name] - start({"name": name})).abs().max()) > 0.02
    fresh = words()
    fresh.load_state_dict({**latent.state_dict(), **ours}, strict=False)  # the way back
    mean, theirs = (one.predict(x, sample=False)[0].log_prob(y) for one in (fresh, model))
    assert_close(mean, theirs, rtol=1e-6, atol=1e-8)


@site_kinds
def test_the_weights_have_a_kl_and_the_noise_has_none(sites: str) -> None:
    """AutoNormal beside the noise's prior; η's gradient is that of the KL, at the draw."""
    model, (x, y), eta = words(sites), batch(K), 0.5
    start = weight_priors(model, Learned(eta, lower=0.01), names=WEIGHTS[:2])
    rest = partial(AutoNormal, init_loc_fn=start, init_scale=0.1)
    guide = PriorGuide(model, rest=rest)
    guide(x, y)
    pyro.set_rng_seed(1)
    guided: Any = poutine.trace(guide).get_trace(x, y)
    trace: Any = poutine.trace(poutine.replay(model, trace=guided)).get_trace(x, y)
    for one in (guided, trace):
        one.compute_log_prob()
    noise = [name for name, site in trace.nodes.items() if "_0" in name and "rnn.z" in name]
    noise += [name for name in trace.nodes if "rnn.noise_" in name]
    assert noise
    for name in noise:
        if not trace.nodes[name]["infer"].get("_deterministic"):
            q, p = (one.nodes[name]["log_prob_sum"].detach() for one in (guided, trace))
            assert_close(q, p, rtol=1e-12, atol=0)
    (raw,) = (p for name, p in model.named_parameters() if name.startswith(f"{WEIGHTS[1]}_scale"))
    _, gradient = value_and_gradients([raw], lambda: Trace_ELBO()(model, guide)(x, y))
    w = guided.nodes[WEIGHTS[1]]["value"].detach()
    expected = (w.numel() / eta - w.square().sum() / eta**3) * (eta - 0.01)
    assert_close(gradient, expected, rtol=1e-9, atol=1e-10)


def test_a_learned_scale_goes_to_the_root_mean_square_under_q() -> None:
    """η² = mean(m² + s²) where the KL is stationary, whatever the likelihood makes of m and s."""
    rnn = NoisyRNN(3, 4, noise=NORMAL, spread=0.3)
    model, (x, y) = LanguageModel(K, rnn), batch(K)
    start = weight_priors(model, Learned(1.0, lower=0.01), names=["emission.weight"])
    rest = partial(AutoNormal, init_loc_fn=start, init_scale=0.1)
    guide = PriorGuide(model, rest=rest)
    guide(x, y)
    optimizer = pyro.optim.Adam(
        lambda name: {"lr": 0.05 if name.endswith("_scale") else 0.0}  # m and s stay
    )
    svi = SVI(model, guide, optimizer, Trace_ELBO())
    for _ in range(150):
        svi.step(x, y)
    loc, scale = (getattr(guide.rest, part).emission.weight.detach() for part in ("locs", "scales"))
    expected = float((loc.square() + scale.square()).mean().sqrt())
    assert expected < 0.2
    assert model.emission.weight_scale.item() == pytest.approx(expected, rel=0.1)
    assert "emission.weight_scale" in pyro.get_param_store()


def test_medians_are_those_of_their_own_guide() -> None:
    """Also where the global store has the parameters of another guide under the same names."""
    medians = []
    for value in (0.5, 0.25):
        model, (x, y) = words(), batch(K)
        nn.init.constant_(model.emission.weight, value)
        start = weight_priors(model, 1.0)
        guide = PriorGuide(model, rest=partial(AutoDelta, init_loc_fn=start))
        AnnealedELBO()(model, guide)(x, y)
        medians.append(guide.median()["emission.weight"])
        guide(x, y)  # now the store has its parameters
    assert_close(medians[1], torch.full_like(medians[1], 0.25))
    with pytest.raises(ValueError, match=r"that of rest=, such as AutoNormal, got rest=None"):
        PriorGuide(words()).median()


def test_the_median_of_a_named_model_loads_without_the_name() -> None:
    model = LanguageModel(K, NoisyRNN(3, 4, noise=NORMAL), name="words")
    start, (x, y) = weight_priors(model, 1.0), batch(K)
    guide = PriorGuide(model, rest=partial(AutoDelta, init_loc_fn=start))
    guide(x, y)
    fresh = LanguageModel(K, NoisyRNN(3, 4, noise=NORMAL))
    found = {name.removeprefix("words."): value for name, value in guide.median().items()}
    missing, _ = fresh.load_state_dict({**model.state_dict(), **found}, strict=False)
    assert not missing
    assert_close(fresh.emission.weight.data, start({"name": "words.emission.weight"}))


def test_a_copy_draws_no_weight() -> None:
    """deepcopy and pickle read no weight that has a prior, and change no random state."""
    model, (x, _) = words(), batch(K)
    weight_priors(model, Learned(0.5, lower=0.01))
    before = torch.get_rng_state()
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert torch.equal(torch.get_rng_state(), before)
    said = []
    for one in (model, *copies):
        torch.manual_seed(1)
        said.append(one.predict(x)[0].logits)
        assert one.rnn.weight_hh_l0.requires_grad  # through its learned scale
    assert torch.equal(said[0], said[1]) and torch.equal(said[0], said[2])
    assert copies[0].float().rnn.weight_hh_l0.dtype == torch.float32


def test_a_learned_scale_keeps_its_value_under_another_floor() -> None:
    saved, other, above = words(), words(), words()
    for model, floor in ((saved, 0.1), (other, 0.02), (above, 0.45)):
        weight_priors(model, Learned(0.5, floor))
    with torch.no_grad():
        saved.rnn.weight_hh_l0_scale_unconstrained.sub_(0.7)
    for model in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        model.load_state_dict(saved.state_dict())
        for part, name in ((model.rnn, "weight_hh_l0_scale"), (model.emission, "weight_scale")):
            there = saved.rnn if part is model.rnn else saved.emission
            assert_close(getattr(part, name), getattr(there, name))
    with pytest.raises(RuntimeError, match=r"rnn.weight_hh_l0_scale was learned above 0.1 and end"):
        above.load_state_dict(saved.state_dict())
    older = {k: v for k, v in saved.state_dict().items() if not k.endswith("_floor")}
    saved.load_state_dict(older)
    weight_priors(fixed := words(), 0.5)
    assert not [name for name in fixed.state_dict() if name.endswith("_floor")]


def test_it_trains_on_windows_with_the_kl_of_the_whole_text() -> None:
    model, (x, y) = words(), batch(K)
    start = weight_priors(model, 0.5)
    guide = PriorGuide(model, rest=partial(AutoNormal, init_loc_fn=start))
    guide(x, y)
    objective = AnnealedELBO(0.5)(model, guide)
    loss, state = objective.with_state(x, y)
    loss, _ = objective.with_state(x, y, state)
    loss.backward()
    assert all(p.grad is not None for p in guide.parameters())


def test_a_copy_and_a_cell_of_ones_own() -> None:
    """Copies have priors of their own η; a plain cell and emission become Pyro's in place."""
    model = LanguageModel(5, NoisyRecurrent(nn.LSTMCell(3, 4), noise=NORMAL), name="words")
    start = weight_priors(model, Learned(0.5))
    kept = [name for name, _ in model.named_parameters()]
    assert [name for name in kept if "weight" in name and "scale" not in name] == [
        "embedding.weight"
    ]
    other = copy.deepcopy(model)
    x, y = batch(5)
    for one in (model, other):
        pyro.clear_param_store()
        with poutine.trace() as traced:
            one(x, y)
        shapes = {
            name: site["value"].shape
            for name, site in traced.trace.nodes.items()
            if "weight" in name and site["type"] == "sample"
        }
        assert shapes["words.rnn.cell_l0.weight_hh"] == (16, 4)
        assert shapes["words.emission.weight"] == (5, 4)
        assert len(shapes) == 3
    assert (
        other.emission.weight_scale_unconstrained is not model.emission.weight_scale_unconstrained
    )
    assert start({"name": "words.emission.weight"}).shape == (5, 4)


def test_refusals() -> None:
    def refused(message: str, *args: Any, error: Any = ValueError, **options: Any) -> None:
        with pytest.raises(error, match=message):
            weight_priors(*args, **options)

    model = words()
    refused("needs a PyroModule such as", nn.Linear(1, 1), error=TypeError)
    refused(r"number or Learned\(...\), got 'x'", model, "x", error=TypeError)
    for scale in (0.0, -1.0, math.inf):
        refused("scale must be positive and finite", model, scale)
    refused("one scale for each weight", model, Learned(0.5, per="unit"))
    refused(
        "found no weight rnn.weight in LanguageModel; its parameters", model, names=["rnn.weight"]
    )
    tied = LanguageModel(5, NoisyRNN(4, 4, noise=NORMAL), tied_weights=True)
    refused("would untie embedding.weight and emission.weight", tied)
    weight_priors(tied, names=["rnn.weight_hh_l0"])
    weight_priors(model)
    refused("found no weight at all", model)


def test_a_model_without_parameters() -> None:
    """Its device and dtype are those of its RNN: here of weights that all have a prior."""
    model, tokens = LanguageModel(K, NoisyRNN(4, 6, noise=NORMAL)), torch.randint(K, (40,))
    weight_priors(model, 0.5, names=[name for name, _ in model.named_parameters()])
    assert not list(model.parameters())
    assert evaluate(model, tokens, 2).samples == evaluate_each(model, tokens, [2])[2].samples == 2
    vocabulary = Vocabulary.build([*"abcdefghij"[: K - 2]])
    assert sample_text(model, "a", 3, vocabulary=vocabulary)

    class Leaky(nn.Module):
        input_size = hidden_size = 1

        def forward(self, x: Any, h: Any) -> Any:
            return 0.9 * h + 0.1 * x

    def emission(z: Any) -> Any:
        return dist.Normal(z.squeeze(-1), 1.0)

    fixed = SequenceModel(
        lambda x: x.unsqueeze(-1), NoisyRecurrent(Leaky(), noise=NORMAL), emission
    )
    x = torch.randn(7, 3)
    assert FilteringELBO(4)(fixed, PriorGuide(fixed))(x[:-1], x[1:]).isfinite()


@pytest.mark.parametrize("kind", [NoisyLSTM, NoisyRGLRU])
@pytest.mark.parametrize("names", [None, "bias_ih_l0", ["weight_ih_l1", "bias_ih_l1"]])
def test_the_rest_can_be_drawn_anew(kind: Any, names: Any) -> None:
    """A linear recurrence raised a KeyError, and the LSTM drew the scale like a weight."""
    rnn = kind(3, 5, 2)
    weight_priors(rnn, Learned(0.3, lower=0.01), names=names)
    before = {name: weight.clone() for name, weight in rnn.named_parameters()}
    rnn.reset_parameters()
    changed = {name for name, weight in rnn.named_parameters() if not weight.equal(before[name])}
    assert changed == {name for name in before if not name.endswith("_scale_unconstrained")}
    assert len(changed) < len(before)
