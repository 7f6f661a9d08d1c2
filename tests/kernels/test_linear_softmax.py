"""One matrix of logits instead of three, against torch's own chain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from noisin_pyro.kernels import linear_softmax
from noisin_pyro.kernels.linear_softmax import linear_log_softmax
from noisin_pyro.nn.emissions import LinearCategorical
from tests.helpers import assert_all_close

LogProb = Callable[[Tensor, Tensor, "Tensor | None", Tensor], Tensor]


def torchs(z: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    return -F.cross_entropy(F.linear(z, weight, bias), target, reduction="none")


def problem(
    rows: int = 7, width: int = 5, classes: int = 11, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(classes, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(classes, dtype=dtype, requires_grad=True)
    return z, weight, bias, torch.randint(classes, (rows,))


def gradients(
    log_prob: LogProb, parts: tuple[Tensor, Tensor, Tensor | None, Tensor], g: Tensor
) -> Any:
    value = log_prob(*parts)
    wanted = [part for part in parts[:3] if part is not None and part.requires_grad]
    return value.detach(), torch.autograd.grad(value, wanted, g)


@pytest.mark.parametrize("shape", [(1, 1, 2), (7, 5, 11), (40, 3, 1), (3, 64, 501)])
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients_are_torchs(shape: tuple[int, int, int], bias: bool) -> None:
    z, weight, b, target = problem(*shape)
    parts = (z, weight, b if bias else None, target)
    g = torch.randn(shape[0], dtype=torch.float64)
    g[0] = 0.0  # a row that a mask leaves out
    for ours, theirs in zip(gradients(linear_log_softmax, parts, g), gradients(torchs, parts, g)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_frozen_parts_get_no_gradient(frozen: tuple[int, ...]) -> None:
    parts = problem()
    for index in frozen:
        parts[index].requires_grad_(False)
    g = torch.randn(7, dtype=torch.float64)
    for ours, theirs in zip(
        gradients(linear_log_softmax, parts, g)[1], gradients(torchs, parts, g)[1]
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_first_and_second_derivatives_are_numerical_ones() -> None:
    z, weight, bias, target = problem(3, 2, 4)

    def log_prob(*parts: Any) -> Tensor:
        return linear_log_softmax(*parts, target)  # type: ignore[call-arg]

    assert torch.autograd.gradcheck(log_prob, (z, weight, bias))
    assert torch.autograd.gradgradcheck(log_prob, (z, weight, bias))


def test_a_graph_that_is_kept_gives_the_same_gradient_twice() -> None:
    z, weight, bias, target = problem()
    loss = linear_log_softmax(z, weight, bias, target).sum()
    first = torch.autograd.grad(loss, (z, weight, bias), retain_graph=True)
    second = torch.autograd.grad(loss, (z, weight, bias))
    assert all(map(torch.equal, first, second))


def test_a_matrix_shared_with_the_embedding_gets_both_gradients() -> None:
    words, target = torch.randint(11, (2, 7))
    grads = []
    for log_prob in (linear_log_softmax, torchs):
        torch.manual_seed(0)
        weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
        log_prob(torch.tanh(weight[words]), weight, None, target).sum().backward()
        grads.append(weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_single_precision_is_no_worse_than_torchs(scale: float) -> None:
    """Also with certain predictions, where softmax − onehot cancels: twice torch's error."""
    exact = problem(64, 8, 50)
    with torch.no_grad():
        exact[1].mul_(scale)
    single = tuple(p.detach().float().requires_grad_() for p in exact[:3])
    for index in range(3):  # the same numbers in both
        exact[index].data.copy_(single[index])
    g = torch.rand(64)
    truth = gradients(torchs, exact, g.double())
    errors = []
    for log_prob in (linear_log_softmax, torchs):
        found = gradients(log_prob, (*single, exact[3]), g)  # type: ignore[arg-type]
        assert found[0].dtype == torch.float32
        pairs = [(found[0], truth[0]), *zip(found[1], truth[1])]
        errors.append([float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs])
    for ours, theirs in zip(*errors):
        assert ours <= 2 * theirs + 1e-6


@pytest.mark.parametrize("classes", [2, 33, 10_000, 33_278])
def test_the_softmax_in_place_is_the_one_out_of_place(classes: int) -> None:
    logits = torch.randn(5, classes)
    apart = torch.softmax(logits, -1)
    assert torch.equal(torch.softmax(logits, -1, out=logits), apart)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cached", [1, 2 * 11, 7 * 11, 10**6])
def test_rows_taken_together_are_rows_taken_apart(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, cached: int
) -> None:
    logits, target = 3 * torch.randn(7, 11, dtype=dtype), torch.randint(11, (7,))
    exact = logits.double().log_softmax(1)
    excess = exact.exp() - F.one_hot(target, 11)
    monkeypatch.setattr(linear_softmax, "_CACHED", cached)
    log_prob = linear_softmax._to_softmax(logits, target, excess=True)
    single = 1e-12 if dtype == torch.float64 else 1e-6
    assert_all_close([log_prob.double()], [exact.gather(1, target[:, None]).squeeze(1)], single)
    half = 2**-8 if dtype == torch.bfloat16 else single
    assert_all_close([logits.double()], [excess], half)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_logits_at_the_ends_of_their_range(dtype: torch.dtype) -> None:
    """A class of no probability, one of all of it, and NaN, as torch has them."""
    inf = float("inf")
    rows = [[0.0, -inf, 1.0], [-inf, 0.0, -inf], [1e4, 0.0, -1e4], [inf, 0.0, 0.0], [-inf] * 3]
    logits, target = torch.tensor(rows, dtype=dtype), torch.tensor([1, 1, 2, 0, 0])
    expected = logits.double().log_softmax(1).gather(1, target[:, None]).squeeze(1)
    found = linear_softmax._to_softmax(logits, target)
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=0, equal_nan=True)


