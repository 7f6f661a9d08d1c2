"""The NOISIN objective: a likelihood term and nothing else, however it is computed.

Statistical tests have fixed seeds and say how often they would fail by chance on others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    BernoulliEmission,
    CategoricalEmission,
    LanguageModel,
    Learned,
    MeanParameterized,
    Multiplicative,
    NoisinELBO,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    NormalEmission,
    PriorGuide,
    SequenceModel,
    detach_state,
)

K, D, H, T, B = 7, 3, 4, 5, 3
LENGTHS = torch.tensor([5, 2, 4])

NOISES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "additive": (NoisyLSTM, Additive(dist.Gumbel(0.0, 1.0)), {}),
    "multiplicative": (NoisyGRU, Multiplicative(dist.Gamma(2.0, 1.0)), {}),
    "gamma": (  # of the state's mean, and reparameterised
        NoisyRNN,
        MeanParameterized(lambda m, s: dist.Gamma(1 / s**2, 1 / (m * s**2))),
        {"nonlinearity": "sigmoid"},
    ),
    "lognormal": (
        NoisyRNN,
        MeanParameterized(lambda m, s: dist.LogNormal(m.log() - s**2 / 2, s)),
        {"nonlinearity": "sigmoid"},
    ),
    "bernoulli": (  # without a pathwise gradient
        NoisyRNN,
        MeanParameterized(lambda m, s: dist.Bernoulli(m)),
        {"nonlinearity": "sigmoid"},
    ),
}
noises = pytest.mark.parametrize("noise", [name for name in NOISES if name != "lognormal"])
site_kinds = pytest.mark.parametrize("sites", ["sequence", "timestep"])


def build(noise: str = "additive", *, layers: int = 2, spread: Any = None, **options: Any) -> Any:
    """A language model in double precision."""
    kind, law, extra = NOISES[noise]
    rnn_options = {k: options.pop(k) for k in ("sites", "noise_to", "tied") if k in options}
    rnn = kind(D, H, layers, noise=law, spread=spread or Learned(0.5), **extra, **rnn_options)
    return LanguageModel(K, rnn, **options).double()


def batch() -> tuple[Tensor, Tensor]:
    text = torch.randint(K, (T + 1, B))
    return text[:-1], text[1:]


def state_of(model: Any) -> Any:
    parts = tuple(torch.rand(model.rnn.num_layers, B, H, dtype=torch.float64) for _ in range(2))
    return parts if isinstance(model.rnn, NoisyLSTM) else parts[0]


def value_and_gradients(model: Any, loss: Callable[[], Tensor]) -> list[Tensor]:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    value = loss()
    leaves = list(model.parameters())
    return [value.detach(), *torch.autograd.grad(value, leaves, materialize_grads=True)]


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-11) -> None:
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs):
        torch.testing.assert_close(mine, reference, rtol=tolerance, atol=tolerance)


def test_without_an_observation_there_is_no_objective() -> None:
    model = build()
    x, _ = batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective = NoisinELBO(3)
    svi = SVI(model, PriorGuide(model), pyro.optim.Adam({"lr": 0.1}), objective)
    for call in (objective(model, PriorGuide(model)), svi.step, svi.evaluate_loss):
        with pytest.raises(ValueError, match="NoisinELBO needs an observed site.*no y; call it as"):
            call(x)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])
    with poutine.condition(data={"y": x}):  # observed elsewhere
        assert objective(model, PriorGuide(model))(x) > 0


@pytest.mark.filterwarnings("ignore:weight was not registered")  # by Pyro, of the embedding
@site_kinds
@pytest.mark.parametrize("estimator", [NoisinELBO, Trace_ELBO])
@pytest.mark.parametrize("how, local", [("module", False), ("module", True), ("svi", False)])
def test_what_is_frozen_stays_so(how: str, estimator: Any, local: bool, sites: str) -> None:
    """Pyro's store makes whatever it holds require a gradient; the frozen must not get there."""
    with pyro.settings.context(module_local_params=local):
        model = build(sites=sites, spread=Learned(0.3)).requires_grad_(False)
        model.emission.bias.requires_grad_(True)
        model.rnn.bias_hh_l1.requires_grad_(True)
        wanted = {"emission.bias", "rnn.bias_hh_l1"}
        before = {name: value.clone() for name, value in model.state_dict().items()}
        guide, (x, y) = PriorGuide(model), batch()
        if how == "svi":
            optimizer = pyro.optim.SGD({"lr": 0.1})
            SVI(model, guide, optimizer, estimator()).step(x, y)
        else:
            objective = estimator()(model, guide)
            objective(x, y).backward()
            gradients = {n for n, p in model.named_parameters() if p.grad is not None}
            assert gradients == wanted
            torch.optim.SGD(objective.parameters(), 0.1).step()
        assert {n for n, p in model.named_parameters() if p.requires_grad} == wanted
        moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
        assert moved == wanted


