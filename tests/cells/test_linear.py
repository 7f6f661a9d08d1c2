"""Linear recurrences: the scan against the step loop, and the noise's mean over all steps."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from noisin_pyro import (
    Additive,
    LanguageModel,
    MeanParameterized,
    Multiplicative,
    NoisinELBO,
    NoisyMinGRU,
    NoisyRGLRU,
    PriorGuide,
)
from noisin_pyro.cells import pieces
from noisin_pyro.cells.base import Cell
from tests.helpers import LINEAR, assert_all_close, flat, make_rnn, probed
from tests.proofs.rnns import NOISES
from tests.proofs.test_equivalence import SETTINGS, compare

D, H, B = 3, 4, 3
linears = pytest.mark.parametrize("cell", LINEAR)


def build(cell: str, layers: int = 1, **options: Any) -> Any:
    """With weights that set the gates apart."""
    rnn = make_rnn(cell, D, H, layers, **options).double()
    with torch.no_grad():
        for name, weight in rnn.named_parameters():
            if "_ih_" in name:
                weight.uniform_(-1.5, 1.5)
    return rnn


def textbook(cell: str, rnn: Any, x: Tensor, z: Tensor) -> Tensor:
    """h from the formulas of the papers, for one step."""
    parts = (x @ rnn.weight_ih_l0.T + rnn.bias_ih_l0).split(H, -1)
    if cell == "mingru":
        u, g = parts
        return (1 - u.sigmoid()) * z + u.sigmoid() * g
    if cell == "minlstm":
        f, i, g = parts[0].sigmoid(), parts[1].sigmoid(), parts[2]
        return f / (f + i) * z + i / (f + i) * g
    r, i, g = parts[0].sigmoid(), parts[1].sigmoid(), parts[2]
    a = rnn.decay_l0.sigmoid() ** (8 * r)
    return a * z + (1 - a**2).sqrt() * (i * g)


@linears
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
@pytest.mark.parametrize("noise_to", ["both", "output", "recurrence"])
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_the_loop_of_the_paper(cell: str, noise: Any, noise_to: Any, tied: bool) -> None:
    """Values and gradients, with the noise given, across the blocks of the scan."""
    steps, spread = 40, 0.3
    rnn = build(cell, noise=noise, spread=spread, noise_to=noise_to, tied=tied)
    x = torch.randn(steps, B, D, dtype=torch.float64, requires_grad=True)
    start = torch.randn(1, B, H, dtype=torch.float64, requires_grad=True)
    (epsilon,) = rnn.draw_noise(steps, B)
    epsilon.requires_grad_()
    output, final = rnn(x, start, epsilon=[epsilon])
    mult, add = noise.affine(epsilon.expand(steps, B, H), rnn.spread[0])
    read, outputs = start[0], []
    for t in range(steps):
        h = textbook(cell, rnn, x[t], read)
        z = h if mult is None else h * mult[t]
        z = z if add is None else z + add[t]
        outputs.append(h if noise_to == "recurrence" else z)
        read = h if noise_to == "output" else z
    leaves = [x, start, epsilon, *rnn.parameters()]
    ours, theirs = [output, final], [torch.stack(outputs), read.unsqueeze(0)]
    assert_all_close(ours, theirs, 1e-10)
    mine, reference = (torch.autograd.grad(probed(part), leaves) for part in (ours, theirs))
    assert_all_close(mine, reference, 1e-9)


@linears
def test_the_scan_is_the_readable_loop(cell: str) -> None:
    """Of the same cell, with both parts of an affine noise at once, also twice differentiated."""
    rnn = build(cell)
    (weights,) = rnn._weights()
    gates = torch.randn(9, B, rnn.cell.gates * H, dtype=torch.float64, requires_grad=True)
    mult, add = (torch.randn(9, B, H, dtype=torch.float64, requires_grad=True) for _ in "ma")
    z0 = torch.randn(B, H, dtype=torch.float64, requires_grad=True)
    leaves = [gates, mult, add, z0]
    found = []
    for scan in (rnn.cell.scan, lambda *args: Cell.scan(rnn.cell, *args)):
        (z,) = scan(gates, (z0,), weights, mult, add)
        first = torch.autograd.grad(probed([z.square()]), leaves, create_graph=True)
        second = torch.autograd.grad(probed([part.square() for part in first]), leaves)
        found.append([z, *first, *second])
    assert_all_close(found[0], found[1], 1e-10)


@linears
@pytest.mark.parametrize("noise", ["additive-normal", "multiplicative-normal"])
def test_pieces_of_the_sequence_change_nothing(
    cell: str, noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rnn = build(cell, 2, noise=NOISES[noise])
    x = torch.randn(50, B, D, dtype=torch.float64, requires_grad=True)
    found = []
    for shortest in (50, 7, 1):
        monkeypatch.setattr(pieces, "_SHORTEST", shortest)
        monkeypatch.setattr(pieces, "_PIECE", 0)
        pyro.set_rng_seed(1)
        outputs = flat(rnn(x))
        found.append([*outputs, *torch.autograd.grad(probed(outputs), [x, *rnn.parameters()])])
    assert_all_close(found[1], found[0])
    assert_all_close(found[2], found[0])


@linears
@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_sequence_sites_equal_timestep_sites(cell: str, noise: Any) -> None:
    """One generative process: log joint, states and every gradient; see the proof it is from."""
    for layers, steps, noise_to, lengths in SETTINGS[1::2]:
        compare(cell, noise, layers, steps, noise_to, lengths, torch.float64)


@linears
def test_lengths_packed_input_and_a_carried_state(cell: str) -> None:
    lengths = torch.tensor([6, 2, 4])
    rnn = build(cell, 2, noise=NOISES["multiplicative-normal"], bidirectional=True)
    x = torch.randn(6, B, D, dtype=torch.float64)
    epsilon = rnn.draw_noise(6, B)
    output, state = rnn(x, lengths=lengths, epsilon=epsilon)
    for row, length in enumerate(lengths.tolist()):
        here = slice(row, row + 1)
        ours = [e[:length, here] for e in epsilon]
        alone, last = rnn(x[:length, here], epsilon=ours)
        assert_all_close([output[:length, here], state[:, here]], [alone, last])
        assert not output[length:, row].any()
    packed, packed_state = rnn(
        pack_padded_sequence(x, lengths, enforce_sorted=False), epsilon=epsilon
    )
    order = packed.sorted_indices
    again = pack_padded_sequence(output[:, order], lengths[order])
    assert_all_close([packed.data, packed_state], [again.data, state])

    forward = build(cell, 2, noise=NOISES["additive-gamma"])
    epsilon = forward.draw_noise(6, B)
    whole, end = forward(x, epsilon=epsilon)
    first, middle = forward(x[:2], epsilon=[e[:2] for e in epsilon])
    second, last = forward(x[2:], middle, epsilon=[e[2:] for e in epsilon])
    assert_all_close([torch.cat([first, second]), last], [whole, end])


# -- the mean over all steps -----------------------------------------------------------------------


def drift(rnn: Any, steps: int = 4) -> Tensor:
    """E[z_t] minus the deterministic path, over all masks of Bernoulli noise, which is exact."""
    x = torch.randn(steps, 1, D, dtype=torch.float64)
    (noise,) = rnn.noise
    units, keep = rnn.hidden_size, noise.mean
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=steps * units))).double()
    chances = (keep * masks + (1 - keep) * (1 - masks)).prod(1)
    epsilon = ((masks - keep) / noise.stddev).view(-1, steps, units).transpose(0, 1)
    z, _ = rnn(x.expand(-1, len(masks), -1), epsilon=[epsilon])
    expected = (z * chances.view(1, -1, 1)).sum(1)
    return expected - rnn.eval()(x)[0][:, 0]


@linears
@pytest.mark.parametrize("kind", [Additive, Multiplicative])
def test_the_mean_is_the_deterministic_path_with_noise_in_the_recurrence(
    cell: str, kind: Any
) -> None:
    """Strong unbiasedness with feedback, which a tanh layer lacks: its mean drifts."""
    options: dict[str, Any] = {"noise": kind(dist.Bernoulli(0.6)), "spread": 0.7}
    for name in (cell, "tanh"):
        rnn = make_rnn(name, D, 2, **options).double()
        with torch.no_grad():
            for weight in (rnn.weight_ih_l0, *([rnn.weight_hh_l0] if name == "tanh" else [])):
                weight.uniform_(0.5, 1.5)
        found = drift(rnn)
        assert found[0].abs().max() < 1e-12
        assert (found.abs().max() < 1e-12) == (name == cell)
    assert found[1:].abs().max() > 1e-3


# -- in a model ------------------------------------------------------------------------------------


@linears
@pytest.mark.parametrize("noise", ["additive-normal", "multiplicative-bernoulli", "mean"])
def test_objectives_and_evaluation(cell: str, noise: str) -> None:
    from noisin_pyro.text.evaluation import evaluate

    mean = MeanParameterized(lambda m, s: dist.Normal(m, s))
    rnn = make_rnn(cell, D, D, 2, noise=NOISES.get(noise, mean), spread=0.3)
    model = LanguageModel(7, rnn, tied_weights=True)
    assert model.rnn.samples_timesteps == (noise == "mean")
    x, y = torch.randint(7, (2, 6, B))
    for elbo in (NoisinELBO(), NoisinELBO(3, vectorize_particles=True)):
        elbo(model, PriorGuide(model))(x, y, lengths=torch.tensor([6, 2, 4])).backward()
    assert all(bool(part.grad.any()) for part in model.parameters())
    assert evaluate(model, torch.randint(7, (200,)), samples=2).tokens == 190


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_decay_starts_where_the_paper_starts_it(dtype: torch.dtype) -> None:
    """In half precision the logit of a number near 1 was infinite, and the unit never read x."""
    torch.manual_seed(0)
    decay = NoisyRGLRU(3, 5000, dtype=dtype).decay_l0.double().sigmoid().pow(8)
    assert 0.898 < decay.min() < 0.901 and 0.998 < decay.max() < 0.9991
    assert decay.mean().item() == pytest.approx(0.9495, abs=0.002)


@linears
def test_half_precision_is_scanned_in_single(cell: str) -> None:
    rnn = make_rnn(cell, D, H, noise=NOISES["multiplicative-normal"], spread=0.1)
    x = torch.randn(200, B, D)
    epsilon = rnn.draw_noise(200, B)
    exact, _ = rnn(x, epsilon=epsilon)
    half, _ = rnn.bfloat16()(x.bfloat16(), epsilon=[part.bfloat16() for part in epsilon])
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() < 0.1 * exact.norm()  # of rounded gates
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = rnn.float()(x, epsilon=epsilon)
    assert mixed.dtype == torch.float32
    assert (mixed - exact).norm() < 0.1 * exact.norm()  # of rounded gates


@linears
@pytest.mark.parametrize("zoneout", [0.0, 0.2])
def test_coefficients_of_half_precision_are_not_rounded(cell: str, zoneout: float) -> None:
    """Beside the same weights and input in float64: RG-LRU's memory is longer than bfloat16 tells.

    With coefficients in bfloat16 it was 6 % away.
    """
    half = make_rnn(cell, D, 64, zoneout=zoneout).bfloat16().eval()
    exact = copy.deepcopy(half).double()
    x = torch.randn(600, B, D).bfloat16()
    reference, _ = exact(x.double())
    assert (half(x)[0] - reference).norm() < 0.005 * reference.norm()


def test_extreme_gates_have_finite_gradients() -> None:
    for cell in LINEAR:
        rnn = make_rnn(cell, D, H)
        x = torch.full((5, 1, D), 1e4) * torch.tensor([1.0, -1.0, 1.0])
        z, _ = rnn(x)
        z.sum().backward()
        assert all(part.grad.isfinite().all() for part in rnn.parameters())


@pytest.mark.parametrize("sizes", [(0, 4), (3, 0), (3, 4, 0)])
def test_sizes_are_checked(sizes: Any) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        NoisyMinGRU(*sizes)
    assert "num_layers=2, dropout=0.1" in repr(NoisyMinGRU(3, 4, 2, dropout=0.1))
