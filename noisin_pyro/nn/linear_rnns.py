"""NoisyMinGRU, NoisyMinLSTM and NoisyRGLRU: noisy linear recurrences, parallel over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from noisin_pyro.cells.linear import LinearCell, LinearWeights
from noisin_pyro.cells.mingru import MINGRU
from noisin_pyro.cells.minlstm import MINLSTM
from noisin_pyro.cells.rglru import RGLRU
from noisin_pyro.layers.layer import NoiseTo
from noisin_pyro.naming import claim_name
from noisin_pyro.nn import arguments
from noisin_pyro.nn.noisy_module import Sites
from noisin_pyro.nn.recurrence import NoisyRecurrence
from noisin_pyro.noise.base import Noise
from noisin_pyro.spread.conversion import SpreadLike

__all__ = ["NoisyMinGRU", "NoisyMinLSTM", "NoisyRGLRU"]


class _LinearRNN(NoisyRecurrence, PyroModule):
    """Base of the three RNNs.

    Layer l has the parameters ``weight_ih_l{l}`` with shape (G·H, I or H), ``bias_ih_l{l}`` with
    shape (G·H,) and, in an RG-LRU, ``decay_l{l}`` with shape (H,).
    """

    proj_size = 0
    _kind: LinearCell

    @arguments.spread_with_noise
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        noise: Noise | Sequence[Noise | None] | None = None,
        spread: SpreadLike | Sequence[SpreadLike] = 0.5,
        sites: Sites = "sequence",
        tied: bool = False,
        noise_to: NoiseTo = "both",
        zoneout: float | Sequence[float] = 0.0,
        name: str = "",
    ) -> None:
        PyroModule.__init__(self, name)
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        arguments.check_sizes(dropout, **sizes)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional = bidirectional

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        for layer, suffix in self._tracks:
            gates = self._kind.gates * hidden_size
            setattr(self, f"weight_ih_l{layer}{suffix}", parameter(gates, self._width(layer)))
            if bias:
                setattr(self, f"bias_ih_l{layer}{suffix}", parameter(gates))
            if self._kind.decays:
                setattr(self, f"decay_l{layer}{suffix}", parameter(hidden_size))
        self.reset_parameters()
        self._add_noise(self._kind, noise, spread, sites, tied, noise_to, zoneout, name)

    @property
    def like(self) -> Tensor:
        return self._like("weight_ih_l0")

    def reset_parameters(self) -> None:
        """Draws the weights with the distribution of ``torch.nn.Linear``, and resets a learned γ.

        A decay Λ is drawn such that σ(Λ)⁸ is uniform between 0.9 and 0.999, as in De et al. (2024).
        Weights with a prior are left as they are.
        """
        for layer, suffix in self._tracks:
            bound = 1.0 / math.sqrt(max(1, self._width(layer)))
            for name in (f"weight_ih_l{layer}{suffix}", f"bias_ih_l{layer}{suffix}"):
                if (weight := self._parameters.get(name)) is not None:
                    nn.init.uniform_(weight, -bound, bound)
            if (decay := self._parameters.get(f"decay_l{layer}{suffix}")) is not None:
                # In half precision a number so near 1 would round to 1, whose logit is infinite.
                exact = torch.promote_types(decay.dtype, torch.float32)
                drawn = torch.empty_like(decay, dtype=exact).uniform_(0.9, 0.999)
                with torch.no_grad():
                    decay.copy_(drawn.pow_(1 / 8).logit_())
        self._reset_spreads()

    def flatten_parameters(self) -> None:
        """Does nothing; programs for torch's RNNs call it, for cuDNN."""

    def _width(self, layer: int) -> int:
        """The number of a layer's inputs."""
        return self.input_size if layer == 0 else (1 + self.bidirectional) * self.hidden_size

    def _claim_name(self) -> None:
        claim_name(self, "weight_ih_l0", self._parameters.get("weight_ih_l0"))

    def _weights(self) -> list[Any]:
        tracks = []
        for layer, suffix in self._tracks:
            w_ih = getattr(self, f"weight_ih_l{layer}{suffix}")
            b_ih = getattr(self, f"bias_ih_l{layer}{suffix}") if self.bias else None
            decay = getattr(self, f"decay_l{layer}{suffix}") if self._kind.decays else None
            arguments.check_weights((w_ih, 2), (b_ih, 1), (decay, 1))
            tracks.append(LinearWeights(w_ih, b_ih, decay))
        return tracks

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}"
        plain = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0}
        for name, default in {**plain, "bidirectional": False}.items():
            value = getattr(self, name)
            text += "" if value == default else f", {name}={value}"
        return text + self._noise_repr()


