"""The cost of a training step with this library and with other regularisers.

    python benchmarks/alternatives.py
    python benchmarks/alternatives.py --json results/alternatives/cpu.json

All variants are language models of one size, in turn in one process, as in ``step_cost.py``.
"By hand" is what one writes for want of a library: a loop over ``torch.nn.LSTMCell``, or a mask on
the weights of ``torch.nn.LSTM``. ``bayesian-torch`` is measured where it is installed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from step_cost import Clock, interleaved, show, summary
from torch import Tensor, nn
from variants import PlainModel, Setting, Step, Textbook, adam, as_cells, batch, build, weights

from noisin_pyro import Multiplicative, NoisyRecurrent, detach_state
from noisin_pyro.training.record import environment

RATE = 0.3
SETTING = Setting("lstm", 200, 2)
SMALL = Setting("lstm", 8, 2, vocabulary=50, unroll=5, batch=4)


class FusedModel(PlainModel):
    """torch's own LSTM with dropout between its layers or on its recurrent weights."""

    def __init__(
        self, setting: Setting, between: float = 0.0, dropped_weights: float = 0.0
    ) -> None:
        super().__init__(setting)
        self.rnn.dropout = between
        self.dropped_weights = dropped_weights

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        masked = {
            name: F.dropout(weight, self.dropped_weights)
            for name, weight in self.rnn.named_parameters()
            if name.startswith("weight_hh")
        }
        inputs = (self.embedding(x), state)
        output, state = torch.func.functional_call(self.rnn, masked, inputs)
        return self.emission(output), state


class LoopModel(Textbook):
    """A loop over LSTM cells, with variational dropout or zoneout as ``rule`` says."""

    def __init__(self, setting: Setting, rule: str) -> None:
        super().__init__(setting)
        self.rule = rule

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        zeros = x.new_zeros(x.shape[1], self.setting.hidden, dtype=torch.float32)
        layers = range(len(self.cells))
        h, c = map(list, state or ([zeros for _ in layers], [zeros for _ in layers]))
        ones = torch.ones_like(zeros)
        read, heard = ([F.dropout(ones, RATE) for _ in layers] for _ in range(2))
        tops = []
        for below in self.embedding(x):
            for layer, cell in enumerate(self.cells):
                if self.rule == "variational dropout":
                    state = (h[layer] * heard[layer], c[layer])
                    h[layer], c[layer] = cell(below * read[layer], state)
                else:
                    new, cells = cell(below, (h[layer], c[layer]))
                    h[layer] = torch.where(torch.rand_like(new) < RATE, h[layer], new)
                    c[layer] = torch.where(torch.rand_like(new) < RATE, c[layer], cells)
                below = h[layer]
            tops.append(below)
        return self.emission(torch.stack(tops)), (h, c)


class OwnCellModel(PlainModel):
    """``NoisyRecurrent`` over torch's own cells."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        size = setting.hidden
        cells = [nn.LSTMCell(size, size) for _ in range(setting.layers)]
        noise = Multiplicative(dist.Normal(0.0, 1.0))
        self.rnn = NoisyRecurrent(cells, noise=noise, spread=setting.spread)


class BayesianModel(PlainModel):
    """bayesian-torch's LSTM: a Gaussian posterior on each weight, one draw a call."""

    def __init__(self, setting: Setting) -> None:
        from bayesian_torch.layers import LSTMReparameterization

        super().__init__(setting)
        size = setting.hidden
        del self.rnn
        self.layers = nn.ModuleList(
            LSTMReparameterization(size, size) for _ in range(setting.layers)
        )

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        below, kl, carried = self.embedding(x).transpose(0, 1), 0.0, []
        for layer, last in zip(self.layers, state or [None] * len(self.layers)):
            below, (h, c), divergence = layer(below, last)
            carried.append((h[:, -1], c[:, -1]))
            kl = kl + divergence
        self.kl = kl
        return self.emission(below.transpose(0, 1)), carried


def step_of(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Truncated backpropagation, as in ``variants``."""
    optimizer, state = adam(model), None

    def step() -> Tensor:
        nonlocal state
        optimizer.zero_grad()
        logits, state = model(x, state)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        (loss + getattr(model, "kl", 0.0) / 1e6).backward()
        optimizer.step()
        state = detach_state(state)
        return loss.detach()

    return step


def alternatives(setting: Setting, device: str = "cpu") -> dict[str, Step]:
    """The training step of each regulariser, by name."""
    start = weights(setting)
    x, y = batch(setting, device)
    cells = as_cells(start)
    by_name: dict[str, tuple[nn.Module, dict[str, Tensor] | None]] = {
        "dropout between layers": (FusedModel(setting, between=RATE), start),
        "weight drop by hand": (FusedModel(setting, dropped_weights=RATE), start),
        "variational dropout by hand": (LoopModel(setting, "variational dropout"), cells),
        "zoneout by hand": (LoopModel(setting, "zoneout"), cells),
        "noisy recurrent": (OwnCellModel(setting), None),
    }
    if find_spec("bayesian_torch"):
        by_name["bayesian-torch"] = (BayesianModel(setting), None)
    steps: dict[str, Step] = {
        name: build(name, setting, device)
        for name in ("torch", "additive", "multiplicative", "by-hand", "textbook")
    }
    for name, (model, state) in by_name.items():
        if state is not None:
            model.load_state_dict(state)
        steps[name] = step_of(model.to(device), x, y)
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the record there")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, help="of torch; its own choice if omitted")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    setting = SMALL if args.quick else SETTING
    calls: dict[str, Callable[[], Any]] = dict(alternatives(setting, args.device))
    times = interleaved(calls, args.rounds, Clock(args.device))
    variants = {name: summary(values, times["torch"]) for name, values in times.items()}
    show(setting.name, variants)
    if args.json:
        record = {"schema": 1, **environment(), "device": args.device, "rounds": args.rounds}
        record |= {"setting": setting.name, "rate": RATE, "variants": variants}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
