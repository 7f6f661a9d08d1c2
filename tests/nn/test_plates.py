"""A batch plate that the user has entered, as Pyro programs do."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Predictive

from noisin_pyro import Additive, LanguageModel, MeanParameterized, Multiplicative, NoisyGRU

T, B, D, H = 5, 3, 4, 6
NOISES: dict[str, Any] = {
    "sequence": Additive(dist.Normal(0.0, 1.0)),
    "timestep": Multiplicative(dist.Gumbel(0.0, 1.0)),
    "mean": MeanParameterized(dist.Normal),
}


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("of", [B, 12])
def test_an_entered_plate_takes_the_place_of_ours(kind: str, of: int) -> None:
    """The same log joint as our own plates, scaled where the user's plate subsamples."""
    sites: Any = "timestep" if kind == "timestep" else "sequence"
    rnn = NoisyGRU(D, H, noise=NOISES[kind], spread=0.4, sites=sites, dtype=torch.float64)
    x = torch.randn(T, B, D, dtype=torch.float64)

    def program() -> Any:
        with pyro.plate("data", of, subsample_size=B):
            return rnn(x)

    torch.manual_seed(0)
    ours = poutine.trace(rnn).get_trace(x)
    values = {
        name: node["value"]
        for name, node in ours.nodes.items()
        if node["type"] == "sample" and ("noise_" in name or "z_0_" in name)
    }
    theirs = poutine.trace(poutine.condition(program, values)).get_trace()
    conditioned = poutine.trace(poutine.condition(rnn, values)).get_trace(x)
    scale = of / B
    torch.testing.assert_close(theirs.log_prob_sum(), scale * conditioned.log_prob_sum())
    torch.testing.assert_close(
        theirs.nodes["_RETURN"]["value"][0], conditioned.nodes["_RETURN"]["value"][0]
    )
    assert "batch" not in theirs.nodes


def test_a_whole_model_in_an_entered_plate() -> None:
    model = LanguageModel(7, NoisyGRU(D, H, noise=NOISES["sequence"], spread=0.4))
    x = torch.randint(7, (T, B))
    with pyro.plate("data", 12, subsample_size=B):
        trace = poutine.trace(model).get_trace(x, x)
    scales = [trace.nodes[name]["scale"] for name in ("rnn.noise_0", "y")]
    assert scales == [4.0, 4.0]


def test_an_entered_plate_of_time_is_refused() -> None:
    rnn = NoisyGRU(D, H, noise=NOISES["sequence"], name="gru")
    steps, data = pyro.plate("steps", T, dim=-2), pyro.plate("data", B, dim=-1)

    def program() -> None:
        with steps, data:
            rnn(torch.randn(T, B, D))

    with pytest.raises(ValueError, match=r"'steps' entered at dim=-2 .*; call the RNN before"):
        poutine.trace(program).get_trace()
    poutine.trace(rnn).get_trace(torch.randn(T, B, D), plates=(steps, data))


def test_an_entered_plate_of_another_size_is_refused() -> None:
    rnn = NoisyGRU(D, H, noise=NOISES["sequence"])
    with (
        pytest.raises(ValueError, match="'data' entered at dim=-1 has size 4, but the input has 3"),
        poutine.trace(),
        pyro.plate("data", 4),
    ):
        rnn(torch.randn(T, B, D))


@pytest.mark.parametrize("kind", NOISES)
def test_particles_keep_off_the_dimension_of_time(kind: str) -> None:
    """Each particle's y is that of its own last state, in a program that has a batch plate alone.

    Predictive puts the particles left of the plates that it sees. With a site per timestep none but
    that of the final state stands at dim −2, where particles would be taken for steps.
    """
    sites: Any = "timestep" if kind == "timestep" else "sequence"
    rnn = NoisyGRU(D, H, noise=NOISES[kind], spread=0.4, sites=sites)
    x = torch.randn(T, B, D)

    def program() -> None:
        with pyro.plate("data", B):
            last = rnn(x)[0][..., -1:, :, :]
            pyro.deterministic("y", last, event_dim=1)

    drawn = Predictive(program, num_samples=20, parallel=True)()
    assert drawn["y"].shape == (20, 1, B, H)
    torch.testing.assert_close(drawn["y"].squeeze(1), drawn["state"].view(20, B, H))
    assert len(drawn["y"].unique(dim=0)) == 20
