"""What several test files share: small models by name, batches, comparisons, and the exact answers
of a linear Gaussian model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from noisin_pyro import (
    Additive,
    LanguageModel,
    Learned,
    MeanParameterized,
    Multiplicative,
    NoisyGRU,
    NoisyLSTM,
    NoisyRNN,
    NormalEmission,
    SequenceModel,
)
from noisin_pyro.nn.registry import build_rnn

CELLS = ("tanh", "relu", "sigmoid", "identity", "lstm", "gru")
LINEAR = ("mingru", "minlstm", "rglru")

site_kinds = pytest.mark.parametrize("sites", ["sequence", "timestep"])


# -- models and data ---------------------------------------------------------------------------


def make_rnn(cell: str, inputs: int, hidden: int, layers: int = 1, **options: Any) -> Any:
    """A noisy RNN by the name of its cell, one of ``CELLS`` or of ``LINEAR``."""
    if cell in LINEAR:
        return build_rnn(cell, inputs, hidden, layers, **options)
    if cell == "lstm":
        return NoisyLSTM(inputs, hidden, layers, **options)
    if cell == "gru":
        return NoisyGRU(inputs, hidden, layers, **options)
    return NoisyRNN(inputs, hidden, layers, nonlinearity=cell, **options)  # type: ignore[arg-type]


def random_state(cell: str, *shape: int, dtype: torch.dtype = torch.float32) -> Any:
    """A carried state far from zero, which requires a gradient: h, or (h, c) for an LSTM."""
    state = tuple(torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(2))
    return like_state_of(cell, state)


def like_state_of(cell: str, parts: Iterable[Tensor]) -> Any:
    """The parts of a state as torch nests them: a pair for an LSTM, else the first part alone."""
    parts = tuple(parts)
    return parts if cell == "lstm" else parts[0]


def flat(*values: Any) -> list[Tensor]:
    """All tensors of nested tuples and lists, without the ``None``."""
    return [
        tensor
        for value in values
        if value is not None
        for tensor in (flat(*value) if isinstance(value, (tuple, list)) else [value])
    ]


def random_tokens(words: int, steps: int, sequences: int) -> tuple[Tensor, Tensor]:
    """x and y = the next token, with shape (steps, sequences)."""
    text = torch.randint(words, (steps + 1, sequences))
    return text[:-1], text[1:]


def gamma_noise() -> MeanParameterized:
    """z ~ Gamma with mean h and coefficient of variation γ, for states above zero."""
    return MeanParameterized(lambda m, s: dist.Gamma(1 / s**2, 1 / (m * s**2)))


# -- comparisons -------------------------------------------------------------------------------


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_all_close(
    ours: Iterable[Tensor], theirs: Iterable[Tensor], tolerance: float = 1e-11
) -> None:
    """Each pair within ``tolerance``, relative and absolute."""
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=tolerance, atol=tolerance)


def value_and_gradients(leaves: Any, loss: Callable[[], Tensor]) -> list[Tensor]:
    """The loss and its gradients under one seed, with an empty param store.

    Args:
        leaves: the tensors to differentiate by, or a module with these parameters.
        loss: draws its noise from torch's generator.
    """
    leaves = list(leaves.parameters() if isinstance(leaves, nn.Module) else leaves)
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    value = loss()
    return [value.detach(), *torch.autograd.grad(value, leaves, materialize_grads=True)]


def probed(tensors: list[Tensor]) -> Tensor:
    """A scalar function that reads every element of its arguments, each with its own weight."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]
    return sum((t * w).sum() for t, w in zip(tensors, weights))  # type: ignore[return-value]


def t_statistics(draws: Tensor, expected: Tensor | float) -> Tensor:
    """(mean − expected) / standard error, over the first dimension of ``draws``."""
    return (draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))


def set_parameters(model: nn.Module, values: dict[str, Any]) -> None:
    """Writes numbers or nested lists of them into the parameters of these names."""
    with torch.no_grad():
        for name, value in values.items():
            parameter = model.get_parameter(name)
            parameter.copy_(torch.as_tensor(value, dtype=parameter.dtype))


# -- the exact answers of a linear Gaussian model ----------------------------------------------


