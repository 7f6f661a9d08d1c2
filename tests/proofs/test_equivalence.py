"""One generative process: the fast ways to run it against the loop that reads like the paper.

The readable form is ``sites="timestep"``, a Python loop over :meth:`Cell.step` with a sample
site for each z_t. A handler gives it the noise ε that the sequence sites drew, so that it
computes z_t = loc + scale · ε_t by itself: outputs, final states, log joint and every gradient
must then agree, up to the change of variables −Σ log |∂z/∂ε|.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    Learned,
    MeanParameterized,
    Multiplicative,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    NormalEmission,
    SequenceModel,
)
from noisin_pyro.cells import elman, lstm
from noisin_pyro.cells.base import Cell, Weights
from noisin_pyro.cells.elman import NONLINEARITIES
from noisin_pyro.cells.gru import GRU
from noisin_pyro.cells.lstm import LSTM
from noisin_pyro.cells.scan import workspace
from noisin_pyro.kernels.onednn import packs
from noisin_pyro.layers import layer
from noisin_pyro.lengths import length_mask

D, H, B = 3, 4, 3
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}

BASES = {
    "normal": dist.Normal(0.0, 1.0),
    "gamma": dist.Gamma(2.0, 1.0),
    "bernoulli": dist.Bernoulli(0.7),
}
NOISES = {
    f"{kind.__name__.lower()}-{name}": kind(base)
    for kind, (name, base) in itertools.product((Additive, Multiplicative), BASES.items())
}
CELLS: dict[str, Cell] = {**NONLINEARITIES, "lstm": LSTM, "gru": GRU}
# layers, steps, noise_to, lengths
SETTINGS = [
    (1, 1, "both", None),
    (1, 2, "output", None),
    (2, 7, "both", None),
    (2, 7, "both", (3, 7, 1)),
    (3, 2, "both", (2, 1, 2)),
    (3, 7, "output", (7, 2, 5)),
]

cells = pytest.mark.parametrize("cell", CELLS)
noises = pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)


def build(cell: str, layers: int, noise: Any, dtype: torch.dtype, **options: Any) -> Any:
    """An RNN whose layers have spreads of their own, with weights that saturate nothing."""
    kind: Any = {"lstm": NoisyLSTM, "gru": NoisyGRU}.get(cell, NoisyRNN)
    if kind is NoisyRNN:
        options["nonlinearity"] = cell
    spread = [Learned(0.3 + 0.1 * layer) for layer in range(layers)]
    rnn = kind(D, H, layers, dtype=dtype, noise=noise, spread=spread, **options)
    with torch.no_grad():
        for name, parameter in rnn.named_parameters():
            if parameter.dim():  # a ReLU layer is kept alive
                parameter.uniform_(0.0 if cell == "relu" and "bias" in name else -0.7, 0.7)
    return rnn


def start(cell: str, layers: int, dtype: torch.dtype, *lead: int) -> Any:
    """A carried state far from zero."""
    shape = (*lead, layers, B, H)
    parts = tuple(torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(2))
    return parts if cell == "lstm" else parts[0]


def flat(*values: Any) -> list[Tensor]:
    """All tensors of nested tuples and lists."""
    return [
        tensor
        for value in values
        if value is not None
        for tensor in (flat(*value) if isinstance(value, (tuple, list)) else [value])
    ]


def probed(tensors: list[Tensor]) -> Tensor:
    """A function that reads every element of its arguments."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]
    return sum((t * w).sum() for t, w in zip(tensors, weights))  # type: ignore[return-value]


def assert_close(ours: list[Tensor], theirs: list[Tensor], dtype: torch.dtype) -> None:
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs):
        scale = max(1.0, float(reference.detach().abs().max()))
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(mine, reference, rtol=tolerance, atol=tolerance * scale)


class Driven(Messenger):
    """Gives each site z_{layer}_{t} the value loc + scale · ε_t of its own parameters."""

    def __init__(self, epsilons: list[Tensor]) -> None:
        super().__init__()
        self.epsilons = epsilons

    def _pyro_sample(self, msg: Any) -> None:
        prefix, layer, step = (msg["name"].split("_") + ["", ""])[:3]
        if prefix.rpartition(".")[2] == "z" and step:
            law = msg["fn"].base_dist
            epsilon = self.epsilons[int(layer)][..., int(step) : int(step) + 1, :, :]
            msg["value"], msg["done"] = law.loc + law.scale * epsilon, True