@pytest.mark.parametrize("wrong", [-1, 11])
def test_a_class_that_is_none_is_refused(wrong: int) -> None:
    z, weight, bias, target = problem()
    target[3] = wrong
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        linear_log_softmax(z, weight, bias, target)


def test_no_rows() -> None:
    z, weight, bias, _ = problem()
    value = linear_log_softmax(z[:0], weight, bias, torch.zeros(0, dtype=torch.long))
    (grad,) = torch.autograd.grad(value.sum(), weight)
    assert value.shape == (0,) and not grad.any()


def test_under_autocast() -> None:
    """The products in bfloat16, the softmax in single precision, gradients as the parameters.

    The bias is added in single precision, which torch adds in bfloat16.
    """
    z, weight, bias, target = problem(64, 16, 200, torch.float32)
    g = torch.rand(64)
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(linear_log_softmax, (z, weight, bias, target), g)
        theirs = gradients(torchs, (z, weight, bias, target), g)
    exact = gradients(torchs, (z, weight, bias, target), g)
    halves = [part.detach().bfloat16() for part in (z, weight, bias)]
    logits = (halves[0] @ halves[1].t()).float() + halves[2].float()
    torch.testing.assert_close(
        ours[0], logits.log_softmax(1).gather(1, target[:, None]).squeeze(1), rtol=1e-6, atol=1e-6
    )
    assert ours[0].dtype == torch.float32
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=2**-8 * float(logits.abs().max()))
    for a, b, c in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), (exact[0], *exact[1])):
        assert a.dtype == torch.float32
        error, torch_error = ((x - c).norm() / c.norm() for x in (a, b))
        assert error <= 2 * torch_error + 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype: torch.dtype) -> None:
    parts = problem(16, 8, 20, dtype)
    g = torch.ones(16, dtype=dtype)
    ours, theirs = (gradients(log_prob, parts, g) for log_prob in (linear_log_softmax, torchs))
    torch.testing.assert_close(ours[0].to(dtype), theirs[0], rtol=0.02, atol=0.02)
    for a, b in zip(ours[1], theirs[1]):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.1)


def test_torch_func_transforms() -> None:
    z, weight, bias, target = problem()

    def loss(log_prob: LogProb, w: Tensor) -> Tensor:
        return log_prob(z.detach(), w, bias.detach(), target).sum()

    for transform in (torch.func.grad, torch.func.jacrev):
        ours, theirs = (
            transform(lambda w, log_prob=log_prob: loss(log_prob, w))(weight.detach())
            for log_prob in (linear_log_softmax, torchs)
        )
        torch.testing.assert_close(ours, theirs)
    stacked = torch.randn(4, 7, 5, dtype=torch.float64)
    mapped = torch.vmap(lambda part: linear_log_softmax(part, weight, bias, target))(stacked)
    apart = torch.stack([torchs(part, weight, bias, target) for part in stacked])
    torch.testing.assert_close(mapped, apart)


def test_under_torch_func_half_precision_gives_single_precision_too() -> None:
    z, weight, bias, target = (part.detach() for part in problem(dtype=torch.bfloat16))
    mapped = torch.vmap(lambda part: linear_log_softmax(part, weight, bias, target))(z[None])[0]
    assert mapped.dtype == torch.float32
    torch.testing.assert_close(
        mapped, linear_log_softmax(z, weight, bias, target), rtol=0.02, atol=0.02
    )


class Matrices(TorchDispatchMode):
    """Holds on to every piece of memory of a size that an operation gives, to count them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.held = size, {}  # type: ignore[var-annotated]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for part in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(part, Tensor) and part.untyped_storage().nbytes() == self.size:
                self.held[part.untyped_storage().data_ptr()] = part
        return found


@pytest.mark.parametrize(("log_prob", "count"), [(linear_log_softmax, 1), (torchs, 4)])
def test_a_step_makes_one_matrix_of_logits(log_prob: LogProb, count: int) -> None:
    """torch's chain: the logits, their log-softmax, and a gradient of each."""
    z, weight, bias, target = problem(64, 4, 512, torch.float32)
    with Matrices(64 * 512 * 4) as matrices:
        log_prob(z, weight, bias, target).sum().backward()
    assert len(matrices.held) == count


def test_the_emission_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    z, weight, bias, target = problem(6)
    called = []

    def spy(*parts: Any) -> Tensor:
        called.append(parts)
        return linear_log_softmax(*parts)

    monkeypatch.setattr("noisin_pyro.nn.emissions.linear_log_softmax", spy)
    words = LinearCategorical(z.view(2, 3, 5), weight, bias)
    torch.testing.assert_close(
        words.log_prob(target.view(2, 3)).flatten(), torchs(z, weight, bias, target)
    )
    assert called