class NoisyMinGRU(_LinearRNN):
    """The minGRU of Feng et al. (2024) with a noisy hidden state, in parallel over time.

        h_t = (1 − u_t) z_{t-1} + u_t g_t,    u = σ(W_u x_t + b_u),    g = W_g x_t + b_g

    The gates depend on the input alone. So a noisy layer is one associative scan
    (:mod:`noisin_pyro.cells.linear`), and given the layer's input E[z_t] equals the deterministic
    h_t, also with ``noise_to="both"``. Constructor, call, sites and state are those of
    :class:`NoisyGRU`. In each step multiplicative noise with spread γ multiplies the variance that
    z already has by a² (1 + γ²), where a = 1 − u_t is the factor of z_{t-1}. If a is near 1, choose
    a small γ or ``noise_to="output"``. A :class:`MeanParameterized` noise and ``sites="timestep"``
    run a Python loop over steps. See https://arxiv.org/abs/2410.01201.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout: as in ``torch.nn.GRU``.
        bidirectional, device, dtype: as in ``torch.nn.GRU``.
        noise, spread, sites, tied, noise_to, zoneout, name: as in :class:`NoisyLSTM`, but without
            ``noise_to="weights"``, since there are no recurrent weights.

    Raises:
        ValueError, TypeError: as :class:`NoisyLSTM`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Multiplicative
        >>> rnn = NoisyMinGRU(3, 5, 2, noise=Multiplicative(dist.Normal(0.0, 1.0)), spread=0.5)
        >>> output, h = rnn(torch.randn(4096, 2, 3))
        >>> output.shape, h.shape
        (torch.Size([4096, 2, 5]), torch.Size([2, 2, 5]))
    """

    _kind = MINGRU


class NoisyMinLSTM(_LinearRNN):
    """The minLSTM of Feng et al. (2024) with a noisy hidden state, in parallel over time.

        h_t = f/(f + i) z_{t-1} + i/(f + i) g_t,    f = σ(W_f x_t + b_f),    i = σ(W_i x_t + b_i),
        g = W_g x_t + b_g

    It has no cell state; its state is h alone. See https://arxiv.org/abs/2410.01201, and
    :class:`NoisyMinGRU` for the arguments and the properties of linear recurrences.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive, Learned
        >>> rnn = NoisyMinLSTM(3, 5, noise=Additive(dist.Normal(0.0, 1.0)), spread=Learned(0.3))
        >>> rnn(torch.randn(7, 2, 3))[0].shape
        torch.Size([7, 2, 5])
    """

    _kind = MINLSTM


class NoisyRGLRU(_LinearRNN):
    """The real-gated linear recurrent unit of De et al. (2024) with a noisy hidden state.

        h_t = a_t z_{t-1} + √(1 − a_t²) (i_t ⊙ g_t),    a_t = σ(Λ)^(8 r_t),
        r = σ(W_r x_t + b_r),    i = σ(W_i x_t + b_i),    g = W_g x_t + b_g

    Λ is the parameter ``decay_l{layer}``. In the paper g is the layer's input, as wide as the
    state; here it is a linear map of the input. See https://arxiv.org/abs/2402.19427, and
    :class:`NoisyMinGRU` for the arguments and the properties of linear recurrences.

    In each step multiplicative noise with spread γ multiplies the variance that z already has by
    a_t² (1 + γ²). If this exceeds 1 over many steps, as in units that forget slowly (a near 1), the
    variance explodes: use additive noise, a small γ, or ``noise_to="output"``.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive
        >>> rnn = NoisyRGLRU(3, 5, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.3)
        >>> rnn.decay_l0.sigmoid().pow(8).min().item() >= 0.899
        True
    """

    _kind = RGLRU