@cells
@noises
def test_sequence_sites_equal_timestep_sites(cell: str, noise: Any) -> None:
    """Hence folding and scan equal the step loop: each cell and noise takes one of the two."""
    every = isinstance(noise.base, dist.Normal)
    for layers, steps, noise_to, lengths in SETTINGS if every else SETTINGS[1:4:2]:
        compare(cell, noise, layers, steps, noise_to, lengths, torch.float64)


@cells
@pytest.mark.parametrize("noise", ["additive-normal", "multiplicative-normal"])
def test_sequence_sites_equal_timestep_sites_in_single_precision(cell: str, noise: str) -> None:
    compare(cell, NOISES[noise], 2, 7, "both", (3, 7, 1), torch.float32)


@pytest.mark.parametrize("cell", [name for name, cell in CELLS.items() if cell.folds])
def test_a_large_layer_takes_the_scan_and_gives_the_same(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Additive noise on a CPU: folded into the input or walked, and which of the two."""
    calls: list[str] = []

    def watched(name: str, backend: Any) -> Any:
        return lambda *args: (calls.append(name), backend(*args))[1]

    kind = type(CELLS[cell])
    monkeypatch.setattr(layer, "fold", watched("fold", layer.fold))
    monkeypatch.setattr(kind, "scan", watched("scan", kind.scan))
    torch.manual_seed(0)
    x = torch.randn(7, B, D, requires_grad=True)
    rnn = build(cell, 2, Additive(dist.Normal(0.0, 1.0)), torch.float32)
    for lengths, lead in ((None, ()), (torch.tensor([3, 7, 1]), ()), (None, (5,))):
        state = start(cell, 2, torch.float32)
        epsilon = [torch.randn(*lead, 7, B, H) for _ in range(2)]
        rows = B * (lead[0] if lead else 1)
        found = {}
        for backend, above in (("fold", 1), ("scan", 0)):
            monkeypatch.setattr(elman, "_LARGE", rows * H + above)
            monkeypatch.setattr(lstm, "_WIDE", H + above)
            calls.clear()
            outputs = flat(rnn(x, state, lengths=lengths, epsilon=epsilon))
            inputs = [x, *flat(state), *rnn.parameters()]
            found[backend] = [*outputs, *torch.autograd.grad(probed(outputs), inputs)]
            assert calls == [backend] * 2 if packs(x) else ["fold"] * 2
        assert_close(found["scan"], found["fold"], torch.float32)


def compare(
    cell: str,
    noise: Any,
    layers: int,
    steps: int,
    noise_to: str,
    lengths: Any,
    dtype: torch.dtype,
) -> None:
    lengths = None if lengths is None else torch.tensor(lengths)
    x = torch.randn(steps, B, D, dtype=dtype, requires_grad=True)
    y = torch.randn(steps, B, 2, dtype=dtype)
    state = start(cell, layers, dtype)
    emission = NormalEmission(H, 2).to(dtype)
    models = {
        sites: SequenceModel(
            nn.Identity(),
            build(cell, layers, noise, dtype, noise_to=noise_to, sites=sites),
            emission,
        )
        for sites in ("sequence", "timestep")
    }
    models["timestep"].load_state_dict(models["sequence"].state_dict())
    mask = 1 if lengths is None else length_mask(lengths, steps).unsqueeze(-1).to(dtype)

    def inputs(model: Any) -> list[Tensor]:
        return [x, *flat(state), *model.parameters()]

    pyro.clear_param_store()
    sequence = poutine.trace(models["sequence"]).get_trace(x, y, state, lengths)
    epsilons = [sequence.nodes[f"rnn.noise_{layer}"]["value"] for layer in range(layers)]
    zs = [sequence.nodes[f"rnn.z_{layer}"]["value"] for layer in range(layers)]
    final = flat(sequence.nodes["_RETURN"]["value"][1])
    log_joint = sequence.log_prob_sum()

    pyro.clear_param_store()
    timestep = poutine.trace(Driven(epsilons)(models["timestep"])).get_trace(x, y, state, lengths)
    sites = [[f"rnn.z_{layer}_{t}" for t in range(steps)] for layer in range(layers)]
    drawn = [torch.cat([timestep.nodes[site]["value"] for site in names]) for names in sites]
    loop_zs = [z * mask for z in drawn]
    loop_final = flat(timestep.nodes["_RETURN"]["value"][1])
    loop_log_joint = timestep.log_prob_sum()

    # −Σ log |∂z/∂ε|; a unit at h = 0 (ReLU) has no density under multiplicative noise: its law
    # is the point 0, and the density of its ε does not count
    expected = log_joint
    discrete = noise.base.support.is_discrete
    for z, epsilon, spread in zip(zs, epsilons, models["sequence"].rnn.spread):
        scale = spread.expand_as(z)
        if isinstance(noise, Multiplicative):
            scale = scale * z / (1 + spread * epsilon)  # γ h
        still = scale == 0
        jacobian = 0 if discrete else torch.where(still, 1, scale).abs().log()
        density = noise.standardized(x).log_prob(epsilon)
        expected = expected - (mask * torch.where(still, density, jacobian)).sum()

    assert_close([*zs, *final], [*loop_zs, *loop_final], dtype)
    assert_close([expected], [loop_log_joint], dtype)
    ours = probed([*zs, *final, expected])
    theirs = probed([*loop_zs, *loop_final, loop_log_joint])
    gradients = torch.autograd.grad(ours, inputs(models["sequence"]), retain_graph=True)
    loop_gradients = torch.autograd.grad(theirs, inputs(models["timestep"]))
    assert_close(list(gradients), list(loop_gradients), dtype)
    assert all(bool(gradient.any()) for gradient in gradients)  # nothing is left out

    # the same by conditioning on z itself, which the loop then reads as given
    if discrete or cell == "relu":  # whose z, rounded, would miss the points of their law
        return
    values = {
        site: (z * mask + other * (1 - mask))[t : t + 1].detach()
        for names, z, other in zip(sites, zs, drawn)
        for t, site in enumerate(names)
    }
    conditioned = poutine.trace(poutine.condition(models["timestep"], values))
    again = conditioned.get_trace(x, y, state, lengths).log_prob_sum()
    assert_close([again], [loop_log_joint], dtype)


# -- scan against the step loop, in plain torch -----------------------------------------------


def scan_inputs(
    cell: str, bias: bool, mult: bool, add: bool, steps: int = 3, batch: int = 1, hidden: int = 2
) -> list[Any]:
    gates = {"lstm": 4, "gru": 3}.get(cell, 1) * hidden
    shapes: list[Any] = [
        (steps, batch, gates),
        (batch, hidden),
        (batch, hidden) if cell == "lstm" else None,
        (gates, hidden),
        (gates,) if bias else None,
        (steps, batch, hidden) if mult else None,
        (steps, batch, hidden) if add else None,
    ]
    return [
        None if shape is None else torch.randn(shape, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def scanned(cell: str, inputs: list[Any]) -> list[Tensor]:
    gates, z0, c0, w_hh, b_hh, mult, add = inputs
    weights = Weights(gates.new_zeros(len(w_hh), 1), w_hh, None, b_hh)
    return flat(CELLS[cell].scan(gates, z0, c0, weights, mult, add))


def looped(cell: str, inputs: list[Any]) -> list[Tensor]:
    gates, z, c, w_hh, b_hh, mult, add = inputs
    weights = Weights(gates.new_zeros(len(w_hh), 1), w_hh, None, b_hh)
    zs, cs = [], []
    for t, gate in enumerate(gates):
        h, c = CELLS[cell].step(gate, z, c, weights)
        z = h * (1 if mult is None else mult[t]) + (0 if add is None else add[t])
        zs.append(z)
        cs.append(c)
    return flat(torch.stack(zs), None if c is None else torch.stack(cs))


@cells
@pytest.mark.parametrize("mult", [False, True])
@pytest.mark.parametrize("add", [False, True])
def test_scan(cell: str, mult: bool, add: bool) -> None:
    """Its hand-written backward pass: numerically, and against autograd through the loop."""
    for bias in (True, False) if cell == "gru" else (False,):
        inputs = scan_inputs(cell, bias, mult, add)
        leaves = [leaf for leaf in inputs if leaf is not None]
        assert torch.autograd.gradcheck(partial(returning, cell, inputs), leaves)
        inputs = scan_inputs(cell, bias, mult, add, 7, B, H)
        leaves = [leaf for leaf in inputs if leaf is not None]
        ours, theirs = scanned(cell, inputs), looped(cell, inputs)
        assert_close(ours, theirs, torch.float64)
        for part in (slice(None), slice(0, 1), slice(-1, None)):  # both of z and c, z, c
            mine, reference = (
                torch.autograd.grad(
                    probed(outputs[part]),
                    leaves,
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                for outputs in (ours, theirs)
            )
            assert_close(list(mine), list(reference), torch.float64)


def returning(cell: str, inputs: list[Any], *_: Tensor) -> tuple[Tensor, ...]:
    return tuple(scanned(cell, inputs))


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_scan_only_gives_gradients_that_are_asked_for(cell: str) -> None:
    inputs = scan_inputs(cell, cell == "gru", True, True)
    leaves = [leaf for leaf in inputs if leaf is not None]
    wanted = torch.autograd.grad(probed(scanned(cell, inputs)), leaves)
    for leaf, gradient in zip(leaves, wanted):
        for other in leaves:
            other.requires_grad_(other is leaf)
        (alone,) = torch.autograd.grad(probed(scanned(cell, inputs)), [leaf])
        torch.testing.assert_close(alone, gradient, rtol=0, atol=0)


# -- what else must not change the numbers ------------------------------------------------------


def gradients(rnn: Any, outputs: list[Tensor], *leaves: Any) -> list[Tensor]:
    inputs = [*flat(*leaves), *rnn.parameters()]
    return list(torch.autograd.grad(probed(outputs), inputs, retain_graph=True))


@cells
@pytest.mark.parametrize("noise", ["additive-gamma", "multiplicative-gamma"])
@pytest.mark.parametrize("noise_to", ["both", "output"])
def test_segments_with_carried_state_equal_one_pass(cell: str, noise: str, noise_to: str) -> None:
    rnn = build(cell, 2, NOISES[noise], torch.float64, noise_to=noise_to)
    x = torch.randn(7, B, D, dtype=torch.float64, requires_grad=True)
    first = start(cell, 2, torch.float64)
    epsilon = rnn.draw_noise(7, B)
    whole, final = rnn(x, first, epsilon=epsilon)
    pieces, state = [], first
    for begin, end in ((0, 3), (3, 4), (4, 7)):
        part, state = rnn(x[begin:end], state, epsilon=[e[begin:end] for e in epsilon])
        pieces.append(part)
    ours, theirs = [torch.cat(pieces), *flat(state)], [whole, *flat(final)]
    assert_close(ours, theirs, torch.float64)
    assert_close(gradients(rnn, ours, x, first), gradients(rnn, theirs, x, first), torch.float64)


@cells
@noises
def test_tied_noise_is_one_draw_for_every_step(cell: str, noise: Any) -> None:
    lengths = torch.tensor([4, 2, 3])
    tied = build(cell, 2, noise, torch.float64, tied=True)
    free = build(cell, 2, noise, torch.float64)
    free.load_state_dict(tied.state_dict())
    x, first = torch.randn(4, B, D, dtype=torch.float64), start(cell, 2, torch.float64)
    trace = poutine.trace(tied).get_trace(x, first, lengths=lengths)
    sites = [trace.nodes[f"noise_{layer}"] for layer in range(2)]
    for site in sites:
        assert site["value"].shape == (1, B, H)
        assert [frame.name for frame in site["cond_indep_stack"]] == ["batch"]
    epsilon = [site["value"].expand(4, B, H) for site in sites]
    ours = flat(trace.nodes["_RETURN"]["value"])
    theirs = flat(free(x, first, lengths=lengths, epsilon=epsilon))
    assert_close(ours, theirs, torch.float64)
    assert_close(gradients(tied, ours, first), gradients(free, theirs, first), torch.float64)


@cells
def test_a_mean_parameterized_normal_is_additive_noise(cell: str) -> None:
    """One law in two words, also far outside (−1, 1), where noise can take a GRU's state."""
    x, first = torch.randn(4, B, D, dtype=torch.float64), start(cell, 2, torch.float64)
    first = tuple(3 * part for part in first) if cell == "lstm" else 3 * first
    values = {
        f"z_{layer}_{t}": 3 * torch.randn(1, B, H, dtype=torch.float64)
        for layer, t in itertools.product(range(2), range(4))
    }
    log_joints = []
    for noise in (Additive(BASES["normal"]), MeanParameterized(dist.Normal)):
        torch.manual_seed(1)
        pyro.clear_param_store()
        rnn = build(cell, 2, noise, torch.float64, sites="timestep")
        trace = poutine.trace(poutine.condition(rnn, values)).get_trace(x, first)
        log_joints.append(trace.log_prob_sum())
    assert_close(log_joints[:1], log_joints[1:], torch.float64)


@cells
@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_particles_are_separate_passes(cell: str, sites: str, kind: str) -> None:
    """(S, T, B, H) from a plate of particles, with a carried state for each of them."""
    particles, steps, lengths = 2, 3, torch.tensor([3, 1, 2])
    noise = [None, NOISES[f"{kind}-gamma"], NOISES[f"{kind}-normal"]]
    options = {"tied": kind == "additive" and sites == "sequence", "sites": sites}
    rnn = build(cell, 3, noise, torch.float64, **options)
    x = torch.randn(steps, B, D, dtype=torch.float64, requires_grad=True)
    carried = start(cell, 3, torch.float64, particles)
    with pyro.plate("particles", particles, dim=-3):
        traced = poutine.trace(rnn).get_trace(x, carried, lengths=lengths)
    output, final = traced.nodes["_RETURN"]["value"]
    assert output.shape == (particles, steps, B, H)
    assert all(part.shape == (particles, 3, B, H) for part in flat(final))
    traced.compute_log_prob()
    singles = []
    for particle in range(particles):
        values = {
            name: site["value"][particle]
            for name, site in traced.nodes.items()
            if site["type"] == "sample"
            and not site["is_observed"]
            and name not in ("time", "batch", "particles")
        }
        state = tuple(part[particle] for part in flat(carried))
        pyro.clear_param_store()
        single = poutine.trace(poutine.condition(rnn, values)).get_trace(
            x, state if cell == "lstm" else state[0], lengths=lengths
        )
        singles.append(flat(single.nodes["_RETURN"]["value"]))
        for name in values:
            log_prob = traced.nodes[name]["log_prob"][particle]
            single.compute_log_prob()
            torch.testing.assert_close(log_prob, single.nodes[name]["log_prob"])
    ours = flat(output, final)
    theirs = [torch.stack(parts) for parts in zip(*singles)]
    assert_close(ours, theirs, torch.float64)
    assert_close(
        gradients(rnn, ours, x, carried), gradients(rnn, theirs, x, carried), torch.float64
    )


@cells
@pytest.mark.parametrize("sites", ["sequence", "timestep"])
@pytest.mark.parametrize("noise", ["additive-normal", "multiplicative-normal"])
def test_padding_is_never_read(cell: str, sites: str, noise: str) -> None:
    """Not even where it is NaN: neither values nor gradients."""
    lengths = torch.tensor([2, 4, 1])
    rnn = build(cell, 2, NOISES[noise], torch.float64, sites=sites)
    first = start(cell, 2, torch.float64)
    x = torch.randn(4, B, D, dtype=torch.float64)
    results = []
    for filling in (0.0, torch.nan):
        given = x.masked_fill(~length_mask(lengths, 4).unsqueeze(-1), filling).requires_grad_()
        torch.manual_seed(1)
        outputs = flat(rnn(given, first, lengths=lengths))
        results.append([*outputs, *gradients(rnn, outputs, given, first)])
        torch.manual_seed(1)
        results[-1] += flat(rnn(given, first, lengths=lengths, sample=False))
    for zero, nan in zip(*results):
        assert torch.equal(zero, nan)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk")
@cells
@pytest.mark.parametrize("noise", ["additive-normal", "multiplicative-normal"])
def test_on_a_gpu(cell: str, noise: str) -> None:
    """cuDNN's kernels and the scan give the CPU's numbers; lengths may stay on the CPU."""
    rnn = build(cell, 2, NOISES[noise], torch.float64)
    x, first = torch.randn(5, B, D, dtype=torch.float64), start(cell, 2, torch.float64)
    lengths = torch.tensor([5, 1, 3])
    epsilon = rnn.draw_noise(5, B)
    reference = flat(rnn(x, first, lengths=lengths, epsilon=epsilon))
    expected = gradients(rnn, reference)
    rnn.cuda()
    moved = tuple(part.detach().cuda() for part in flat(first))
    outputs = flat(
        rnn(
            x.cuda(),
            moved if cell == "lstm" else moved[0],
            lengths=lengths,
            epsilon=[e.cuda() for e in epsilon],
        )
    )
    ours = torch.autograd.grad(probed([part.cpu() for part in outputs]), list(rnn.parameters()))
    assert_close([part.cpu() for part in [*outputs, *ours]], [*reference, *expected], torch.float64)
    assert all(e.is_cuda for e in rnn.draw_noise(5, B, lengths))


@pytest.mark.parametrize("cell", ["tanh", "identity", "lstm", "gru"])
def test_a_scan_without_gradients_gives_the_same_in_less_memory(cell: str) -> None:
    """What the backward pass would need is not kept, and the numbers do not change."""
    torch.manual_seed(0)
    steps, batch, width = 6, 3, 4
    width_of_gates = {"lstm": 4, "gru": 3}.get(cell, 1) * width
    w_hh = torch.randn(width_of_gates, width, requires_grad=True)
    weights = Weights(w_hh, w_hh, None, None)
    gates, mult = torch.randn(steps, batch, width_of_gates), torch.rand(steps, batch, width)
    z0 = torch.randn(batch, width)
    c0 = torch.randn(batch, width) if cell == "lstm" else None
    kept = CELLS[cell].scan(gates, z0, c0, weights, mult)
    with torch.no_grad():
        free = CELLS[cell].scan(gates, z0, c0, weights, mult)
    for ours, theirs in zip(free, kept):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)
    assert kept[0].requires_grad and not free[0].requires_grad
    assert workspace(gates, width, False).untyped_storage().nbytes() * steps == (
        workspace(gates, width, True).untyped_storage().nbytes()
    )


