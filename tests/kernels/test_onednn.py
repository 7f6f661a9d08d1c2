"""Products: all ways of computing them are the same function."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

from noisin_pyro import Multiplicative, NoisyGRU, NoisyLSTM, NoisyRNN
from noisin_pyro.kernels import onednn
from noisin_pyro.nn.emissions import LinearCategorical


def large(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    """All products by oneDNN, or none."""
    monkeypatch.setattr(onednn, "_pays", lambda *_, **__: fast)
    monkeypatch.setattr(onednn, "_ROWS", 1)


def test_this_machine_takes_the_fast_way() -> None:
    """Or the comparisons below would compare ``addmm`` with itself."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("needs a torch with oneDNN")
    assert onednn.packs(torch.eye(3))
    assert not onednn.packs(torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("count", [1, 35])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (20, 64, 16), (160, 33, 130)])
def test_it_is_a_product(
    shape: tuple[int, int, int],
    transposed: bool,
    dtype: torch.dtype,
    count: int,
    fast: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large(monkeypatch, fast)
    rows, width, depth = shape
    weight = torch.randn(depth, width, dtype=dtype).t() if transposed else torch.randn(width, depth)
    weight = weight.to(dtype)
    x, addend = torch.randn(rows, depth, dtype=dtype), torch.randn(rows, width, dtype=dtype)
    out = torch.empty(2, rows, width, dtype=dtype)[1]
    returned = onednn.small_products(weight, rows, count)(addend, x, out)
    assert returned.data_ptr() == out.data_ptr()
    exact = addend.double() + x.double() @ weight.double().T
    assert_close(out.double(), exact, atol=1e-4 if dtype == torch.float32 else 1e-12, rtol=1e-5)


def test_without_onednn_it_is_a_product_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_works", lambda: False)
    weight, x, addend = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3, 5)
    out = onednn.small_products(weight, 3, 35)(addend, x, torch.empty(3, 5))
    assert_close(out, addend + x @ weight.T)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [NoisyRNN, NoisyLSTM, NoisyGRU])
