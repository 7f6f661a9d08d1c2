"""Compilers, exporters, function transforms and activation checkpointing around a noisy RNN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO
from pyro.infer.reparam import AutoReparam, LocScaleReparam
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from noisin_pyro import Additive, LanguageModel, Multiplicative, NoisyGRU, PriorGuide
from noisin_pyro.kernels.onednn import packs
from tests.helpers import LINEAR, make_rnn

ADDITIVE, MULTIPLICATIVE = (kind(dist.Normal(0.0, 1.0)) for kind in (Additive, Multiplicative))
CELLS = ("tanh", "sigmoid", "lstm", "gru")
T, B, D, H = 5, 3, 4, 6


class Tagger(nn.Module):
    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.embedding, self.rnn, self.head = nn.Embedding(9, D), rnn, nn.Linear(H, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0])


@pytest.fixture
def validation_as_it_was() -> Iterator[None]:
    """torch.compile switches the validation of distributions off, for the whole process."""
    before = Distribution._validate_args
    yield
    Distribution.set_default_validate_args(before)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["inductor"])
@pytest.mark.parametrize("noise", [None, ADDITIVE, MULTIPLICATIVE], ids=["none", "add", "mult"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.filterwarnings("ignore")
def test_the_default_compiler(
    cell: str, noise: Any, backend: str, validation_as_it_was: None
) -> None:
    compares(cell, noise, backend)


@pytest.mark.parametrize("noise", [None, ADDITIVE, MULTIPLICATIVE], ids=["none", "add", "mult"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_is_the_same_network(
    cell: str, noise: Any, validation_as_it_was: None
) -> None:
    compares(cell, noise, "eager")


def compares(cell: str, noise: Any, backend: str) -> None:
    net, x = Tagger(make_rnn(cell, D, H, noise=noise)), torch.randint(9, (T, B))
    compiled = torch.compile(net, backend=backend)
    for training in (True, False):
        net.train(training)
        found = []
        for function in (net, compiled):
            torch.manual_seed(0)
            output = function(x)
            found.append([output, *torch.autograd.grad(output.square().sum(), [*net.parameters()])])
        for ours, theirs in zip(*found):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.filterwarnings("ignore")
def test_export_of_the_mean_path(cell: str) -> None:
    net, x = Tagger(make_rnn(cell, D, H, noise=ADDITIVE)).eval(), torch.randint(9, (T, B))
    program = torch.export.export(net, (x,), strict=False)  # torch 2.6 cannot strictly
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize("noise", [ADDITIVE, MULTIPLICATIVE], ids=["add", "mult"])
@pytest.mark.parametrize("cell", [*CELLS, *LINEAR])
@pytest.mark.filterwarnings("ignore")
def test_export_with_noise(cell: str, noise: Any) -> None:
    """As where ``eval()`` is forgotten, or the exported network is to be averaged."""
    rnn, x = make_rnn(cell, D, H, noise=noise), torch.randn(T, B, D)
    program = torch.export.export(rnn, (x,), strict=False).module()
    torch.manual_seed(0)
    exported, again = program(x)[0], program(x)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(exported, rnn(x)[0])
    assert not torch.equal(exported, again)


@pytest.mark.filterwarnings("ignore")
def test_export_with_a_site_per_timestep() -> None:
    """Pyro's validation of each state reads its value, which an exported program has not."""
    rnn, x = make_rnn("lstm", D, H, noise=ADDITIVE, sites="timestep"), torch.randn(T, B, D)
    with pyro.validation_enabled(False):
        program = torch.export.export(rnn, (x,), strict=False).module()
    torch.manual_seed(0)
    exported = program(x)[0]
    torch.manual_seed(0)
    torch.testing.assert_close(exported, rnn(x)[0])


@pytest.mark.filterwarnings("ignore")
def test_export_leaves_nothing_behind() -> None:
    """Tensors without values, kept where the next eager call finds them."""
    noise = Additive(dist.Gumbel(0.0, 1.0))  # whose moments are of float32
    rnn = make_rnn("lstm", D, H, noise=noise, dtype=torch.float64)
    x = torch.randn(T, B, D, dtype=torch.float64)
    torch.export.export(rnn, (x,), strict=False)
    assert type(rnn(x)[0]) is Tensor
    assert type(noise.standardized(x).mean) is Tensor


@pytest.mark.parametrize("steps", [T, 40])
@pytest.mark.parametrize("noise", [None, ADDITIVE, MULTIPLICATIVE], ids=["none", "add", "mult"])
@pytest.mark.parametrize("cell", [*CELLS, *LINEAR])
def test_shapes_without_values(cell: str, noise: Any, steps: int) -> None:
    rnn = make_rnn(cell, D, H, noise=noise).to("meta")
    output = rnn(torch.randn(steps, B, D, device="meta"))[0]
    output.sum().backward()
    assert output.shape == (steps, B, H)
    assert all(part.grad.shape == part.shape for part in rnn.parameters())


@pytest.mark.parametrize("cell", CELLS)
def test_activation_checkpointing(cell: str) -> None:
    rnn = make_rnn(cell, D, H, noise=MULTIPLICATIVE, dtype=torch.float64)
    x = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    found = []
    for run in (rnn, lambda x: checkpoint(rnn, x, use_reentrant=False)):
        torch.manual_seed(0)
        output = run(x)[0]
        found.append(torch.autograd.grad(output.square().sum(), [x, *rnn.parameters()]))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("noise", [ADDITIVE, MULTIPLICATIVE], ids=["add", "mult"])
