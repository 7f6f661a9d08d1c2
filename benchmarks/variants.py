"""The training steps of a language model that ``step_cost.py`` compares.

    torch           torch.nn.RNN, LSTM or GRU and F.cross_entropy, no noise
    clean           ours with noise=None
    additive        ours, NoisinELBO
    multiplicative  ours, NoisinELBO
    trace-additive, trace-multiplicative
                    the same two under Pyro's Trace_ELBO and PriorGuide
    textbook        the Pyro program a newcomer writes: a site per layer and step, a guide that
                    runs the RNN again, Trace_ELBO
    by-hand         the loop a good engineer writes in plain PyTorch

All start from the same weights and use the same fused Adam. ``textbook`` uses Pyro's, which is the
same rule with an optimizer per parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    LanguageModel,
    Multiplicative,
    NoisinELBO,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    PriorGuide,
    detach_state,
)

VARIANTS = (
    "torch",
    "clean",
    "additive",
    "multiplicative",
    "trace-additive",
    "trace-multiplicative",
    "textbook",
    "by-hand",
)

PLAIN = {"tanh": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
NOISY = {"tanh": NoisyRNN, "lstm": NoisyLSTM, "gru": NoisyGRU}
CELLS = {"tanh": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}

Step = Callable[[], Any]
"""One step of training; returns its loss in nats per token, a number or a tensor."""


@dataclass(frozen=True)
class Setting:
    """What is trained: sizes as in the paper's experiments unless told otherwise."""

    cell: str = "lstm"
    hidden: int = 200
    layers: int = 2
    vocabulary: int = 10_000
    unroll: int = 35
    batch: int = 20
    spread: float = 0.3
    particles: int = 1
    precision: str = "32"

    @property
    def name(self) -> str:
        return f"{self.cell} {self.hidden}x{self.layers}, vocabulary {self.vocabulary:,}"

    def with_(self, **changes: Any) -> Setting:
        return replace(self, **changes)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """What a forward pass runs under."""
        if self.precision == "32":
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16)


class PlainModel(nn.Module):
    """A language model as in PyTorch's own example."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        size = setting.hidden
        self.embedding = nn.Embedding(setting.vocabulary, size)
        self.rnn = PLAIN[setting.cell](size, size, setting.layers)
        self.emission = nn.Linear(size, setting.vocabulary)

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        output, state = self.rnn(self.embedding(x), state)
        return self.emission(output), state


def weights(setting: Setting) -> dict[str, Tensor]:
    """What every variant starts from."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LanguageModel(setting.vocabulary, NOISY[setting.cell](
            setting.hidden, setting.hidden, setting.layers
        )).state_dict()  # fmt: skip