@cells
@pytest.mark.parametrize("noisy", ["mult", "add", "both"])
def test_second_derivatives_of_the_scan(cell: str, noisy: str) -> None:
    """A Hessian, an influence function, a gradient penalty."""
    torch.manual_seed(0)
    width = {"lstm": 4, "gru": 3}.get(cell, 1) * H
    shapes = {"gates": (3, 2, width), "z0": (2, H), "c0": (2, H), "w_hh": (width, H)}
    shapes |= {"b_hh": (width,), "mult": (3, 2, H), "add": (3, 2, H)}
    unread = set() if cell == "lstm" else {"c0"}
    unread |= {"mult", "add"} - ({noisy} if noisy != "both" else {"mult", "add"})
    unread |= set() if cell == "gru" else {"b_hh"}
    given = {
        name: torch.randn(shape, dtype=torch.float64).mul_(0.7).requires_grad_()
        for name, shape in shapes.items()
        if name not in unread
    }

    def walked(*parts: Tensor) -> Any:
        held = dict.fromkeys(shapes) | dict(zip(given, parts))
        weights = Weights(held["w_hh"], held["w_hh"], None, held["b_hh"])  # type: ignore[arg-type]
        found = CELLS[cell].scan(
            held["gates"], held["z0"], held["c0"], weights, held["mult"], held["add"]
        )
        return tuple(part for part in found if part is not None)

    by_hand, readable = (
        torch.autograd.grad(
            probed(list(walked(*given.values()))), [*given.values()], create_graph=graph
        )
        for graph in (False, True)
    )
    assert_close([*readable], [*by_hand], torch.float64)
    assert torch.autograd.gradcheck(walked, tuple(given.values()))
    assert torch.autograd.gradgradcheck(walked, tuple(given.values()))
