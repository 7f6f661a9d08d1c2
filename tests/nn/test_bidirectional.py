"""Both directions: torch's numbers on the mean path, two one-way layers with noise."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from noisin_pyro import (
    Additive,
    Learned,
    MeanParameterized,
    Multiplicative,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    from_torch,
    to_torch,
)
from tests.helpers import flat

NORMAL = dist.Normal(0.0, 1.0)
NOISES: dict[str, Any] = {
    "additive": Additive(NORMAL),
    "multiplicative": Multiplicative(dist.Gumbel(0.0, 1.0)),
    "mean": MeanParameterized(dist.Normal),
}
KINDS = {"tanh": NoisyRNN, "lstm": NoisyLSTM, "gru": NoisyGRU}
T, B, D, H = 6, 4, 3, 5
LENGTHS = torch.tensor([6, 1, 4, 2])

noises = pytest.mark.parametrize("noise", NOISES)
cells = pytest.mark.parametrize("cell", KINDS)
paddings = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "padded"])


@cells
@paddings
@pytest.mark.parametrize("batch_first", [False, True])
def test_the_mean_path_is_torch_bit_for_bit(
    cell: str, lengths: Tensor | None, batch_first: bool
) -> None:
    kind: Any = {"tanh": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell]
    plain = kind(D, H, 2, bidirectional=True, batch_first=batch_first, dropout=0.3).eval()
    noisy = from_torch(plain, noise=NOISES["additive"], spread=0.4)
    assert type(to_torch(noisy)) is type(plain)
    x = torch.randn(B, T, D) if batch_first else torch.randn(T, B, D)
    if lengths is None:
        for ours, theirs in zip(flat(noisy(x)), flat(plain(x))):
            assert torch.equal(ours, theirs)
        return
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    (ours, state), (theirs, reference) = noisy(packed), plain(packed)
    assert torch.equal(ours.data, theirs.data)
    for part, other in zip(flat(state), flat(reference)):
        assert torch.equal(part, other)
    padded, _ = pad_packed_sequence(theirs, batch_first, total_length=T)
    assert torch.equal(noisy(x, lengths=lengths)[0], padded)


@cells
@noises
@paddings
@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("noise_to", ["both", "output", "recurrence"])
def test_a_layer_is_two_one_way_layers(
    cell: str, noise: str, lengths: Tensor | None, sites: Any, noise_to: Any
) -> None:
    """Outputs, final states and gradients, given the same noise in each direction."""
    options: dict[str, Any] = {"sites": sites, "noise_to": noise_to, "dtype": torch.float64}
    options |= {"noise": NOISES[noise], "spread": 0.3}
    both: Any = KINDS[cell](D, H, bidirectional=True, **options)
    ways: list[Any] = [KINDS[cell](D, H, **options) for _ in range(2)]
    weights = both.state_dict()
    for way, end in zip(ways, ("", "_reverse")):
        way.load_state_dict({name: weights[f"{name}{end}"] for name in way.state_dict()})
    x = torch.randn(T, B, D, dtype=torch.float64, requires_grad=True)
    trace = poutine.trace(both).get_trace(x, lengths=lengths)
    output, state = trace.nodes["_RETURN"]["value"]

    whole = torch.full((B,), T) if lengths is None else lengths
    for index, (way, end) in enumerate(zip(ways, ("", "_reverse"))):

        def turned(part: Tensor, index: int = index) -> Tensor:
            """Each sequence backwards, written out."""
            if not index:
                return part
            columns = [part[: whole[b], b].flip(0) for b in range(B)]
            return torch.stack(
                [torch.cat([c, part[whole[b] :, b]]) for b, c in enumerate(columns)], 1
            )

        per_step = sites == "timestep" or noise == "mean"
        if per_step:
            names = [f"z_0{end}_{t}" for t in range(T)]
            z = turned(torch.cat([trace.nodes[name]["value"] for name in names]))
            values = {f"z_0_{t}": z[t : t + 1] for t in range(T)}
        else:
            values = {"noise_0": turned(trace.nodes[f"noise_0{end}"]["value"])}
        one, final = poutine.condition(way, values)(turned(x), lengths=lengths)
        part = output[..., index * H : (index + 1) * H]
        torch.testing.assert_close(turned(part), one)
        for ours, theirs in zip(flat(state), flat(final)):
            torch.testing.assert_close(ours[index : index + 1], theirs)
        mine = torch.autograd.grad(part.square().sum(), x, retain_graph=True)
        reference = torch.autograd.grad(one.square().sum(), x, retain_graph=True)
        torch.testing.assert_close(mine, reference)


@noises
def test_sites_spreads_and_deeper_layers(noise: str) -> None:
    spread: Any = [0.3, Learned(0.6)]
    rnn = NoisyGRU(D, H, 2, bidirectional=True, noise=NOISES[noise], spread=spread, dropout=0.2)
    assert [float(s.detach()) for s in rnn.spread] == pytest.approx([0.3, 0.3, 0.6, 0.6])
    trace = poutine.trace(rnn).get_trace(torch.randn(T, B, D))
    names = {f"spread_l1{end}" for end in ("", "_reverse")}
    ends = [f"{layer}{way}" for layer in range(2) for way in ("", "_reverse")]
    names |= {f"z_{end}_{T - 1}" if noise == "mean" else f"noise_{end}" for end in ends}
    assert names <= set(trace.nodes)
    output, state = trace.nodes["_RETURN"]["value"]
    assert output.shape == (T, B, 2 * H) and state.shape == (4, B, H)
    output.sum().backward()
    gradients = [rnn.spread_l1_unconstrained.grad, rnn.spread_l1_reverse_unconstrained.grad]
    assert all(gradient is not None and gradient != 0 for gradient in gradients)
    again, carried = rnn(torch.randn(T, B, D), state)
    assert again.shape == output.shape and carried.shape == state.shape