@pytest.mark.parametrize("cell", ("tanh", "lstm", "gru"))
def test_per_sample_gradients(cell: str, noise: Any) -> None:
    """``vmap`` over sequences against one sequence after the other, with the same noise."""
    rnn = make_rnn(cell, D, H, noise=noise, dtype=torch.float64)
    x, epsilon = (torch.randn(T, B, size, dtype=torch.float64) for size in (D, H))
    weights = {name: parameter.detach() for name, parameter in rnn.named_parameters()}

    def loss(weights: Any, x: Tensor, epsilon: Tensor) -> Tensor:
        given = {"epsilon": [epsilon.unsqueeze(1)]}
        return functional_call(rnn, weights, (x.unsqueeze(1),), given)[0].square().sum()

    together = vmap(grad(loss), in_dims=(None, 1, 1))(weights, x, epsilon)
    for b in range(B):
        alone = grad(loss)(weights, x[:, b], epsilon[:, b])
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name][b], gradient)


@pytest.mark.parametrize("noise", [None, ADDITIVE, MULTIPLICATIVE], ids=["none", "add", "mult"])
@pytest.mark.parametrize("cell", ("tanh", "sigmoid", "lstm", "gru"))
def test_gradients_of_sequences_of_different_lengths(cell: str, noise: Any) -> None:
    """``torch.func.grad`` against autograd, with the same noise."""
    rnn = make_rnn(cell, D, H, 2, noise=noise, dtype=torch.float64)
    x, lengths = torch.randn(T, B, D, dtype=torch.float64), torch.arange(B) % T + 1
    given = {"lengths": lengths, "epsilon": rnn.draw_noise(T, B)}

    def loss(weights: Any) -> Tensor:
        return functional_call(rnn, weights, (x,), given)[0].square().sum()

    gradients = grad(loss)({name: p.detach() for name, p in rnn.named_parameters()})
    rnn(x, **given)[0].square().sum().backward()
    for name, parameter in rnn.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("noise", [None, ADDITIVE, MULTIPLICATIVE], ids=["none", "add", "mult"])
@pytest.mark.parametrize("cell", CELLS)
def test_an_ensemble_under_vmap(cell: str, noise: Any, layers: int) -> None:
    """``vmap`` over the weights of several RNNs, as torch's tutorial on ensembles has it."""
    rnns = [make_rnn(cell, D, H, layers, noise=noise, dtype=torch.float64) for _ in range(3)]
    x = torch.randn(T, B, D, dtype=torch.float64)
    weights, buffers = stack_module_state(rnns)
    for sample in (False, True):
        given: Any = {"sample": sample}
        if sample and noise is not None:
            given["epsilon"] = rnns[0].draw_noise(T, B)

        def run(weights: Any, buffers: Any, given: Any = given) -> Tensor:
            return functional_call(rnns[0], (weights, buffers), (x,), given)[0]

        together = vmap(run)(weights, buffers)
        for rnn, output in zip(rnns, together):
            torch.testing.assert_close(output, rnn(x, **given)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")  # from torch 2.14 on
@pytest.mark.parametrize("noise", [None, MULTIPLICATIVE], ids=["none", "mult"])
@pytest.mark.parametrize("cell", [*CELLS, *LINEAR])
def test_torchscript_tracing_decides_nothing_for_later_calls(cell: str, noise: Any) -> None:
    rnn = make_rnn(cell, D, H, noise=noise)
    x, before = torch.randn(T, B, D), packs(torch.eye(2))
    traced = torch.jit.trace(rnn, (x,), check_trace=False)
    assert traced(x)[0].shape == (T, B, H)
    assert packs(torch.eye(2)) == before
    plain = torch.jit.trace(rnn.eval(), (x,))
    torch.testing.assert_close(plain(x)[0], rnn(x)[0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cell", ["gru", *LINEAR])
def test_a_traced_objective_trains(cell: str) -> None:
    model = LanguageModel(7, make_rnn(cell, D, H, noise=MULTIPLICATIVE))
    optimizer = pyro.optim.Adam({"lr": 0.05})
    elbo = JitTrace_ELBO(ignore_jit_warnings=True)
    svi = SVI(model, PriorGuide(model), optimizer, elbo)
    x = torch.randint(7, (T, B))
    losses = [svi.step(x[:-1], x[1:]) for _ in range(30)]
    assert losses[-1] < 0.9 * losses[0]


def test_reparametrised_timesteps() -> None:
    """The non-centred form that Pyro makes of each state defines the same outputs."""
    model = LanguageModel(7, NoisyGRU(D, H, noise=ADDITIVE, spread=0.3, sites="timestep"))
    x = torch.randint(7, (T, B))

    def centred(site: Any) -> Any:
        states = {f"rnn.z_0_{t}" for t in range(T)}
        return LocScaleReparam(0.0) if site["name"] in states else None

    for program in (poutine.reparam(model, config=centred), AutoReparam()(model)):
        trace = poutine.trace(program).get_trace(x, x)
        assert {f"rnn.z_0_{t}_decentered" for t in range(T)} <= set(trace.nodes)
        assert torch.as_tensor(trace.log_prob_sum()).isfinite()
