"""Weight drop against its definition: the plain module with masked recurrent weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from noisin_pyro import (
    LanguageModel,
    Multiplicative,
    NoisyGRU,
    NoisyLSTM,
    NoisyRecurrent,
    NoisyRNN,
    PriorGuide,
    weight_drop,
)
from noisin_pyro.nn.weight_drop import WeightDrop
from tests.helpers import flat, probed

T, B, D, H = 6, 4, 3, 5
PLAIN: tuple[Any, ...] = (nn.LSTM, nn.GRU, nn.RNN)
NOISY: tuple[Any, ...] = (NoisyLSTM, NoisyGRU, NoisyRNN)


def masks_of(module: nn.Module) -> dict[str, Tensor]:
    """By the weight's name, the mask of the last call."""
    return {
        name.split(".")[-2]: part.mask
        for name, part in module.named_modules()
        if isinstance(part, WeightDrop) and part.mask is not None
    }


@pytest.mark.parametrize("kind", [*PLAIN, *NOISY], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("layers", [1, 2])
def test_it_is_the_plain_module_with_masked_weights(kind: Any, layers: int) -> None:
    """One mask for all steps and sequences: output, state, and the gradient of the raw weight.

    Popular code replaces the parameter, so that the optimizer trains a weight nobody reads.
    """
    torch.manual_seed(0)
    plain = kind(D, H, layers, dtype=torch.float64)
    raw = {name: value.clone() for name, value in plain.named_parameters()}
    module = weight_drop(copy.deepcopy(plain), p=0.4)
    x = torch.randn(T, B, D, dtype=torch.float64)
    ours = flat(module(x))
    masks = masks_of(module)
    assert len(masks) == layers
    for mask in masks.values():
        assert set(mask.unique().tolist()) == {0.0, 1 / 0.6}
    leaves = {name: value.detach().requires_grad_() for name, value in raw.items()}
    masked = {name: v * masks[name] if name in masks else v for name, v in leaves.items()}
    theirs = flat(functional_call(plain, masked, (x,)))
    for mine, reference in zip(ours, theirs):
        torch.testing.assert_close(mine, reference)
    gradients = dict(zip(leaves, torch.autograd.grad(probed(theirs), [*leaves.values()])))
    probed(ours).backward()
    found = dict(module.named_parameters())
    for name, gradient in gradients.items():
        key = f"parametrizations.{name}.original" if name in masks else name
        torch.testing.assert_close(found[key].grad, gradient)
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("kind", [nn.LSTM, NoisyLSTM])
def test_training_moves_the_weight_that_is_read(kind: Any) -> None:
    module = weight_drop(kind(D, H), p=0.5)
    x = torch.randn(T, B, D)
    before = module.eval()(x)[0].detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    module.train()(x)[0].square().sum().backward()
    raw = module.parametrizations.weight_hh_l0.original
    start = raw.detach().clone()
    optimizer.step()
    assert not torch.equal(raw, start)
    assert not torch.allclose(module.eval()(x)[0], before)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, NoisyLSTM, NoisyGRU])
def test_a_new_mask_for_each_call_and_none_in_evaluation(kind: Any) -> None:
    plain = kind(D, H)
    module = weight_drop(copy.deepcopy(plain), p=0.5)
    x = torch.randn(T, B, D)
    first, second = (module(x)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(module.eval()(x)[0], plain.eval()(x)[0])
    assert not torch.equal(module.train()(x)[0], second)
    for twin in (copy.deepcopy(module), copy.deepcopy(module.eval()).train()):
        assert not torch.equal(twin(x)[0], twin(x)[0])  # it draws masks of its own
        torch.testing.assert_close(twin.eval()(x)[0], plain(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, NoisyLSTM])
def test_before_the_first_call_it_can_be_moved_and_copied(kind: Any) -> None:
    """As for an average of weights, which starts as a copy of the model."""
    module = weight_drop(kind(D, H), p=0.5).to(torch.float64)
    average = torch.optim.swa_utils.AveragedModel(module)
    module(torch.randn(T, B, D, dtype=torch.float64))[0].sum().backward()
    average.update_parameters(module.to(torch.float32).to(torch.float64))
    assert torch.equal(module.weight_hh_l0 == 0, masks_of(module)["weight_hh_l0"] == 0)


@pytest.mark.parametrize("kind", [nn.LSTM, NoisyLSTM])
def test_after_a_call_that_failed_it_can_be_copied(kind: Any) -> None:
    module = weight_drop(kind(D, H), p=0.5)
    with pytest.raises((RuntimeError, ValueError)):
        module(torch.randn(T, B, D + 1))
    assert copy.deepcopy(module)(torch.randn(T, B, D))[0].shape == (T, B, H)


def test_share_of_entries_that_are_dropped() -> None:
    """|z| < 5.5 over 160,000 entries, so a false alarm in 4e-8 of runs."""
    module = weight_drop(nn.GRUCell(1, 231), "weight_hh", 0.3)
    module(torch.ones(1, 1))
    zero = (module.weight_hh == 0).double()
    deviation = math.sqrt(0.3 * 0.7 / zero.numel())
    assert abs(zero.mean().item() - 0.3) < 5.5 * deviation


def test_one_mask_for_the_steps_of_a_cell() -> None:
    """NoisyRecurrent calls a cell once per step; around it there is one mask for a sequence."""
    cell = nn.LSTMCell(D, H, dtype=torch.float64)
    rnn = weight_drop(NoisyRecurrent(copy.deepcopy(cell)), p=0.5)
    x = torch.randn(T, B, D, dtype=torch.float64)
    output, _ = rnn(x)
    (mask,) = masks_of(rnn).values()
    state: Any = None
    masked = {**dict(cell.named_parameters()), "weight_hh": cell.weight_hh * mask}
    for t in range(T):
        state = functional_call(cell, masked, (x[t], state))
        torch.testing.assert_close(output[t], state[0])


def test_state_dicts_go_round() -> None:
    first: Any = weight_drop(nn.LSTM(D, H, 2), p=0.5)
    second: Any = weight_drop(nn.LSTM(D, H, 2), p=0.5)
    x = torch.randn(T, B, D)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.eval()(x)[0], second.eval()(x)[0])
    assert not [name for name in first.state_dict() if "mask" in name]
    raw = first.parametrizations.weight_hh_l0.original.detach().clone()
    for layer in range(2):
        parametrize.remove_parametrizations(
            first.train(), f"weight_hh_l{layer}", leave_parametrized=False
        )
    assert torch.equal(first.weight_hh_l0, raw) and torch.equal(first(x)[0], second(x)[0])
    plain = nn.LSTM(D, H, 2)
    plain.load_state_dict(first.state_dict())


