"""NoisyRecurrent around cells that are not called, or do not answer, as torch's cells do."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from noisin_pyro import Multiplicative, NoisyRecurrent

T, B, D, H = 6, 3, 2, 4
NOISE = Multiplicative(dist.Normal(0.0, 1.0))


class Around(nn.Module):
    """A cell around a GRU's step."""

    input_size, hidden_size = D, H

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRUCell(D, H)


class Answers(Around):
    """Returns an output beside its state, as flax's and TensorFlow's cells do."""

    def forward(self, x: Tensor, h: Any = None) -> tuple[Tensor, Tensor]:
        h = self.inner(x, h)
        return h, h


class Matrix(Around):
    """Has a matrix for each row as a part of its state."""

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
        h, memory = (None, x.new_zeros(len(x), 2, 2)) if state is None else state
        return self.inner(x, h), memory + 1


class Dictionary(Around):
    def forward(self, x: Tensor, state: Any = None) -> dict[str, Tensor]:
        return {"h": self.inner(x, None if state is None else state["h"])}


class InPlace(Around):
    """Gives right numbers nowhere: the states of all steps would be one tensor."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h *= 0.9
        h += x.sum(-1, keepdim=True)
        return h


class Complex(Around):
    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.polar(self.inner(x, h).exp(), h)


@pytest.mark.parametrize(
    "cell, message",
    [
        (InPlace, r"InPlace writes into its input or its state.*new tensors"),
        (Complex, r"all of them real, got \['torch.complex64'\]"),
        (Answers, r"nothing else.*got \[\(7, 4\), \(7, 4\)\].*returns the state alone"),
        (Matrix, r"nothing else.*got \[\(7, 4\), \(7, 2, 2\)\]"),
        (Dictionary, r"nothing else.*got \['dict'\]"),
    ],
)
def test_a_state_that_cannot_be_given_back_is_refused_when_it_is_built(
    cell: Any, message: str
) -> None:
    """Matrix was taken with rows of zeros in the place of its matrices."""
    with pytest.raises(ValueError, match=message):
        NoisyRecurrent(cell(), noise=NOISE)


class Unpacking(nn.Module):
    """Needs a pair; a batch of two rows could be unpacked as one."""

    input_size, hidden_size = D, H

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, H))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        h, c = state
        self.seen.append(tuple(h.shape))
        return torch.tanh(x @ self.weight + h), c + h


def test_rows_of_zeros_are_not_taken_for_the_parts_of_a_state() -> None:
    cell = Unpacking()
    NoisyRecurrent(cell, noise=NOISE)
    assert set(cell.seen) == {(7, H)}


class Remembering(Around):
    """Counts its calls and averages its states, in buffers, in both modes."""

    steps: Tensor
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(H))

    def forward(self, x: Tensor, h: Any = None) -> Tensor:
        h = self.inner(x, h)
        self.steps += 1  # in place, and the other anew
        self.average = 0.9 * self.average + 0.1 * h.detach().mean(0)
        return h


def test_trial_calls_leave_buffers_alone() -> None:
    cell = Remembering()
    buffers = dict(cell.named_buffers())
    rnn = NoisyRecurrent(cell, noise=NOISE)
    assert all(cell.get_buffer(name) is held for name, held in buffers.items())
    assert cell.steps == 0 and not cell.average.any()
    rnn(torch.randn(T, B, D))
    assert cell.steps == T and cell.average.all()


class Locked(Around):
    """Keeps the dropout mask of its first call."""

    mask: Tensor | None = None

    def forward(self, x: Tensor, h: Any = None) -> Tensor:
        if self.mask is None:
            self.mask = nn.functional.dropout(torch.ones_like(x), 0.5, self.training)
        return self.inner(x * self.mask, h)


def test_trial_calls_leave_attributes_alone() -> None:
    """The mask of a trial call would have no dropout in it, and the wrong number of rows."""
    cell = Locked()
    rnn = NoisyRecurrent(cell, noise=NOISE)
    assert "mask" not in vars(cell) and cell.training
    rnn(torch.randn(T, B, D))
    assert cell.mask is not None and cell.mask.shape == (B, D)


def test_a_cell_without_tensors_moves_with_its_rnn() -> None:
    class Plain(nn.Module):
        input_size = hidden_size = H

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return 0.5 * h + x

    rnn = NoisyRecurrent(Plain(), noise=NOISE).double()
    assert rnn(torch.randn(T, B, H, dtype=torch.float64))[0].dtype == torch.float64
    assert set(rnn.state_dict()) == {"spread_l0"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_cells_may_be_quantised(kind: Any) -> None:
    rnn, x = NoisyRecurrent([kind(3, 5), kind(5, 5)]).eval(), torch.randn(4, 2, 3)
    quantised = torch.ao.quantization.quantize_dynamic(rnn)
    torch.testing.assert_close(quantised(x)[0], rnn(x)[0], atol=0.02, rtol=0)


def test_each_way_of_calling_a_cell_is_told() -> None:
    class Memory(Around):
        memory = None

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.inner(x, h * self.memory)

    with pytest.raises(ValueError, match=r"argument: 'h'; unsupported operand.*state_sizes="):
        NoisyRecurrent(Memory(), noise=NOISE)


def test_a_lazy_cell_is_given_its_weights() -> None:
    class Lazy(nn.Module):
        hidden_size = H

        def __init__(self) -> None:
            super().__init__()
            self.w, self.u = nn.LazyLinear(H), nn.Linear(H, H)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.w(x) + self.u(h))

    cell = Lazy()
    rnn = NoisyRecurrent(cell, input_size=D, noise=NOISE)
    assert cell.w.weight.shape == (H, D)
    assert rnn(torch.randn(T, B, D))[0].shape == (T, B, H)


def test_a_compiled_cell_is_not_compiled_when_it_is_built() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with pyro.validation_enabled():  # torch.compile turns the validation of distributions off
        cell: Any = torch.compile(nn.GRUCell(D, H), backend=backend)
        rnn = NoisyRecurrent(cell, noise=NOISE)
    assert rnn.hidden_size == H and not graphs


def test_a_state_of_another_shape_than_was_declared_is_told() -> None:
    rnn = NoisyRecurrent(Answers(), noise=NOISE, state_sizes=[H])
    with pytest.raises(ValueError, match=r"Answers.* must return a state shaped as .*\[\(3, 4\)\]"):
        rnn(torch.randn(T, B, D))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"state_sizes": []}, r"state_sizes must be the widths.*got \[\]"),
        ({"state_sizes": H}, "state_sizes must be the widths.*got 4"),
        ({"state_sizes": [H, 0]}, "at least 1 each"),
        ({"range": (1.0, -1.0)}, r"low < high.*got \(1.0, -1.0\)"),
        ({"range": (1.0,)}, r"range must be a pair.*got \(1.0,\)"),
        ({"range": ("a", "b")}, r"range must be a pair.*got \('a', 'b'\)"),
        ({"range": (None, 1.0)}, r"range must be a pair.*got \(None, 1.0\)"),
        ({"input_size": -1}, "input_size must be at least 1, got -1"),
    ],
)
def test_refusals(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoisyRecurrent(nn.GRUCell(D, H), noise=NOISE, **options)