@site_kinds
@pytest.mark.parametrize("base", [dist.Gumbel(0.0, 1.0), dist.Bernoulli(0.3)], ids=str)
def test_training_after_inference_mode(base: Any, sites: str) -> None:
    """A noise keeps its standardised base, and that its lazy properties; none may be tainted."""
    noise = Additive(base)
    model = LanguageModel(K, NoisyRNN(D, H, noise=noise, sites=sites)).double()
    x, y = batch()
    with torch.inference_mode():
        model.predict(x, sample=True)
        Trace_ELBO().loss(model, PriorGuide(model), x, y)
    Trace_ELBO()(model, PriorGuide(model))(x, y).backward()
    assert noise.standardized(model.rnn.weight_hh_l0) is noise.standardized(model.rnn.weight_hh_l0)


# -- three ways to one number ------------------------------------------------------------------


@noises
@site_kinds
@pytest.mark.parametrize("local", [False, True], ids=["global params", "local params"])
def test_trace_elbo_is_noisin_elbo_is_the_likelihood(noise: str, sites: str, local: bool) -> None:
    with pyro.settings.context(module_local_params=local):
        options = {"input_noise": Additive(dist.Laplace(0.0, 1.0)), "input_spread": Learned(0.3)}
        model = build(noise, sites=sites, **options)
        guide, (x, y) = PriorGuide(model), batch()
        for state, lengths in ((None, None), (state_of(model), LENGTHS)):
            elbo, noisin = (
                value_and_gradients(model, lambda: kind()(model, guide)(x, y, state, lengths))  # noqa: B023
                for kind in (Trace_ELBO, NoisinELBO)
            )
            if noise == "bernoulli":  # whose gradient has one more term, which is below
                assert_close(noisin[:1], elbo[:1])
                assert_close(noisin, elbo) if lengths is None else None
                continue
            assert_close(noisin, elbo)
            assert all(bool(gradient.any()) for gradient in noisin)
            law_only = value_and_gradients(model, lambda: by_hand(model, x, y, state, lengths))  # noqa: B023
            assert_close(noisin, law_only)


def by_hand(model: Any, x: Tensor, y: Tensor, state: Any, lengths: Any) -> Tensor:
    """−Σ log p(y | z) along a plain pass, outside Pyro."""
    log_prob = model.predict(x, state, lengths)[0].log_prob(y)
    if lengths is not None:
        log_prob = log_prob * (torch.arange(T).unsqueeze(1) < lengths)
    return -log_prob.sum()


def test_score_function_is_added_to_the_likelihood_and_leaves_its_value() -> None:
    model = build("bernoulli")
    guide, (x, y) = PriorGuide(model), batch()
    torch.manual_seed(1)
    loss = NoisinELBO()(model, guide)(x, y)
    torch.manual_seed(1)
    with torch.no_grad():
        torch.testing.assert_close(loss.detach(), by_hand(model, x, y, None, None))
    torch.manual_seed(1)
    assert NoisinELBO().loss(model, guide, x, y) == pytest.approx(float(loss.detach()), abs=1e-10)