def test_in_a_pyro_program() -> None:
    """SVI trains the raw weight, and every call of the model draws a mask."""
    noise = Multiplicative(dist.Normal(0.0, 1.0))
    rnn = weight_drop(NoisyGRU(D, H, noise=noise, spread=0.3), p=0.5)
    model = LanguageModel(9, rnn)
    x = torch.randint(9, (T + 1, B))
    svi = SVI(model, PriorGuide(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    raw = rnn.parametrizations.weight_hh_l0.original
    start = raw.detach().clone()
    svi.step(x[:-1], x[1:])
    assert not torch.equal(raw, start)
    dropped = (raw == start).double().mean()  # what was dropped has no gradient
    assert 0.2 < dropped < 0.8  # 75 entries: 5 deviations wide, a false alarm in 1e-6 of runs


def test_of_parts_and_of_whole_names() -> None:
    rnn = NoisyLSTM(D, H, 2)
    model = weight_drop(LanguageModel(9, rnn), ["rnn.weight_hh_l1"], 0.5)
    model(torch.zeros(T, B, dtype=torch.long))
    assert list(masks_of(model)) == ["weight_hh_l1"]
    bidirectional = weight_drop(nn.LSTM(D, H, bidirectional=True))
    bidirectional(torch.randn(T, B, D))
    assert list(masks_of(bidirectional)) == ["weight_hh_l0", "weight_hh_l0_reverse"]


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_under_activation_checkpointing(inside: bool, use_reentrant: bool) -> None:
    """Around the module and within it: the second pass has the masks and the noise of the first."""

    class Net(nn.Module):
        def __init__(self, recompute: bool) -> None:
            super().__init__()
            noise = Multiplicative(dist.Normal(0.0, 1.0))
            self.rnn = NoisyLSTM(D, H, noise=noise, dtype=torch.float64)
            self.recompute = recompute

        def forward(self, x: Tensor) -> Tensor:
            if self.recompute:
                return checkpoint(self.rnn, x, use_reentrant=use_reentrant)[0]
            return self.rnn(x)[0]

    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = weight_drop(Net(recompute and inside), p=0.5)
        x = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
        around = recompute and not inside
        output = checkpoint(net, x, use_reentrant=use_reentrant) if around else net(x)
        output.square().sum().backward()
        found.append([x.grad, *(weight.grad for weight in net.parameters())])
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", [nn.GRU, NoisyGRU])
def test_after_a_gradient_of_torch_func_it_can_be_copied(kind: Any) -> None:
    module = weight_drop(kind(D, H), p=0.5)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    x = torch.randn(T, B, D)

    def loss(weights: Any) -> Tensor:
        return functional_call(module, weights, (x,))[0].sum()

    assert grad(loss)(weights)["parametrizations.weight_hh_l0.original"].abs().sum() > 0
    assert copy.deepcopy(module)(x)[0].shape == (T, B, H)


@pytest.mark.parametrize("kind", [nn.LSTM, NoisyLSTM])
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_weight_with_another_parametrization(name: str, kind: Any) -> None:
    """What the other one computes is dropped from; a prefix leaves no such weight out."""
    rnn = kind(D, H, 2)
    getattr(nn.utils.parametrizations, name)(rnn, "weight_hh_l0")
    module = weight_drop(rnn, "weight_hh", 0.5)
    weight = module.eval().weight_hh_l0.detach().clone()
    module.train()(torch.randn(T, B, D))[0].sum().backward()
    masks = masks_of(module)
    assert list(masks) == ["weight_hh_l0", "weight_hh_l1"]
    assert torch.equal(module.weight_hh_l0 == 0, masks["weight_hh_l0"] == 0)
    if name == "weight_norm":  # the others change in training
        torch.testing.assert_close(module.weight_hh_l0, weight * masks["weight_hh_l0"])
    with pytest.raises(ValueError, match="has no parameter 'weight_hh...'"):
        weight_drop(module)


def test_a_rate_by_position_is_told() -> None:
    with pytest.raises(TypeError, match="names must be a string or a list.*got 0.5; give p=0.5"):
        weight_drop(nn.LSTM(3, 4), 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "p", "sentence"),
    [
        ("weight_hh", 1.0, r"p must lie in \[0, 1\), got 1.0"),
        ("weight_xx", 0.5, "LSTM has no parameter 'weight_xx...'; the known ones are weight_"),
        (["weight_hh_l1"], 0.5, "LSTM has no parameter 'weight_hh_l1'; the known ones are weigh"),
        ([], 0.5, r"LSTM has no parameter \[\]; the known"),
    ],
)
def test_refusals(names: Any, p: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        weight_drop(nn.LSTM(D, H), names, p)
    with pytest.raises(ValueError, match="has no parameter 'weight_hh...'"):
        weight_drop(weight_drop(nn.LSTM(D, H)))
