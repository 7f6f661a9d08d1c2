"""The blocked scan against the loop: values, derivatives of any order, rounding, overflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from noisin_pyro.kernels import blocked_scan
from noisin_pyro.kernels import linear_scan as module
from noisin_pyro.kernels.linear_scan import linear_loop, linear_scan

Recurrence = Callable[..., Tensor]
EDGES = (1, 2, 3, 15, 16, 17, 18, 35, 63, 64, 65, 99, 100, 101, 255, 256, 257, 1000, 4096, 5000)


def problem(
    steps: int, *shape: int, dtype: torch.dtype = torch.float64, largest: float = 1.02
) -> tuple[Tensor, Tensor, Tensor]:
    """a of both signs, a tenth of it zero, a part above 1; b and h0 of order one."""
    a = torch.empty(steps, *shape, dtype=dtype).uniform_(-largest, largest)
    a[torch.rand(a.shape) < 0.5] = 0.97  # memory that spans several blocks
    a[torch.rand(a.shape) < 0.02] = 0.0
    b, h0 = torch.randn(steps, *shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    return a.requires_grad_(), b.requires_grad_(), h0.requires_grad_()


def derivatives(f: Recurrence, parts: tuple[Tensor, ...], g: Tensor) -> tuple[Tensor, ...]:
    h = f(*parts)
    return h.detach(), *torch.autograd.grad(h, parts, g)


def assert_equal(
    ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float = 1e-12
) -> None:
    for x, y in zip(ours, theirs, strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance * float(y.abs().max()))


@pytest.mark.parametrize("steps", EDGES)
def test_value_and_gradients_are_the_loops(steps: int) -> None:
    parts = problem(steps, 2, 3)
    g = torch.randn(steps, 2, 3, dtype=torch.float64)
    assert_equal(derivatives(linear_scan, parts, g), derivatives(linear_loop, parts, g))


def test_a_state_is_carried_across_many_blocks() -> None:
    """So that a wrong state at the start of a block would be seen in every later one."""
    a, b, h0 = problem(1000, 3)
    with torch.no_grad():
        a.fill_(0.999)
        b.zero_()
    decay = torch.tensor(0.999, dtype=torch.float64) ** torch.arange(1, 1001)
    torch.testing.assert_close(linear_scan(a, b, h0), decay.unsqueeze(1) * h0)


@pytest.mark.parametrize("chunk", [1, 60, 200, 6 * 64])
@pytest.mark.parametrize("steps", [17, 64, 65, 200])
def test_long_sequences_are_cut_to_fit_the_cache(
    monkeypatch: pytest.MonkeyPatch, chunk: int, steps: int
) -> None:
    monkeypatch.setattr(blocked_scan, "_CHUNK", chunk)
    parts = problem(steps, 2, 3)
    g = torch.randn(steps, 2, 3, dtype=torch.float64)
    assert_equal(derivatives(linear_scan, parts, g), derivatives(linear_loop, parts, g))


@given(
    steps=st.integers(1, 150),
    shape=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    largest=st.sampled_from([0.5, 1.0, 1.2]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_shape_and_any_broadcast(
    steps: int, shape: tuple[int, ...], largest: float, seed: int, data: Any
) -> None:
    torch.manual_seed(seed)
    a, b, h0 = problem(steps, *shape, largest=largest)
    kept = data.draw(st.lists(st.booleans(), min_size=a.dim(), max_size=a.dim()))
    index = tuple(slice(None) if keep else slice(1) for keep in kept)
    drop = data.draw(st.integers(0, (kept + [True]).index(True)))  # leading ones may be left out
    small = a.detach()[index].clone()
    small = small.view(small.shape[drop:]).requires_grad_()
    g = torch.randn(b.shape, dtype=torch.float64)
    parts = (small, b, h0)
    theirs = derivatives(linear_loop, parts, g)
    ours = derivatives(linear_scan, parts, g)
    # summing over time may cancel, so the measure is the size of what is summed
    full = derivatives(linear_loop, (small.detach().expand(b.shape).requires_grad_(), b, h0), g)
    scale = [float(part.abs().sum()) for part in full]
    for x, y, size in zip(ours, theirs, scale, strict=True):
        assert x.shape == y.shape
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12 * size)


def test_a_missing_state_is_zero_and_layout_does_not_matter() -> None:
    a, b, h0 = problem(70, 4, 3)
    assert torch.equal(linear_scan(a, b), linear_scan(a, b, torch.zeros_like(h0)))
    assert torch.equal(linear_scan(a, b, h0[0]), linear_scan(a, b, h0[:1].expand(4, 3)))
    batch_first = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in (a, b)]
    strided = [torch.stack([part, part], -1)[..., 0] for part in (a, b)]
    for a_view, b_view in (batch_first, strided):
        assert torch.equal(linear_scan(a_view, b_view, h0), linear_scan(a, b, h0))
        assert linear_scan(a_view, b_view, h0).is_contiguous()
    assert linear_scan(a[:0], b[:0], h0).shape == (0, 4, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_overflow_where_the_loop_is_finite(dtype: torch.dtype) -> None:
    """Products of a overflow, but meet a state of zero, or a tiny one, forward and backward."""
    huge = torch.finfo(dtype).max ** 0.6
    a = torch.full((100, 4), 0.5, dtype=dtype)
    b, h0 = torch.zeros(100, 4, dtype=dtype), torch.zeros(4, dtype=dtype)
    a[10:14, 0], b[60, 0] = huge, 1.0  # h = 0 until step 60
    a[11:13, 1], h0[1] = huge, 1 / huge  # h stays finite, the product of two does not
    a[20:24, 2], a[20, 2], h0[2] = huge, 0.0, 1.0  # h = 0 from step 20
    a[10:13, 3] = -huge
    g = torch.zeros_like(b)
    g[:5] = 1.0  # the gradient is zero where a is huge
    parts = tuple(part.requires_grad_() for part in (a, b, h0))
    expected = derivatives(linear_loop, parts, g)
    assert all(part.isfinite().all() for part in expected)
    assert expected[0].abs().max() > 1e3 and expected[0][60, 0] == 1
    assert_equal(derivatives(linear_scan, parts, g), expected, 4 * torch.finfo(dtype).eps)


def test_what_is_infinite_or_nan_stays_in_its_column() -> None:
    a, b, _ = (part.detach() for part in problem(100, 3))
    a[30, 0], b[40, 1] = float("inf"), float("nan")
    expected = linear_loop(a, b)
    torch.testing.assert_close(linear_scan(a, b), expected, equal_nan=True)
    assert expected[:, 2].isfinite().all() and expected[99, 1].isnan()


def test_first_and_second_derivatives_are_numerical_ones() -> None:
    for steps in (1, 2, 20):
        parts = problem(steps, 2)
        assert torch.autograd.gradcheck(linear_scan, parts)
        assert torch.autograd.gradgradcheck(linear_scan, parts)
    broadcast = (problem(1, 2)[0], *problem(18, 3, 2)[1:])
    assert torch.autograd.gradcheck(linear_scan, broadcast)
    assert torch.autograd.gradgradcheck(linear_scan, broadcast)


def test_third_derivatives_are_the_loops() -> None:
    parts = problem(40, 2)

    def third(f: Recurrence) -> tuple[Tensor, ...]:
        value = f(*parts).square().sum()
        for _ in range(2):
            first = torch.autograd.grad(value, parts, create_graph=True)
            value = sum((part.square().sum() for part in first), torch.zeros(()))
        return torch.autograd.grad(value, parts)

    assert_equal(third(linear_scan), third(linear_loop), 1e-10)


def test_gradients_of_many_losses_in_one_backward_pass() -> None:
    """torch maps the backward pass over them, with no gradient of the gradient to be taken."""
    parts = problem(40, 2)
    g = torch.randn(5, 40, 2, dtype=torch.float64)
    ours = torch.autograd.grad(linear_scan(*parts), parts, g, is_grads_batched=True)
    theirs = torch.autograd.grad(linear_loop(*parts), parts, g, is_grads_batched=True)
    assert_equal(ours, theirs)
    h = linear_scan(*parts)
    assert_equal(torch.vmap(lambda v: torch.autograd.grad(h, parts, v, retain_graph=True))(g), ours)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_only_what_is_wanted_gets_a_gradient(wanted: tuple[int, ...]) -> None:
    parts = problem(40, 3)
    for index, part in enumerate(parts):
        part.requires_grad_(index in wanted)
    ours, theirs = (
        torch.autograd.grad(f(*parts).sum(), [parts[index] for index in wanted])
        for f in (linear_scan, linear_loop)
    )
    assert_equal(ours, theirs)


def test_a_graph_that_is_kept_gives_the_same_gradient_twice() -> None:
    parts = problem(40, 3)
    loss = linear_scan(*parts).square().sum()
    first = torch.autograd.grad(loss, parts, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, parts)))


@pytest.mark.parametrize("largest", [0.9, 1.02])
@pytest.mark.parametrize("steps", [256, 4096])
def test_single_precision_is_as_exact_as_the_loop(steps: int, largest: float) -> None:
    parts = problem(steps, 2, 16, largest=largest)
    rounded = tuple(part.detach().float().requires_grad_() for part in parts)
    exact = tuple(part.detach().double().requires_grad_() for part in rounded)
    g = torch.randn(steps, 2, 16)
    reference = derivatives(linear_loop, exact, g.double())
    ours, theirs = (derivatives(f, rounded, g) for f in (linear_scan, linear_loop))
    for x, y, z in zip(ours, theirs, reference, strict=True):
        error, loops_error = (float((part - z).norm() / z.norm()) for part in (x, y))
        assert 0 < loops_error < 1e-5
        assert error < 1.5 * loops_error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    """Only inputs and results are rounded: a sum of 1,000 ones would stop at 256 in bfloat16."""
    ones = torch.ones(1000, 2, dtype=dtype, requires_grad=True)
    h = linear_scan(ones, ones)
    assert h.dtype == dtype and h[-1, 0] == 1000
    parts = tuple(part.detach().to(dtype).requires_grad_() for part in problem(300, 3))
    g = torch.randn(300, 3, dtype=dtype)
    exact = derivatives(
        linear_loop, tuple(part.detach().double().requires_grad_() for part in parts), g
    )
    for x, y in zip(derivatives(linear_scan, parts, g), exact, strict=True):
        assert x.dtype == dtype
        assert (x - y).norm() < torch.finfo(dtype).eps * y.norm()
    mixed = linear_scan(parts[0], parts[1], parts[2].float())
    assert mixed.dtype == torch.float32


TRANSFORMS: dict[str, Callable[[Recurrence, tuple[Tensor, ...]], Any]] = {
    "grad": lambda f, p: torch.func.grad(lambda *q: f(*q).square().sum(), (0, 1, 2))(*p),
    "jacrev": lambda f, p: torch.func.jacrev(f, (0, 1, 2))(*p),
    "vmap": lambda f, p: torch.vmap(f)(*(torch.stack([part, 0.5 * part]) for part in p)),
    "vmap of some": lambda f, p: torch.vmap(f, (None, 1, None), 2)(
        p[0], torch.stack([p[1], 2 * p[1], -p[1]], 1), p[2]
    ),
    "vmap of vmap": lambda f, p: torch.vmap(torch.vmap(f, (0, None, None)), (None, 0, None))(
        torch.stack([p[0], 0.5 * p[0]]), torch.stack([p[1], 2 * p[1], -p[1]]), p[2]
    ),
    "vmap of grad": lambda f, p: torch.vmap(
        torch.func.grad(lambda *q: f(*q).square().sum(), (0, 1, 2)), (0, 0, None)
    )(torch.stack([p[0], 0.5 * p[0]]), torch.stack([p[1], 2 * p[1]]), p[2]),
    "grad of grad": lambda f, p: torch.func.grad(
        lambda a: torch.func.grad(lambda c: f(c, *p[1:]).square().sum())(a).square().sum()
    )(p[0]),
    "jacrev of jacrev": lambda f, p: torch.func.jacrev(
        torch.func.jacrev(lambda a: f(a, *p[1:]).square().sum())
    )(p[0]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_torch_func_transforms(name: str) -> None:
    parts = tuple(part.detach() for part in problem(20, 2))
    ours, theirs = (TRANSFORMS[name](f, parts) for f in (linear_scan, linear_loop))
    together = (ours, theirs) if isinstance(ours, tuple) else ((ours,), (theirs,))
    assert_equal(*together)


def test_torch_compile_keeps_the_graph_whole() -> None:
    """The scan is one operation in the graph, whatever the number of steps."""
    torch.compiler.reset()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    def layer(k: Tensor, g: Tensor) -> Tensor:
        return linear_scan(torch.sigmoid(-k), torch.sigmoid(k) * g).square()

    k, g, _ = problem(50, 4, 8)
    ones = torch.ones(50, 4, 8, dtype=torch.float64)
    with pyro.validation_enabled():  # torch.compile turns the validation of distributions off
        for name in (backend, "aot_eager"):
            compiled = torch.compile(layer, backend=name, fullgraph=True)
            assert_equal(derivatives(compiled, (k, g), ones), derivatives(layer, (k, g), ones))
    (graph,) = graphs
    assert sum(len(m.graph.nodes) for m in graph.modules() if hasattr(m, "graph")) < 60
    torch.compiler.reset()


def test_the_operations_agree_with_their_declarations() -> None:
    a, b, h0 = (part.detach() for part in problem(20, 2))
    checks = ("test_schema", "test_faketensor")
    for reverse in (False, True):
        h = module._states_op(a, b, h0, reverse)
        torch.library.opcheck(module._states_op, (a, b, h0, reverse), test_utils=checks)
        torch.library.opcheck(module._gradients_op, (b, a, h0, h, reverse), test_utils=checks)


def test_bad_input_is_told() -> None:
    a, b, h0 = (part.detach() for part in problem(5, 2, 3))
    with pytest.raises(TypeError, match="floating-point tensors, got torch.int64"):
        linear_scan(a, b.long(), h0)
    with pytest.raises(TypeError, match="got torch.complex128"):
        linear_scan(a.to(torch.complex128), b)
    for parts in ((a[:4], b, h0), (a, b, h0[:, :2]), (a, b, b)):
        with pytest.raises(ValueError, match=r"shape \(T, \*B, H\).*got \(\d, 2, 3\)"):
            linear_scan(*parts)
    with pytest.raises(ValueError, match="shape"):
        linear_scan(torch.tensor(1.0), torch.tensor(1.0))


@pytest.mark.gpu
@pytest.mark.parametrize("steps", [17, 1000, 4096])
def test_a_gpus_scan_is_the_loop(steps: int) -> None:
    """By accelerated-scan if it is installed, by the blocked scan otherwise."""
    exact = problem(steps, 2, 16, largest=0.9)
    parts = tuple(part.detach().float().cuda().requires_grad_() for part in exact)
    g = torch.randn(steps, 2, 16)
    ours = derivatives(linear_scan, parts, g.cuda())
    for x, y in zip(ours, derivatives(linear_loop, exact, g.double()), strict=True):
        assert (x.cpu() - y).norm() < 1e-5 * y.norm()