@noises
@pytest.mark.parametrize("vectorized", [False, True])
def test_particles(noise: str, vectorized: bool) -> None:
    model, lengths = build(noise), None if noise == "bernoulli" else LENGTHS
    guide, (x, y) = PriorGuide(model), batch()
    options = {"num_particles": 3, "vectorize_particles": vectorized}
    estimates = (
        Trace_ELBO(**options, max_plate_nesting=2)(model, guide),
        NoisinELBO(**options)(model, guide),
    )
    elbo, noisin = (
        value_and_gradients(model, lambda: estimate(x, y, None, lengths))  # noqa: B023
        for estimate in estimates
    )
    assert_close(noisin, elbo, 1e-10)
    if not vectorized and noise != "bernoulli":  # the same draws as three passes of one

        def mean() -> Tensor:
            return sum(NoisinELBO()(model, guide)(x, y, None, LENGTHS) for _ in range(3)) / 3  # type: ignore[return-value]

        assert_close(noisin, value_and_gradients(model, mean))


def trained(estimator: Any, noise: str, how: str, sites: str) -> dict[str, Tensor]:
    """The parameters after some steps of gradient descent."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    model = build(noise, layers=1, sites=sites)
    guide, (x, y) = PriorGuide(model), batch()
    lengths = None if noise == "bernoulli" else LENGTHS
    if how == "SVI":
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), estimator)
        for _ in range(3):
            svi.step(x, y, None, lengths)
    elif how == "module":
        objective = estimator(model, guide)
        optimizer = torch.optim.Adam(objective.parameters(), lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            objective(x, y, None, lengths).backward()
            optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("noise", ["multiplicative", "bernoulli"])
@site_kinds
@pytest.mark.parametrize("local", [False, True], ids=["global params", "local params"])
def test_svi_and_torch_optimisers_take_the_same_steps(noise: str, sites: str, local: bool) -> None:
    """(Pyro's SVI itself knows no local params, which are for the module form.)"""
    with pyro.settings.context(module_local_params=local):
        start = trained(None, noise, "not at all", sites)
        reference = trained(Trace_ELBO(), noise, "module", sites)
        for estimator, how in itertools.product((Trace_ELBO(), NoisinELBO()), ("SVI", "module")):
            if not (local and how == "SVI"):
                steps = trained(estimator, noise, how, sites)
                assert_close(list(steps.values()), list(reference.values()), 1e-7)
    still = {name for name in start if torch.equal(start[name], reference[name])}
    assert still == ({"rnn.spread_l0_unconstrained"} if noise == "bernoulli" else set())


@pytest.mark.parametrize("noise", ["additive", "bernoulli"])
def test_scale(noise: str) -> None:
    """A scale multiplies the loss and its gradients once."""
    model = build(noise)
    guide, (x, y) = PriorGuide(model), batch()
    plain = value_and_gradients(model, lambda: NoisinELBO()(model, guide)(x, y))
    for kind in (Trace_ELBO, NoisinELBO):
        with poutine.scale(scale=0.1):
            scaled = value_and_gradients(model, lambda: kind()(model, guide)(x, y))  # noqa: B023
        if noise == "additive":
            assert_close(scaled, [0.1 * part for part in plain])
        if kind is Trace_ELBO:
            reference = scaled
    assert_close(scaled, reference)


def test_mean_path_under_svi() -> None:
    """``eval()`` leaves the deterministic RNN: no latent site, the plain cross-entropy."""
    model = build().eval()
    guide, (x, y) = PriorGuide(model), batch()
    nodes = poutine.trace(model).get_trace(x, y).nodes
    sampled = {k for k, v in nodes.items() if v["type"] == "sample" and k not in ("time", "batch")}
    assert sampled == {"y", "rnn.state"}

    def cross_entropy() -> Tensor:
        logits = model.predict(x)[0].logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")

    reference = value_and_gradients(model, cross_entropy)
    for estimator in (Trace_ELBO(), NoisinELBO()):
        loss = estimator(model, guide)
        assert_close(value_and_gradients(model, lambda: loss(x, y)), reference)  # noqa: B023
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), estimator)
        assert svi.step(x, y) == pytest.approx(float(reference[0]))