def test_a_recurrence_is_the_same_either_way(
    kind: Any, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and every gradient, by oneDNN in float32, by ``addmm``, and in float64."""
    torch.manual_seed(1)
    rnn = kind(6, 24, 2, bias=bias, noise=Multiplicative(dist.Laplace(0.0, 1.0)), spread=0.5)
    x = torch.randn(35, 20, 6)
    epsilon = rnn.draw_noise(35, 20)

    def run(module: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        module.zero_grad()
        output, _ = module(x.to(dtype), epsilon=[eps.to(dtype) for eps in epsilon])
        (output * torch.linspace(-1, 1, 24, dtype=dtype)).sum().backward()
        return [output.detach(), *(p.grad.clone() for p in module.parameters())]

    large(monkeypatch, True)
    fast = run(rnn, torch.float32)
    large(monkeypatch, False)
    plain = run(rnn, torch.float32)
    exact = run(rnn.double(), torch.float64)
    for one, other, reference in zip(fast, plain, exact):
        size = float(reference.abs().max())
        assert_close(one.double(), reference, atol=2e-5 * size, rtol=0)
        assert_close(other.double(), reference, atol=2e-5 * size, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (5,), (3, 5), (2, 3, 5)])
def test_linear_is_torchs(
    lead: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, gradients, and gradients of those, also of what is no contiguous matrix."""
    torch.manual_seed(0)
    parts = [torch.randn(*lead, 7), torch.randn(7, 4).t(), *([torch.randn(4)] if bias else [])]
    probe, other = torch.randn(*lead, 4), [torch.randn_like(part) for part in parts]

    def derivatives(function: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        given = [
            part.to(dtype, memory_format=torch.preserve_format).requires_grad_() for part in parts
        ]
        y = function(*given)
        first = torch.autograd.grad((y.tanh() * probe).sum(), given, create_graph=True)
        along: Any = sum((g * o).sum() for g, o in zip(first, other))
        second = torch.autograd.grad(along, given)
        return [t.double() for t in (y, *first, *second)]

    calls = []
    fast_way = onednn._Linear.apply
    monkeypatch.setattr(onednn._Linear, "apply", lambda *a: (calls.append(1), fast_way(*a))[1])
    expected = derivatives(torch.nn.functional.linear, torch.float64)
    for fast in (True, False):
        large(monkeypatch, fast)
        calls.clear()
        for ours, theirs in zip(derivatives(onednn.linear, torch.float32), expected):
            assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        assert bool(calls) == (fast and bool(lead) and onednn.packs(parts[0]))


def layouts(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """Matrices of one shape, differently laid out in memory."""
    return {
        "contiguous": torch.randn(rows, columns),
        "transposed": torch.randn(columns, rows).t(),
        "part of a row": torch.randn(rows, 2 * columns)[:, columns:],
        "every other column": torch.randn(rows, 2 * columns)[:, ::2],
        "every other row": torch.randn(2 * rows, columns)[::2],
        "part of a column": torch.randn(columns, 2 * rows)[:, :rows].t(),
        "one row": torch.randn(1, columns).expand(rows, columns),
        "one column": torch.randn(rows, 1).expand(rows, columns),
    }


LAYOUTS = pytest.mark.parametrize("layout", layouts(1, 1))


@LAYOUTS
@pytest.mark.parametrize("part", ["x", "weight", "bias", "grad"])
def test_any_layout_will_do(part: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    large(monkeypatch, True)
    x, weight, bias, grad = (torch.randn(shape) for shape in ((6, 7), (5, 7), (5,), (6, 5)))
    if part == "x":
        x = layouts(6, 7)[layout]
    elif part == "weight":
        weight = layouts(5, 7)[layout]
    elif part == "bias":
        bias = layouts(5, 3)[layout][:, 1]
    else:
        grad = layouts(6, 5)[layout]
    found = []
    for function in (onednn.linear, torch.nn.functional.linear):
        given = [given.detach().requires_grad_() for given in (x, weight, bias)]
        y = function(*given)
        found.append([y, *torch.autograd.grad(y, given, grad)])
    assert_close(found[0], found[1])


@LAYOUTS
def test_onednn_gets_no_weight_with_gaps(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its general product of such a matrix takes a second where torch's takes a millisecond."""
    large(monkeypatch, True)
    matrix, other = layouts(6, 7)[layout], torch.randn(3, 7)
    calls: list[torch.Tensor] = []
    fast_way = onednn._Linear.apply
    monkeypatch.setattr(
        onednn._Linear, "apply", lambda x, w, b: (calls.append(w), fast_way(x, w, b))[1]
    )
    assert_close(onednn.linear(other, matrix), other @ matrix.t())
    assert_close(onednn.outer(matrix, other[:1].expand(6, 7)), matrix.t() @ other[:1].expand(6, 7))
    dense = layout in ("contiguous", "transposed")
    assert len(calls) == (2 if dense and onednn.packs(matrix) else 0)


def test_a_strided_bias_of_a_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found there: large enough for oneDNN, in single precision."""
    large(monkeypatch, True)
    z, weight = torch.randn(700, 64), torch.randn(100, 64)
    y = torch.randint(100, (700,))
    for bias in (torch.randn(100, 2)[:, 0], torch.randn(1).expand(100)):
        distribution = LinearCategorical(z, weight, bias)
        assert_close(
            distribution.log_prob(y), distribution.categorical().log_prob(y), rtol=1e-4, atol=1e-4
        )


def test_few_outer_products_are_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN would take longer to transpose the result than to compute it."""
    monkeypatch.setattr(onednn, "INTEL", False)
    calls: list[int] = []
    by_onednn = onednn.linear
    monkeypatch.setattr(
        onednn, "linear", lambda *a: (calls.append(len(a[1].t())), by_onednn(*a))[1]
    )
    for rows in (20, 300):
        left, right = torch.randn(rows, 3_000), torch.randn(rows, 2_000)  # over 10⁸ products
        assert_close(onednn.outer(left, right), left.t() @ right, rtol=1e-4, atol=1e-3)
    assert calls == ([300] if onednn.packs(left) else [])


@pytest.mark.parametrize("fast", [True, False])
def test_outer_is_a_sum_of_outer_products(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    large(monkeypatch, fast)
    left, right = torch.randn(9, 4), torch.randn(3, 9).t()
    found = onednn.outer(left, right)
    assert_close(found, torch.einsum("ng,nh->gh", left, right))
    assert found.is_contiguous()


def test_products_leave_autocast_and_other_dtypes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    large(monkeypatch, True)
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert onednn.linear(x, weight).dtype == torch.bfloat16
    assert onednn.linear(x.double(), weight.double()).dtype == torch.float64
    assert torch.vmap(onednn.linear, (0, None))(x, weight).shape == (3, 5)


def test_large_products_are_intels_own_on_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """MKL is slower than oneDNN on those of others only."""
    for intel, reordered in ((True, False), (True, True), (False, False), (False, True)):
        monkeypatch.setattr(onednn, "INTEL", intel)
        assert (onednn._least(reordered) == float("inf")) == (intel and not reordered)


def test_what_the_cpu_can_do_is_asked_of_the_cpu() -> None:
    """The answer is kept for the process, also if another device is the default just then."""
    expected = onednn._works()
    onednn._works.cache_clear()
    with torch.device("meta"):
        assert onednn._works() == expected
