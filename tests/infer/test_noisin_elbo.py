"""The NOISIN objective: a likelihood term and nothing else, however it is computed."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroSample
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    LanguageModel,
    Learned,
    NoisinELBO,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    PriorGuide,
    detach_state,
)
from tests.helpers import (
    LENGTHS,
    NOISES,
    B,
    D,
    H,
    K,
    T,
    assert_all_close,
    batch,
    build,
    flat,
    site_kinds,
    state_of,
    value_and_gradients,
)

noises = pytest.mark.parametrize("noise", ["additive", "multiplicative", "gamma", "bernoulli"])


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
def test_training_after_inference_mode(base: Any, sites: Any) -> None:
    """A noise keeps its standardised base, and that its lazy properties; none may be tainted."""
    noise = Additive(base)
    model = LanguageModel(K, NoisyRNN(D, H, noise=noise, sites=sites)).double()
    x, y = batch()
    with torch.inference_mode():
        model.predict(x, sample=True)
        Trace_ELBO().loss(model, PriorGuide(model), x, y)
    Trace_ELBO()(model, PriorGuide(model))(x, y).backward()
    assert noise.standardized(model.rnn.weight_hh_l0) is noise.standardized(model.rnn.weight_hh_l0)


@noises
@site_kinds
@pytest.mark.parametrize("local", [False, True], ids=["global params", "local params"])
def test_trace_elbo_is_noisin_elbo_is_the_likelihood(noise: str, sites: str, local: bool) -> None:
    with pyro.settings.context(module_local_params=local):
        options: dict[str, Any] = {
            "input_noise": Additive(dist.Laplace(0.0, 1.0)),
            "input_spread": Learned(0.3),
        }
        model = build(noise, sites=sites, **options)
        guide, (x, y) = PriorGuide(model), batch()
        for state, lengths in ((None, None), (state_of(model), LENGTHS)):
            elbo, noisin = (
                value_and_gradients(model, lambda: kind()(model, guide)(x, y, state, lengths))  # noqa: B023
                for kind in (Trace_ELBO, NoisinELBO)
            )
            if noise == "bernoulli":  # whose gradient has one more term, which is below
                assert_all_close(noisin[:1], elbo[:1])
                assert_all_close(noisin, elbo) if lengths is None else None
                continue
            assert_all_close(noisin, elbo)
            assert all(bool(gradient.any()) for gradient in noisin)
            by_hand_only = value_and_gradients(model, lambda: by_hand(model, x, y, state, lengths))  # noqa: B023
            assert_all_close(noisin, by_hand_only)


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
    options: dict[str, Any] = {"num_particles": 3, "vectorize_particles": vectorized}
    estimates = (
        Trace_ELBO(**options, max_plate_nesting=2)(model, guide),
        NoisinELBO(**options)(model, guide),
    )
    elbo, noisin = (
        value_and_gradients(model, lambda: estimate(x, y, None, lengths))  # noqa: B023
        for estimate in estimates
    )
    assert_all_close(noisin, elbo, 1e-10)
    if not vectorized and noise != "bernoulli":  # the same draws as three passes of one

        def mean() -> Tensor:
            return sum(NoisinELBO()(model, guide)(x, y, None, LENGTHS) for _ in range(3)) / 3

        assert_all_close(noisin, value_and_gradients(model, mean))


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
                assert_all_close(list(steps.values()), list(reference.values()), 1e-7)
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
            assert_all_close(scaled, [0.1 * part for part in plain])
        if kind is Trace_ELBO:
            reference = scaled
    assert_all_close(scaled, reference)


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
        assert_all_close(value_and_gradients(model, lambda: loss(x, y)), reference)  # noqa: B023
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), estimator)
        assert svi.step(x, y) == pytest.approx(float(reference[0]))


def test_a_guide_that_is_not_the_models_prior_is_refused() -> None:
    model, (x, y) = build(), batch()
    others: dict[str, Any] = {
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
        return loss

    ours = value_and_gradients(model, lambda: loss(x, y))
    other = (torch.where(past, (part + 1) % K, part) for part in (x, y))
    assert_all_close(value_and_gradients(model, lambda: loss(*other)), ours, 0.0)
    for one, two in zip(*(f if isinstance(f, tuple) else (f,) for f in finals)):
        assert torch.equal(one, two)

    # and each sequence counts as if it stood alone, with the noise that is observed in the batch
    pyro.clear_param_store()
    drawn = poutine.trace(model).get_trace(x, y, state, LENGTHS)
    names = set(drawn.stochastic_nodes) - {"time", "batch"}
    latent = {name: drawn.nodes[name] for name in names}
    values = {name: site["value"] for name, site in latent.items()}
    whole = poutine.trace(poutine.condition(model, values)).get_trace(x, y, state, LENGTHS)
    whole.compute_log_prob()
    assert not whole.nodes["y"]["log_prob"][past].any()
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
        assert_all_close(flat(ours), flat(alone.nodes["_RETURN"]["value"][1]))
    torch.testing.assert_close(whole.log_prob_sum(), log_joint, rtol=1e-11, atol=1e-11)


def nested(state: Any, column: slice) -> Any:
    parts = tuple(part[..., column, :] for part in flat(state))
    return parts if isinstance(state, tuple) else parts[0]


@site_kinds
def test_priors_on_a_weight_and_on_the_spread(sites: Any) -> None:
    rnn: Any = NoisyLSTM(
        D,
        H,
        2,
        noise=NOISES["additive"][1],
        spread=[dist.LogNormal(-1.0, 0.3), dist.Gamma(2.0, 4.0).expand([H]).to_event(1)],
        sites=sites,
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
    assert_all_close(noisin, elbo, 1e-5)
    with pytest.raises(
        ValueError, match="inside a plate, once for each.*vectorize_particles=False"
    ):
        NoisinELBO(2, vectorize_particles=True)(model, guide)(x, y)
    for name in ("bias_ih_l0", "bias_hh_l1"):
        for kind in (NoisyRNN, NoisyGRU, NoisyLSTM):
            rnn = kind(D, H, 2, noise=NOISES["additive"][1], sites=sites)
            size = getattr(rnn, name).shape
            setattr(rnn, name, PyroSample(dist.Normal(0.0, 0.3).expand(size).to_event(1)))
            biased = LanguageModel(K, rnn)
            with pytest.raises(ValueError, match="a bias .* once for each particle"):
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
    assert_all_close(vectorized[0], vectorized[1], 1e-4)


@noises
def test_state_is_carried_from_window_to_window(noise: str) -> None:
    model = build(noise)
    objective, (x, y) = NoisinELBO()(model, PriorGuide(model)), batch()
    torch.manual_seed(1)
    loss, state = objective.with_state(x, y)
    torch.manual_seed(1)
    _, reference = model(x, y) if noise != "bernoulli" else (None, state)
    assert_all_close(flat(state), flat(reference))
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


def test_vectorised_particles_need_a_sample_site() -> None:
    """One draw of torch's would serve them all; particles in turn each have their own."""
    rnn = NoisyRNN(4, 6, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.3, sites=None)
    model, tokens = LanguageModel(10, rnn), torch.randint(10, (6, 2))
    with pytest.raises(ValueError, match="one draw would serve all particles; use sites='seq"):
        NoisinELBO(2, vectorize_particles=True)(model, PriorGuide(model))
    NoisinELBO(2)(model, PriorGuide(model))(tokens[:-1], tokens[1:])
    plain = LanguageModel(10, NoisyRNN(4, 6, sites=None))
    NoisinELBO(2, vectorize_particles=True)(plain, PriorGuide(plain))(tokens[:-1], tokens[1:])
