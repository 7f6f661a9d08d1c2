"""The head of a long window: the same numbers without a matrix of all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro.kernels import linear_softmax
from noisin_pyro.kernels.linear_softmax import linear_log_softmax
from tests.helpers import assert_all_close

N, K, H = 23, 11, 4
Parts = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_softmax, "_LARGE", 0)
    monkeypatch.setattr(linear_softmax, "_PART", 5 * K)
    monkeypatch.setattr(linear_softmax, "_UNTRAINED", 5 * K)


def problem(dtype: torch.dtype = torch.float64) -> tuple[Parts, Tensor]:
    z, weight, bias = (
        torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((N, H), (K, H), (K,))
    )
    return (z, weight, bias), torch.randint(K, (N,))


def plain(z: Tensor, weight: Tensor, bias: Any, target: Tensor) -> Tensor:
    return F.linear(z, weight, bias).log_softmax(-1).gather(1, target[:, None]).squeeze(1)


GRADS = {
    "sum": torch.ones(N),
    "mean": torch.full((N,), -1 / N),
    "mask": (torch.arange(N) % 3 > 0).float(),
    "weights": torch.linspace(-1, 2, N),
    "zero": torch.zeros(N),
}


@pytest.mark.parametrize("grad", GRADS.values(), ids=GRADS)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients(grad: Tensor, bias: bool) -> None:
    (z, weight, b), target = problem()
    leaves = [z, weight, b] if bias else [z, weight]
    found = []
    for function in (linear_log_softmax, plain):
        log_prob = function(z, weight, b if bias else None, target)
        for _ in "12":  # a graph that is kept gives the same again
            gradients = torch.autograd.grad(log_prob, leaves, grad.double(), retain_graph=True)
        found.append([log_prob, *gradients])
    assert_all_close(found[0], found[1], 1e-12)


@pytest.mark.parametrize("equal", [True, False])
def test_sums_over_many_parts_do_not_overflow_in_float16(equal: bool) -> None:
    """A mean over rows is finite where the sum is not: 23 rows of at least 5,000."""
    halves = [5e3 + 5e3 * torch.rand(N, H), torch.zeros(K, H), torch.zeros(K)]
    grad, target = torch.full((N,), 1 / N), torch.zeros(N, dtype=torch.long)
    grad[0] *= equal
    found = []
    for function, dtype in ((linear_log_softmax, torch.float16), (plain, torch.float64)):
        z, weight, bias = (part.half().to(dtype).requires_grad_() for part in halves)
        log_prob: Any = function(z, weight, bias, target)
        gradients = torch.autograd.grad(log_prob, [weight, bias], grad.to(log_prob.dtype))
        found.append([gradient.double() for gradient in gradients])
    torch.testing.assert_close(found[0], found[1], rtol=2e-3, atol=1e-3)


def test_many_rows_of_one_class_do_not_overflow_in_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient by the bias: −1/2 as a mean of 140,000 rows, and −70,000 as a sum."""
    rows = 140_000
    monkeypatch.setattr(linear_softmax, "_PART", rows)
    z, weight = torch.zeros(rows, 1).half(), torch.zeros(2, 1).half()
    bias = torch.zeros(2).half().requires_grad_()
    log_prob = linear_log_softmax(z, weight, bias, torch.zeros(rows, dtype=torch.long))
    (gradient,) = torch.autograd.grad(log_prob.mean(), bias)
    torch.testing.assert_close(gradient, torch.tensor([0.5, -0.5]).half())


def test_only_what_is_asked_for() -> None:
    parts, target = problem()
    wanted = torch.autograd.grad(linear_log_softmax(*parts, target).sum(), parts)
    for leaf, gradient in zip(parts, wanted):
        z, weight, bias = (part if part is leaf else part.detach() for part in parts)
        (alone,) = torch.autograd.grad(linear_log_softmax(z, weight, bias, target).sum(), [leaf])
        assert_all_close([alone], [gradient], 1e-12)
    z, weight, bias = (part.detach() for part in parts)
    free = linear_log_softmax(z, weight, bias, target)
    assert_all_close([free], [plain(*parts, target)], 1e-12)


def test_second_derivatives() -> None:
    parts, target = problem()
    found = []
    for function in (linear_log_softmax, plain):
        loss = function(*parts, target).square().sum()
        first = torch.autograd.grad(loss, parts, create_graph=True)
        second = torch.stack([part.square().sum() for part in first]).sum()
        found.append([*first, *torch.autograd.grad(second, parts)])
    assert_all_close(found[0], found[1], 1e-11)


@pytest.mark.parametrize("grad", ["sum", "weights"])
def test_under_autocast_the_sums_over_parts_are_in_single_precision(grad: str) -> None:
    parts, target = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        log_prob = linear_log_softmax(*parts, target)
    assert log_prob.dtype == torch.float32
    ours = torch.autograd.grad(log_prob, parts, GRADS[grad])
    theirs = torch.autograd.grad(plain(*parts, target), parts, GRADS[grad])
    for mine, reference in zip(ours, theirs):
        assert mine.dtype == torch.float32
        assert (mine - reference).norm() < 0.02 * reference.norm()


def test_no_matrix_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def watched(x: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
        if len(weight) == K:
            rows.append(len(x))
        return F.linear(x, weight, bias)

    monkeypatch.setattr(linear_softmax, "linear", watched)
    parts, target = problem()
    linear_log_softmax(*parts, target).sum().backward()
    assert sum(count for count in rows if count != H) == N  # no logit is computed twice
    rows.clear()
    with torch.no_grad():
        linear_log_softmax(*parts, target)
    assert max(rows) == 5 and sum(rows) == N


def test_below_the_size_there_is_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_softmax, "_LARGE", N * K)
    monkeypatch.setattr(linear_softmax, "_in_parts", None)
    parts, target = problem()
    linear_log_softmax(*parts, target).sum().backward()