class JointGaussian(NamedTuple):
    """The joint distribution of the states and the observations of one sequence."""

    mean_z: Tensor  # (T·H,)
    cov_z: Tensor  # (T·H, T·H)
    mean_y: Tensor  # (T·D,)
    cov_y: Tensor  # (T·D, T·D)
    cov_zy: Tensor  # (T·H, T·D)

    def log_evidence(self, y: Tensor) -> Tensor:
        """log p(y), for y with shape (T, D) or (T, 1, D)."""
        distribution = torch.distributions.MultivariateNormal(self.mean_y, self.cov_y)
        return distribution.log_prob(y.flatten())

    def posterior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, with shape (T·H,), and covariance of the states given y."""
        gain = torch.linalg.solve(self.cov_y, self.cov_zy.T).T
        return (
            self.mean_z + gain @ (y.flatten() - self.mean_y),
            self.cov_z - gain @ self.cov_zy.T,
        )


def joint_gaussian(model: Any, x: Tensor, start: Tensor | None = None) -> JointGaussian:
    """Of z_t = W z_{t-1} + U x_t + γ ε_t and y_t = V z_t + b + σ η_t, differentiable.

    Written out for all steps at once: z = L (U x + W z_0 + γ ε) with L⁻¹ = 1 − shift ⊗ W.

    Args:
        model: a ``SequenceModel`` of a one-layer identity RNN with additive normal noise and no
            bias, and a ``NormalEmission``.
        x: the inputs of one sequence, with shape (T, inputs) or (T, 1, inputs).
        start: z_0, with shape (H,); zero by default.
    """
    steps, rnn, emission = len(x), model.rnn, model.emission
    w, u, (spread,) = rnn.weight_hh_l0, rnn.weight_ih_l0, rnn.spread
    one = torch.eye(steps, dtype=w.dtype)
    shift = torch.diag(torch.ones(steps - 1, dtype=w.dtype), -1)
    response = torch.linalg.inv(torch.eye(len(w) * steps, dtype=w.dtype) - torch.kron(shift, w))
    drive = x.reshape(steps, -1) @ u.T
    if start is not None:
        drive = torch.cat([drive[:1] + w @ start, drive[1:]])
    read = torch.kron(one, emission.weight)
    mean_z = response @ drive.flatten()
    cov_z = spread.square() * response @ response.T
    cov_zy = cov_z @ read.T
    noise = torch.diag((2 * emission.log_scale).exp().repeat(steps))
    mean_y = read @ mean_z + emission.bias.repeat(steps)
    return JointGaussian(mean_z, cov_z, mean_y, read @ cov_zy + noise, cov_zy)


# -- the models that the tests of inference and of sequence models use -------------------------

K, D, H, T, B = 7, 3, 4, 5, 3  # words, embedding, units, steps, sequences
LENGTHS = torch.tensor([5, 2, 4])
NORMAL = dist.Normal(0.0, 1.0)

# the cell, and its noise
NOISES: dict[str, tuple[str, Any]] = {
    "additive": ("lstm", Additive(dist.Gumbel(0.0, 1.0))),
    "multiplicative": ("gru", Multiplicative(dist.Gamma(2.0, 1.0))),
    "lattice": ("lstm", Multiplicative(dist.Poisson(1.0))),
    # of the state's mean, reparameterised, with a KL that torch knows
    "gamma": ("sigmoid", gamma_noise()),
    "lognormal": (
        "sigmoid",
        MeanParameterized(lambda m, s: dist.LogNormal(m.log() - s**2 / 2, s)),
    ),
    # without a pathwise gradient
    "bernoulli": ("sigmoid", MeanParameterized(lambda m, s: dist.Bernoulli(m))),
}


def build(noise: str = "additive", *, layers: int = 2, spread: Any = None, **options: Any) -> Any:
    """A language model in double precision."""
    cell, distribution = NOISES[noise]
    rnn_options = {k: options.pop(k) for k in ("sites", "noise_to", "tied") if k in options}
    rnn = make_rnn(
        cell, D, H, layers, noise=distribution, spread=spread or Learned(0.5), **rnn_options
    )
    return LanguageModel(K, rnn, **options).double()


def batch(words: int = K) -> tuple[Tensor, Tensor]:
    return random_tokens(words, T, B)


def state_of(model: Any) -> Any:
    parts = tuple(torch.rand(model.rnn.num_layers, B, H, dtype=torch.float64) for _ in range(2))
    return parts if isinstance(model.rnn, NoisyLSTM) else parts[0]


def linear_gaussian(sites: Any = "sequence", *, spread: float = 0.6, scale: float = 0.5) -> Any:
    """z_t = W z_{t-1} + U x_t + γ ε_t and y_t = V z_t + b + σ η_t, with two states, unalike."""
    rnn = NoisyRNN(
        1,
        2,
        nonlinearity="identity",
        bias=False,
        noise=Additive(NORMAL),
        spread=spread,
        sites=sites,
    )
    model = SequenceModel(nn.Identity(), rnn, NormalEmission(2, 1, scale=scale)).double()
    values = {
        "rnn.weight_hh_l0": [[0.8, 0.3], [-0.3, 0.6]],
        "rnn.weight_ih_l0": [[0.7], [-0.4]],
        "emission.weight": [[1.3, 0.5]],
        "emission.bias": [0.2],
        "emission.log_scale": [math.log(scale)],
    }
    set_parameters(model, values)
    return model


def random_walk(sites: Any = "sequence") -> Any:
    """z_t = z_{t-1} + ε_t and y_t = z_t + η_t / 2."""
    rnn = NoisyRNN(
        1,
        1,
        nonlinearity="identity",
        bias=False,
        noise=Additive(NORMAL),
        spread=1.0,
        sites=sites,
    )
    model = SequenceModel(nn.Identity(), rnn, NormalEmission(1, 1, scale=0.5)).double()
    values = {
        "rnn.weight_hh_l0": 1.0,
        "rnn.weight_ih_l0": 0.0,
        "emission.weight": 1.0,
        "emission.bias": 0.0,
    }
    set_parameters(model, values)
    return model


@torch.no_grad()
def exact(model: Any, x: Tensor) -> JointGaussian:
    return joint_gaussian(model, x)


def series(model: Any, steps: int) -> tuple[Tensor, Tensor, JointGaussian]:
    """Inputs, observations a standard deviation above what was expected, the exact answers.

    They are the same whatever the seed.
    """
    x = torch.linspace(0.0, 0.7 * steps, steps, dtype=torch.float64).sin().view(-1, 1, 1)
    joint = exact(model, x)
    return x, (joint.mean_y + joint.cov_y.diagonal().sqrt()).view(-1, 1, 1), joint