def test_a_guide_that_is_not_the_models_prior_is_refused() -> None:
    model, (x, y) = build(), batch()
    others = {
        "PriorGuide": PriorGuide(build()),
        "AutoNormal": AutoNormal(model),
        "function": lambda *args: None,
    }
    for name, guide in others.items():
        with pytest.raises(
            TypeError, match=rf"needs PriorGuide\(model\) of the very model.*{name}"
        ):
            NoisinELBO()(model, guide)
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.1}), NoisinELBO())
        with pytest.raises(TypeError, match=name):
            svi.step(x, y)


# -- the spread --------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["additive", "multiplicative", "lognormal"])
@pytest.mark.parametrize("per", ["layer", "unit"])
def test_gradient_of_the_spread(noise: str, per: Any) -> None:
    """Against a central difference with common random numbers."""
    model = build(noise, spread=Learned(0.5, per=per))
    objective, (x, y) = NoisinELBO()(model, PriorGuide(model)), batch()

    def loss() -> Tensor:
        pyro.set_rng_seed(1)
        return objective(x, y, None, LENGTHS)  # type: ignore[no-any-return]

    for layer in range(2):
        raw = model.rnn.get_parameter(f"spread_l{layer}_unconstrained")
        assert raw.shape == ((H,) if per == "unit" else ())
        (gradient,) = torch.autograd.grad(loss(), [raw])
        for index in range(raw.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    raw.view(-1)[index] += sign * 1e-5
                    values.append(float(loss()))
                    raw.view(-1)[index] -= sign * 1e-5
            numeric = (values[0] - values[1]) / 2e-5
            assert numeric != 0
            assert float(gradient.view(-1)[index]) == pytest.approx(numeric, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("per", ["layer", "unit"])
def test_spread_in_the_param_store(per: Any) -> None:
    model, (x, y) = build(spread=[Learned(0.5, 0.2, per), 0.3]), batch()
    svi = SVI(model, PriorGuide(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(x, y)
    store = pyro.get_param_store()
    assert "rnn.spread_l0" in store and "rnn.spread_l1" not in store
    held = store["rnn.spread_l0"]
    assert held.shape == ((H,) if per == "unit" else ())
    torch.testing.assert_close(held, model.rnn.spread[0])
    assert store._constraints["rnn.spread_l0"].lower_bound == 0.2
    assert held.unconstrained() is model.rnn.spread_l0_unconstrained


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_floor_holds_against_a_thousand_adversarial_steps(dtype: torch.dtype) -> None:
    rnn = NoisyRNN(D, H, noise=NOISES["additive"][1], spread=Learned(0.5, 0.1), dtype=dtype)
    raw = rnn.get_parameter("spread_l0_unconstrained")
    optimizer = torch.optim.SGD([raw], lr=1.0)
    for _ in range(1000):  # γ's own gradient would fade; an adversary's does not
        raw.grad = torch.ones_like(raw)
        optimizer.step()
    assert float(raw.detach()) < -900
    (spread,) = rnn.spread
    assert spread is not None and bool(spread >= torch.tensor(0.1, dtype=dtype))
    assert rnn(torch.randn(T, B, D, dtype=dtype))[0].isfinite().all()


def test_spread_without_a_floor_warns_and_collapses_in_training() -> None:
    with pytest.warns(UserWarning, match="without a floor is driven to zero.*lower > 0"):
        free = Learned(0.5, lower=0.0)
    x, y = batch()
    for spread, low, high in ((free, 0.0, 0.05), (Learned(0.5, lower=0.2), 0.2, 0.25)):
        model = build("multiplicative", layers=1, spread=spread)
        objective = NoisinELBO(4, vectorize_particles=True)(model, PriorGuide(model))
        optimizer = torch.optim.Adam(objective.parameters(), lr=0.1)
        for _ in range(120):
            optimizer.zero_grad()
            objective(x, y).backward()
            optimizer.step()
        assert low <= float(model.rnn.spread[0].detach()) < high


# -- padding -----------------------------------------------------------------------------------


@noises
@site_kinds
def test_padding_changes_nothing(noise: str, sites: str) -> None:
    model = build(noise, sites=sites)
    guide, (x, y), state = PriorGuide(model), batch(), state_of(model)
    past = torch.arange(T).unsqueeze(1) >= LENGTHS
    finals = []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        loss, final = NoisinELBO()(model, guide).with_state(x, y, state, LENGTHS)
        finals.append(final)
        return loss  # type: ignore[no-any-return]

    ours = value_and_gradients(model, lambda: loss(x, y))
    other = (torch.where(past, (part + 1) % K, part) for part in (x, y))
    assert_close(value_and_gradients(model, lambda: loss(*other)), ours, 0.0)
    for one, two in zip(*(f if isinstance(f, tuple) else (f,) for f in finals)):
        assert torch.equal(one, two)

    # and each sequence counts as if it stood alone, with the noise it had in the batch
    pyro.clear_param_store()
    whole = poutine.trace(model).get_trace(x, y, state, LENGTHS)
    whole.compute_log_prob()
    assert not whole.nodes["y"]["log_prob"][past].any()
    latent = {
        name: site
        for name, site in whole.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and name not in ("time", "batch")
    }
    log_joint = torch.zeros((), dtype=torch.float64)
    for column, length in enumerate(LENGTHS.tolist()):
        one = slice(column, column + 1)
        values = {name: site["value"][:length, one] for name, site in latent.items()}
        pyro.clear_param_store()
        alone = poutine.trace(poutine.condition(model, values)).get_trace(
            x[:length, one], y[:length, one], nested(state, one)
        )
        log_joint = log_joint + alone.log_prob_sum()
        ours = nested(whole.nodes["_RETURN"]["value"][1], one)
        assert_close(flat(ours), flat(alone.nodes["_RETURN"]["value"][1]))
    torch.testing.assert_close(whole.log_prob_sum(), log_joint, rtol=1e-11, atol=1e-11)


def flat(state: Any) -> list[Tensor]:
    return list(state) if isinstance(state, tuple) else [state]


def nested(state: Any, column: slice) -> Any:
    parts = tuple(part[..., column, :] for part in flat(state))
    return parts if isinstance(state, tuple) else parts[0]


# -- noise without a pathwise gradient ---------------------------------------------------------


@pytest.mark.parametrize("family", ["bernoulli", "poisson"])
def test_score_function_gradient_against_enumeration(family: str) -> None:
    """The mean of many estimates against the exact gradient of E[Σ log p(y_t | z_t)].

    The largest of the t statistics of all coordinates exceeds the limit by chance about once
    in 10⁶ seeds (Student's t with 39 degrees of freedom, Bonferroni).
    """
    steps, hidden = 2, 2
    law, nonlinearity, values = {
        "bernoulli": (dist.Bernoulli, "sigmoid", 2),
        "poisson": (dist.Poisson, "relu", 9),  # P(z ≥ 9) is below 1e-9 for these means
    }[family]
    rnn = NoisyRNN(
        D, hidden, nonlinearity=nonlinearity, noise=MeanParameterized(lambda m, s: law(m))
    )
    model = SequenceModel(nn.Identity(), rnn, CategoricalEmission(hidden, K)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1.0, 1.0)
        if family == "poisson":
            for name, parameter in model.rnn.named_parameters():
                parameter.uniform_(*((0.05, 0.1) if "bias" in name else (-0.03, 0.03)))
    leaves = [p for name, p in model.named_parameters() if p.numel() and "spread" not in name]
    x = torch.randn(steps, 1, D, dtype=torch.float64)
    y = torch.tensor([[1], [4]])

    # every path z, one to a column of the batch
    paths = torch.cartesian_prod(*[torch.arange(values, dtype=torch.float64)] * (steps * hidden))
    paths = paths.view(-1, steps, hidden).movedim(0, 1)
    conditions = {f"rnn.z_0_{t}": paths[t : t + 1] for t in range(steps)}
    wide = [part.expand(-1, paths.shape[1], *part.shape[2:]) for part in (x, y)]
    trace = poutine.trace(poutine.condition(model, conditions)).get_trace(*wide)
    trace.compute_log_prob()
    log_p = sum(trace.nodes[name]["log_prob"].squeeze(0) for name in conditions)
    probability = log_p.exp()
    torch.testing.assert_close(
        probability.sum().detach(), torch.ones((), dtype=torch.float64), rtol=1e-8, atol=1e-8
    )
    exact_loss = -(probability * trace.nodes["y"]["log_prob"].sum(0)).sum()
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(exact_loss, leaves)])

    objective = NoisinELBO(500, vectorize_particles=True)(model, PriorGuide(model))
    estimates = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(objective(x, y), leaves)])
            for _ in range(40)
        ]
    )
    error = estimates.std(0) / math.sqrt(len(estimates))
    moving = error > 1e-12  # a ReLU unit that is off has no gradient at all
    assert int(moving.sum()) > 10
    t = (estimates.mean(0) - exact)[moving] / error[moving]
    assert float(t.abs().max()) < 7.0
    torch.testing.assert_close(estimates.mean(0)[~moving], exact[~moving], rtol=1e-6, atol=1e-9)
    # E[log p(y | z)] reaches the RNN by the score alone, so the test sees whether it is there
    recurrent = sum(parameter.numel() for parameter in rnn.parameters() if parameter.dim())
    assert float((exact / error)[:recurrent].nan_to_num(0, 0, 0).abs().max()) > 10


