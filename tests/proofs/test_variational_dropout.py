"""Variational dropout as tied noise, against Gal and Ghahramani written out.

Y. Gal and Z. Ghahramani (2016), https://arxiv.org/abs/1512.05287.

The models are those that ``variational_dropout`` of ``noisin train`` builds.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from noisin_pyro import LanguageModel, Multiplicative, NoisyLSTM, NoisyRNN, evaluate
from noisin_pyro.training.build import build_model
from noisin_pyro.training.config import TrainConfig

pytestmark = pytest.mark.lm  # it builds models as the command line does
CELLS = ("rnn_tanh", "rnn_relu", "rnn_sigmoid", "lstm", "gru")
STEPS, BATCH, WORDS = 6, 3, 7


def model_of(cell: str, layers: int, rate: float = 0.4) -> LanguageModel:
    config = TrainConfig(
        cell=cell,
        layers=layers,
        noise="none",
        variational_dropout=rate,
        embedding_size=5,
        hidden_size=4,
    )
    torch.manual_seed(3)
    model = build_model(config, WORDS).double()
    with torch.no_grad():  # the softmax and the embedding start too small to show a difference
        model.embedding.weight.mul_(20)
        model.emission.weight.mul_(20)
    return model


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The masks that dropout makes from ones, in the order of their making."""
    made: list[Tensor] = []
    plain = F.dropout

    def recording(
        x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        out = plain(x, p, training, inplace)
        if training and p:
            assert bool((x == 1).all()), "a tied mask is made from ones"
            made.append(out)
        return out

    monkeypatch.setattr(F, "dropout", recording)
    return made


def transition(
    cell: str, x: Tensor, h: Tensor, mask: Tensor, c: Tensor, weights: Any
) -> tuple[Tensor, Tensor]:
    """One step, as the textbooks have it, with a mask on what the recurrent weights read."""
    w_ih, w_hh, b_ih, b_hh = weights
    a, b = x @ w_ih.T + b_ih, (h * mask) @ w_hh.T + b_hh
    if cell == "lstm":
        i, f, g, o = (a + b).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    if cell == "gru":
        (r, u, n), (r2, u2, n2) = a.chunk(3, -1), b.chunk(3, -1)
        r, u = torch.sigmoid(r + r2), torch.sigmoid(u + u2)
        n = torch.tanh(n + r * n2)
        return (1 - u) * n + u * h, c
    act: Any = {"rnn_tanh": torch.tanh, "rnn_relu": torch.relu, "rnn_sigmoid": torch.sigmoid}[cell]
    return act(a + b), c


def gal_and_ghahramani(
    model: LanguageModel, cell: str, x: Tensor, drop: dict[str, Any], start: Any = None
) -> tuple[Tensor, Tensor]:
    """The logits and the last layer's final state, by loops over steps and layers."""
    rnn = model.rnn
    embedded = model.embedding.weight[x]
    embedded = embedded * drop["words"][torch.arange(x.shape[1]), x].unsqueeze(-1)
    inputs = [step * drop["input"] for step in embedded]
    for layer in range(rnn.num_layers):
        weights = [getattr(rnn, f"{n}_l{layer}") for n in ("weight_ih", "weight_hh", "bias_ih",
                                                           "bias_hh")]  # fmt: skip
        h = x.new_zeros(x.shape[1], rnn.hidden_size, dtype=torch.float64)
        c, outputs = h, []
        if start is not None:
            h = start[layer]
        for step in inputs:
            h, c = transition(cell, step, h, drop["recurrent"][layer], c, weights)
            outputs.append(h)
        up = drop["output"] if layer == rnn.num_layers - 1 else drop["between"][layer]
        inputs = [out * up for out in outputs]
    return F.linear(torch.stack(inputs), model.emission.weight, model.emission.bias), h


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_is_gal_and_ghahramanis(cell: str, layers: int, masks: list[Tensor]) -> None:
    """With the same masks: the same likelihood and the same gradient of every weight."""
    model = model_of(cell, layers)
    x, y = torch.randint(WORDS, (2, STEPS, BATCH))
    trace = poutine.trace(model).get_trace(x, y)
    likelihood: Any = trace.nodes["y"]["fn"]
    loss = likelihood.log_prob(y).sum()
    recurrent = []
    for layer, spread in enumerate(model.rnn.spread):
        assert spread is not None
        epsilon = trace.nodes[f"rnn.noise_{layer}"]["value"]
        recurrent.append((1 + spread.double() * epsilon).squeeze(0))
    words, first, *between, last = masks
    assert words.shape == (BATCH, WORDS) and first.shape == (1, BATCH, 5)
    assert [mask.shape for mask in (*between, last)] == [(1, BATCH, 4)] * layers
    for mask in (words, first, *between, last, *recurrent):
        # inverted dropout: 0 or 1/(1 - p); both occur, or the test would show little
        assert torch.allclose(mask, torch.where(mask.abs() > 0.5, 1 / 0.6, 0.0).double(), atol=1e-6)
    assert any((mask.abs() < 0.5).any() for mask in recurrent)
    drop = {"words": words, "input": first[0], "recurrent": recurrent,
            "between": [mask[0] for mask in between], "output": last[0]}  # fmt: skip
    logits, h = gal_and_ghahramani(model, cell, x, drop)
    truth = -F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum")
    torch.testing.assert_close(loss, truth, rtol=1e-6, atol=0)  # γ is a float32 constant
    parameters = list(model.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(truth, parameters)
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_gru_carries_its_state_on_without_a_mask() -> None:
    """Two windows, with a mask of each: the carried h is clean, and the first step reads the mask.

    A mask that multiplied what is carried on would grow by 1/(1 - p) a step.
    """
    model = model_of("gru", 2)
    rnn = model.rnn
    x = torch.randn(STEPS, BATCH, 5, dtype=torch.float64)
    start = torch.rand(2, BATCH, 4, dtype=torch.float64)
    epsilon = rnn.draw_noise(STEPS, BATCH)
    model.train()
    rnn.dropout = 0.0
    output, final = rnn(x, start, epsilon=epsilon)
    steps = x
    for layer, (spread, drawn) in enumerate(zip(rnn.spread, epsilon)):
        assert spread is not None and drawn is not None
        mask = (1 + spread.double() * drawn).squeeze(0)
        weights = [getattr(rnn, f"{n}_l{layer}") for n in ("weight_ih", "weight_hh", "bias_ih",
                                                           "bias_hh")]  # fmt: skip
        h, outputs = start[layer], []
        for step in steps:
            h, _ = transition("gru", step, h, mask, h, weights)
            outputs.append(h)
        steps = torch.stack(outputs)
        torch.testing.assert_close(final[layer], h, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(output, steps, rtol=1e-6, atol=1e-7)
    long, _ = rnn(torch.randn(500, BATCH, 5, dtype=torch.float64))
    assert long.abs().max() <= 1  # as without a mask


@pytest.mark.parametrize("cell", ["mingru", "minlstm", "rglru"])
def test_without_recurrent_weights_there_is_no_recurrent_mask(
    cell: str, masks: list[Tensor]
) -> None:
    """A linear recurrence has masks on words, input, between the layers and on the output."""
    model = model_of(cell, 2)
    x = torch.randint(WORDS, (STEPS, BATCH))
    trace = poutine.trace(model).get_trace(x)
    assert not [name for name in trace.nodes if "noise" in name]
    likelihood: Any = trace.nodes["y"]["fn"]
    words, first, between, last = masks
    embedded = model.embedding.weight[x]
    embedded = embedded * words[torch.arange(BATCH), x].unsqueeze(-1)
    inputs = embedded * first
    state = torch.zeros(BATCH, 4, dtype=torch.float64)
    for weights, mask in zip(model.rnn._weights(), (between, last)):
        h, outputs = state, []
        for gates in model.rnn.cell.project(inputs, weights):
            (h,) = model.rnn.cell.step(gates, (h,), weights)
            outputs.append(h * mask[0])
        inputs = torch.stack(outputs)
    logits = F.linear(inputs, model.emission.weight, model.emission.bias)
    torch.testing.assert_close(likelihood.logits.log_softmax(-1), logits.log_softmax(-1))


def test_masks_are_drawn_anew_for_each_call_and_sequence() -> None:
    model = model_of("lstm", 2)
    x = torch.zeros(STEPS, BATCH, dtype=torch.long)  # one word, so that the outputs tell the masks
    first, second = (model.predict(x)[0].logits for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first[:, 0], first[:, 1])


def test_a_dropped_word_is_dropped_wherever_it_stands() -> None:
    rnn = NoisyRNN(4, 4)
    model = LanguageModel(WORDS, rnn, dropout_words=0.5)
    x = torch.randint(WORDS, (40, 5))
    embedded = model._embedded(x, True)
    dropped = (embedded == 0).all(-1)
    for column in range(5):
        for word in range(WORDS):
            here = dropped[x[:, column] == word, column]
            assert len(here) == 0 or here.all() or not here.any()
    assert dropped.any() and not dropped.all()
    # and another sequence may keep it
    assert any(0 < dropped[x == word].double().mean() < 1 for word in range(WORDS))
    kept = ~dropped
    torch.testing.assert_close(embedded[kept], 2 * model.embedding.weight[x[kept]])
    assert torch.equal(model._embedded(x, False), model.embedding.weight[x])


def test_rates() -> None:
    """Share of zeros in 20,000 masks each; |z| < 5, so a false alarm in 2e-6 of runs."""
    model = model_of("rnn_relu", 1, rate=0.3)
    count = 5000
    ones = torch.ones(1, count, 4, dtype=torch.float64)
    epsilon = model.rnn.draw_noise(1, count)[0]
    spread = model.rnn.spread[0]
    assert epsilon is not None and spread is not None
    from noisin_pyro.layers.layer import dropout

    for mask in (dropout(ones, 0.3, True, tied=True), 1 + spread * epsilon):
        share = (mask.abs() < 0.5).double().mean().item()
        assert abs(share - 0.3) < 5 * math.sqrt(0.3 * 0.7 / mask.numel())
        assert abs(mask.mean().item() - 1) < 5 * math.sqrt(0.3 / 0.7 / mask.numel())


@pytest.mark.parametrize("cell", [*CELLS, "mingru", "rglru"])
def test_the_mean_path_is_the_deterministic_model(cell: str, masks: list[Tensor]) -> None:
    model = model_of(cell, 2).eval()
    plain = build_model(
        TrainConfig(cell=cell, layers=2, noise="none", embedding_size=5, hidden_size=4),
        WORDS,
    ).double()
    plain.load_state_dict(model.state_dict())
    plain.eval()
    x = torch.randint(WORDS, (STEPS, BATCH))
    torch.testing.assert_close(model.predict(x)[0].logits, plain.predict(x)[0].logits)
    assert not masks
    # Also while training, where the mean path is asked for.
    torch.testing.assert_close(
        model.train().predict(x, sample=False)[0].logits, plain.predict(x)[0].logits
    )
    assert not masks


def test_averaging_at_test_time_draws_masks() -> None:
    """Gal and Ghahramani's Monte Carlo dropout: tied masks are part of the noise."""
    model = model_of("lstm", 2)
    tokens = torch.randint(WORDS, (300,))
    mean_path = evaluate(model, tokens).nats
    torch.manual_seed(0)
    one, other = (evaluate(model, tokens, samples=4).nats for _ in range(2))
    assert mean_path != one != other
    assert evaluate(model, tokens).nats == mean_path


def test_untied_dropout_stays_torchs() -> None:
    """Off at test time, whether noise is drawn or not."""
    rnn = NoisyLSTM(5, 4, 2, dropout=0.5, noise=Multiplicative(dist.Normal(0.0, 1.0)), spread=1e-6)
    model = LanguageModel(WORDS, rnn, dropout_input=0.5, dropout_output=0.5).eval()
    x = torch.randint(WORDS, (STEPS, BATCH))
    clean, noisy = (model.predict(x, sample=sample)[0].logits for sample in (False, True))
    torch.testing.assert_close(clean, noisy, rtol=0, atol=1e-4)