def batch(setting: Setting, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (setting.unroll + 1, setting.batch)
    tokens = torch.randint(setting.vocabulary, shape, generator=generator).to(device)
    return tokens[:-1], tokens[1:]


def build(variant: str, setting: Setting, device: str = "cpu") -> Step:
    """The step of a variant."""
    start = {name: value.to(device) for name, value in weights(setting).items()}
    x, y = batch(setting, device)
    if variant == "torch":
        return _plain(setting, start, x, y)
    if variant == "textbook":
        return _textbook(setting, start, x, y)
    if variant == "by-hand":
        return _by_hand(setting, start, x, y)
    return _ours(variant, setting, start, x, y)


def adam(module: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)


def _plain(setting: Setting, start: dict[str, Tensor], x: Tensor, y: Tensor) -> Step:
    model = PlainModel(setting).to(x.device)
    model.load_state_dict(start)
    optimizer, state = adam(model), None

    def step() -> float:
        nonlocal state
        optimizer.zero_grad()
        with setting.autocast(x.device):
            logits, state = model(x, state)
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        state = detach_state(state)
        return loss.detach()

    return step


def noisy_model(variant: str, setting: Setting, device: Any) -> LanguageModel:
    base = dist.Normal(0.0, 1.0)
    noise: Any = None
    if variant != "clean":
        noise = Multiplicative(base) if "multiplicative" in variant else Additive(base)
    size = setting.hidden
    rnn = NOISY[setting.cell](size, size, setting.layers, noise=noise, spread=setting.spread)
    return LanguageModel(setting.vocabulary, rnn).to(device)


def _ours(variant: str, setting: Setting, start: dict[str, Tensor], x: Tensor, y: Tensor) -> Step:
    with pyro.settings.context(module_local_params=True):
        model = noisy_model(variant, setting, x.device)
        model.load_state_dict(start)
        guide = PriorGuide(model)
        several = {"num_particles": setting.particles, "vectorize_particles": setting.particles > 1}
        if variant.startswith("trace"):
            objective = Trace_ELBO(**several, max_plate_nesting=2)(model, guide)
        else:
            objective = NoisinELBO(**several)(model, guide)
    optimizer, state = adam(objective), None

    def step() -> float:
        nonlocal state
        optimizer.zero_grad()
        with pyro.validation_enabled(False), setting.autocast(x.device):
            if variant.startswith("trace"):  # hands back no state
                loss = objective(x, y) / y.numel()
            else:
                loss, state = objective.with_state(x, y, state)
                loss = loss / y.numel()
        loss.backward()
        optimizer.step()
        state = detach_state(state)
        return loss.detach()

    return step


class Textbook(nn.Module):
    """The paper's generative process, site by site, as one writes it with the book open."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        size = setting.hidden
        self.setting = setting
        self.embedding = nn.Embedding(setting.vocabulary, size)
        self.cells = nn.ModuleList(CELLS[setting.cell](size, size) for _ in range(setting.layers))
        self.emission = nn.Linear(size, setting.vocabulary)

    def states(self, x: Tensor) -> Any:
        """Draws the hidden states of one step after another."""
        zeros = x.new_zeros(x.shape[1], self.setting.hidden, dtype=torch.float32)
        z, c = [zeros] * self.setting.layers, [zeros] * self.setting.layers
        for t, word in enumerate(x):
            below = self.embedding(word)
            for layer, cell in enumerate(self.cells):
                if self.setting.cell == "lstm":
                    h, c[layer] = cell(below, (z[layer], c[layer]))
                else:
                    h = cell(below, z[layer])
                distribution = dist.Normal(h, self.setting.spread).to_event(1)
                z[layer] = below = pyro.sample(f"z_{layer}_{t}", distribution)
            yield t, below

    def model(self, x: Tensor, y: Tensor) -> None:
        pyro.module("textbook", self)
        with pyro.plate("batch", x.shape[1]):
            for t, top in self.states(x):
                pyro.sample(f"y_{t}", dist.Categorical(logits=self.emission(top)), obs=y[t])

    def guide(self, x: Tensor, y: Tensor) -> None:
        pyro.module("textbook", self)
        with pyro.plate("batch", x.shape[1]):
            for _ in self.states(x):
                pass


def as_cells(start: dict[str, Tensor]) -> dict[str, Tensor]:
    """``rnn.weight_ih_l0`` -> ``cells.0.weight_ih``."""
    renamed = {}
    for name, value in start.items():
        if name.startswith("rnn."):
            part, _, layer = name.removeprefix("rnn.").rpartition("_l")
            name = f"cells.{layer}.{part}"
        renamed[name] = value
    return renamed


def _textbook(setting: Setting, start: dict[str, Tensor], x: Tensor, y: Tensor) -> Step:
    program = Textbook(setting).to(x.device)
    program.load_state_dict(as_cells(start))
    store = pyro.get_param_store()
    own = store.get_state()
    optimizer = pyro.optim.Adam({"lr": 1e-3, "fused": True})
    svi = SVI(program.model, program.guide, optimizer, Trace_ELBO())

    def step() -> float:
        nonlocal own
        with store.scope(own) as own, setting.autocast(x.device):
            return svi.step(x, y) / y.numel()  # type: ignore[no-any-return]

    return step


def _by_hand(setting: Setting, start: dict[str, Tensor], x: Tensor, y: Tensor) -> Step:
    """Multiplicative for LSTMs and GRUs would cost the same: one product more, one sum less."""
    model = Textbook(setting).to(x.device)
    model.load_state_dict(as_cells(start))
    optimizer = adam(model)
    zeros = x.new_zeros(x.shape[1], setting.hidden, dtype=torch.float32)
    z, c = [zeros] * setting.layers, [zeros] * setting.layers

    def step() -> float:
        nonlocal z, c
        optimizer.zero_grad()
        with setting.autocast(x.device):
            embedded, tops = model.embedding(x), []
            for below in embedded:
                for layer, cell in enumerate(model.cells):
                    if setting.cell == "lstm":
                        h, c[layer] = cell(below, (z[layer], c[layer]))
                    else:
                        h = cell(below, z[layer])
                    z[layer] = below = h + setting.spread * torch.randn_like(h)
                tops.append(below)
            logits = model.emission(torch.stack(tops))
            loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        optimizer.step()
        z, c = [part.detach() for part in z], [part.detach() for part in c]
        return loss.detach()

    return step


def floor(setting: Setting, device: str = "cpu") -> Callable[[], None]:
    """The matrix products of a step alone: three of the head, and those of every layer."""
    gates = {"tanh": 1, "lstm": 4, "gru": 3}[setting.cell] * setting.hidden
    rows, size, words = setting.unroll * setting.batch, setting.hidden, setting.vocabulary
    dtype = torch.float32 if setting.precision == "32" else torch.bfloat16
    shapes = (rows, size), (words, size), (rows, words), (gates, size), (rows, gates)
    z, v, d_logits, w, d_gates = (torch.randn(s, dtype=dtype, device=device) for s in shapes)
    one, d_one = z[: setting.batch], d_gates[: setting.batch]

    def products() -> None:
        z @ v.t(), d_logits @ v, d_logits.t() @ z
        for _ in range(setting.layers):
            z @ w.t(), d_gates @ w, d_gates.t() @ z  # the input's
            for _ in range(setting.unroll):
                one @ w.t(), d_one @ w  # the recurrence's
            d_gates.t() @ z

    return products