# -- priors, other models, other objectives -----------------------------------------------------


@site_kinds
def test_priors_on_a_weight_and_on_the_spread(sites: str) -> None:
    rnn = NoisyLSTM(
        D,
        H,
        2,
        noise=NOISES["additive"][1],
        spread=[dist.LogNormal(-1.0, 0.3), dist.Gamma(2.0, 4.0).expand([H]).to_event(1)],
        sites=sites,  # type: ignore[arg-type]
    )
    rnn.weight_hh_l0 = PyroSample(dist.Normal(0.0, 0.3).expand([4 * H, H]).to_event(2))
    model = LanguageModel(K, rnn)
    guide, (x, y) = PriorGuide(model), batch()
    nodes = poutine.trace(model).get_trace(x, y).nodes
    shapes = {"weight_hh_l0": (4 * H, H), "spread_l0": (), "spread_l1": (H,)}
    for name, shape in shapes.items():
        site = nodes[f"rnn.{name}"]
        assert site["value"].shape == shape and not site["cond_indep_stack"]
    elbo, noisin = (
        value_and_gradients(model, lambda: kind()(model, guide)(x, y))  # noqa: B023
        for kind in (Trace_ELBO, NoisinELBO)
    )
    assert_close(noisin, elbo, 1e-5)
    with pytest.raises(ValueError, match="drawn once per particle.*vectorize_particles=False"):
        NoisinELBO(2, vectorize_particles=True)(model, guide)(x, y)
    for name in ("bias_ih_l0", "bias_hh_l1"):
        for kind in (NoisyRNN, NoisyGRU, NoisyLSTM):
            rnn = kind(D, H, 2, noise=NOISES["additive"][1], sites=sites)
            size = getattr(rnn, name).shape
            setattr(rnn, name, PyroSample(dist.Normal(0.0, 0.3).expand(size).to_event(1)))
            biased = LanguageModel(K, rnn)
            with pytest.raises(ValueError, match="a bias .* once per particle"):
                NoisinELBO(2, vectorize_particles=True)(biased, PriorGuide(biased))(x, y)
            assert NoisinELBO(2)(biased, PriorGuide(biased))(x, y) > 0
    model.rnn.weight_hh_l0 = nn.Parameter(torch.randn(4 * H, H))
    vectorized = [
        value_and_gradients(model, lambda: estimate(model, guide)(x, y))  # noqa: B023
        for estimate in (
            Trace_ELBO(4, max_plate_nesting=2, vectorize_particles=True),
            NoisinELBO(4, vectorize_particles=True),
        )
    ]
    assert_close(*vectorized, 1e-4)


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
    assert frames == {"steps", "sentences"}  # and not reader.time, nor writer.batch

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
                return one(torch.randn(T, B, D), **options)[0]  # type: ignore[no-any-return]  # noqa: B023

        nodes = poutine.trace(program).get_trace().nodes
        assert {name for name, site in nodes.items() if site["type"] == "sample"} == {"data"}


