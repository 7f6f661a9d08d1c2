"""Pyro's marks of what a tensor was computed from, which ``TraceGraph_ELBO`` relies on."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from pyro.infer.inspect import get_dependencies
from pyro.ops.provenance import get_provenance, track_provenance
from torch import Tensor

from noisin_pyro import Additive, LanguageModel, Multiplicative
from tests.helpers import CELLS, LINEAR, like_state_of, make_rnn, random_tokens

NORMAL = dist.Normal(0.0, 1.0)
NOISES: dict[str, Any] = {
    "none": None,
    "additive": Additive(NORMAL),
    "multiplicative": Multiplicative(NORMAL),
}
T, B, D, H, K = 4, 3, 2, 3, 5

noises = pytest.mark.parametrize("noise", NOISES)


def marked(tensor: Tensor) -> Tensor:
    found: Tensor = track_provenance(tensor, frozenset({"site"}))
    return found


@noises
@pytest.mark.parametrize("noise_to", ["both", "output", "recurrence", "weights"])
@pytest.mark.parametrize("cell", [*CELLS, *LINEAR])
def test_the_output_comes_from_every_argument(cell: str, noise_to: Any, noise: str) -> None:
    if cell in LINEAR and noise_to == "weights":
        return
    rnn = make_rnn(cell, D, H, noise=NOISES[noise], noise_to=noise_to)
    x, count = torch.randn(T, B, D), len(rnn.cell.state_sizes(H))
    for which in ["x", "h", "c"][: 1 + count]:
        state = [marked(torch.zeros(1, B, H)) if which == w else torch.zeros(1, B, H) for w in "hc"]
        start = like_state_of(cell, state) if cell in CELLS else state[0]
        with poutine.trace():
            output, _ = rnn(marked(x) if which == "x" else x, start)
        assert get_provenance(output) == {"site"}, which
    if NOISES[noise] is not None:
        epsilon = [marked(one) for one in rnn.draw_noise(T, B)]
        with poutine.trace():
            assert get_provenance(rnn(x, epsilon=epsilon)[0]) == {"site"}


@pytest.mark.parametrize("cell", ["lstm", "gru", "tanh"])
def test_what_is_observed_depends_on_the_noise(cell: str) -> None:
    for noise in ("additive", "multiplicative"):
        model = LanguageModel(K, make_rnn(cell, D, H, noise=NOISES[noise], name=noise), name=noise)
        found: Any = get_dependencies(model, random_tokens(K, T, B))["prior_dependencies"]
        sites = {f"{noise}.y", f"{noise}.rnn.noise_0"}
        assert set(found[f"{noise}.y"]) == sites


@noises
@pytest.mark.parametrize("cell", ["identity", "gru", "lstm"])
def test_a_style_drawn_by_its_score_has_the_gradient_of_trace_elbo(cell: str, noise: str) -> None:
    """One latent class that all else depends on: both objectives have one estimator for it."""
    rnn = make_rnn(cell, D, H, noise=NOISES[noise], sites=None)
    model, (x, y) = LanguageModel(K, rnn).double(), random_tokens(K, T, B)
    table = torch.randn(3, 2, 1, B, H, dtype=torch.float64)

    def program() -> None:
        style = pyro.sample("style", dist.Categorical(torch.ones(3, dtype=torch.float64)))
        h, c = table[style]
        model(x, y, like_state_of(cell, (h, c)))

    def guide() -> None:
        logits = pyro.param("logits", torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64))
        pyro.sample("style", dist.Categorical(logits=logits))

    gradients = []
    for elbo in (Trace_ELBO, TraceGraph_ELBO):
        pyro.clear_param_store()
        pyro.set_rng_seed(2)
        elbo(max_plate_nesting=2).loss_and_grads(program, guide)
        gradients.append(pyro.param("logits").unconstrained().grad)  # type: ignore[attr-defined]
    torch.testing.assert_close(gradients[1], gradients[0])