@noises
def test_state_is_carried_from_window_to_window(noise: str) -> None:
    model = build(noise)
    objective, (x, y) = NoisinELBO()(model, PriorGuide(model)), batch()
    torch.manual_seed(1)
    loss, state = objective.with_state(x, y)
    torch.manual_seed(1)
    _, reference = model(x, y) if noise != "bernoulli" else (None, state)
    assert_close(flat(state), flat(reference))
    assert all(part.shape == (2, B, H) for part in flat(state))
    assert all(part.requires_grad for part in flat(state)) or noise == "bernoulli"
    carried = detach_state(state)
    assert not any(part.requires_grad for part in flat(carried))
    torch.manual_seed(1)
    assert not torch.equal(objective.with_state(x, y, carried)[0], loss)  # it was read
    particles = NoisinELBO(3, vectorize_particles=True)(model, PriorGuide(model))
    loss, state = particles.with_state(x, y)
    assert all(part.shape == (3, 2, B, H) for part in flat(state))
    loss, state = particles.with_state(x, y, detach_state(state))
    assert loss.shape == () and all(part.shape == (3, 2, B, H) for part in flat(state))


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


@site_kinds
def test_renyi_elbo_is_the_importance_weighted_bound(sites: str) -> None:
    """NOISIN ≤ IW_K ≤ log p(y), which is exact here: a linear Gaussian state space.

    A bound whose weights were taken per step instead of per sequence would be off by 2; the
    tolerance is about seven standard errors.
    """
    rnn = NoisyRNN(
        1,
        1,
        nonlinearity="identity",
        bias=False,
        noise=Additive(dist.Normal(0.0, 1.0)),
        spread=1.0,
        sites=sites,  # type: ignore[arg-type]
    )
    model = SequenceModel(nn.Identity(), rnn, NormalEmission(1, 1, scale=0.5)).double()
    with torch.no_grad():
        for parameter, value in (
            (rnn.weight_hh_l0, 1.0),
            (rnn.weight_ih_l0, 0.0),
            (model.emission.weight, 1.0),
            (model.emission.bias, 0.0),
        ):
            parameter.fill_(value)
    steps = 3
    x = torch.zeros(steps, 2, 1, dtype=torch.float64)
    y = torch.tensor([[2.0, 0.3], [2.0, -0.5], [2.0, 0.1]], dtype=torch.float64).unsqueeze(-1)
    walk = torch.ones(steps, steps, dtype=torch.float64).tril()
    covariance = walk @ walk.T + 0.25 * torch.eye(steps, dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(
        torch.zeros(steps, dtype=torch.float64), covariance
    )
    exact = float(law.log_prob(y.squeeze(-1).T).sum())
    guide = PriorGuide(model)

    def bound(particles: int) -> float:
        options = {"num_particles": particles, "vectorize_particles": True}
        return -float(RenyiELBO(0.0, **options, max_plate_nesting=2).loss(model, guide, x, y))

    noisin = -NoisinELBO(10_000, vectorize_particles=True).loss(model, guide, x, y)
    tight = bound(10_000)
    assert tight == pytest.approx(exact, abs=0.2)
    assert noisin < sum(bound(5) for _ in range(20)) / 20 < tight
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), RenyiELBO(0.0, num_particles=2))
    assert math.isfinite(svi.step(x, y))


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
