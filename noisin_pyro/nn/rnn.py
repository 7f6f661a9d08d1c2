"""NoisyRNN, NoisyLSTM and NoisyGRU: drop-ins for torch's, with a noise on the hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pyro.nn import PyroModule
from torch import nn

from noisin_pyro.cells.elman import NONLINEARITIES
from noisin_pyro.cells.gru import GRU
from noisin_pyro.cells.lstm import LSTM
from noisin_pyro.layers.layer import NoiseTo
from noisin_pyro.nn.noisy_module import Sites
from noisin_pyro.nn.recurrence import NoisyRecurrence
from noisin_pyro.noise.base import Noise
from noisin_pyro.noise.spread import SpreadLike

__all__ = ["NoisyGRU", "NoisyLSTM", "NoisyRNN"]


class NoisyRNN(NoisyRecurrence, nn.RNN, PyroModule):
    """``torch.nn.RNN`` with a noisy hidden state; ``nonlinearity`` knows two more values.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, device, dtype: as in
            ``torch.nn.RNN``.
        nonlinearity: ``"tanh"``, ``"relu"``, ``"sigmoid"`` or ``"identity"``.
        noise, spread, sites, tied, noise_to, zoneout, name: as in :class:`NoisyLSTM`; see there for
            what interventions (``poutine.do``) need.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive
        >>> rnn = NoisyRNN(3, 5, nonlinearity="sigmoid", noise=Additive(dist.Normal(0.0, 1.0)))
        >>> output, h = rnn(torch.randn(7, 2, 3))
        >>> output.shape, h.shape
        (torch.Size([7, 2, 5]), torch.Size([1, 2, 5]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu", "sigmoid", "identity"] = "tanh",
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
        if nonlinearity not in NONLINEARITIES:
            known = ", ".join(NONLINEARITIES)
            raise ValueError(f"unknown nonlinearity {nonlinearity!r}; the known ones are {known}")
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            nonlinearity="relu" if nonlinearity == "relu" else "tanh",
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = nonlinearity
        self._add_noise(
            NONLINEARITIES[nonlinearity], noise, spread, sites, tied, noise_to, zoneout, name
        )


class NoisyLSTM(NoisyRecurrence, nn.LSTM, PyroModule):
    """``torch.nn.LSTM`` with a noisy hidden state: z_t ~ p(z_t | h_t, γ), E[z_t | h_t] = h_t.

    Takes the constructor arguments and the call of ``torch.nn.LSTM``, holds the same
    parameters, and is an instance of it. ``train()`` draws noise, ``eval()`` runs the mean path
    z = h. The cell state c stays clean. Inside a Pyro program every draw is a sample site,
    named after the module: ``noise_{layer}`` and a deterministic ``z_{layer}``, or
    ``z_{layer}_{t}``.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, device, dtype: as in
            ``torch.nn.LSTM``. ``proj_size`` is refused. With ``bidirectional`` each direction has a
            noise and a spread of its own.
        noise: one noise for all layers or one per layer; None is the deterministic layer.
        spread: γ, for all layers or one per layer: a number or a tensor (fixed, with shape () or
            (H,)), an ``nn.Parameter``, :class:`Learned` (a constrained ``pyro.param`` named
            ``spread_l{layer}``), or a distribution (a prior). ``rnn.spread = ...`` sets it anew.
            It is a standard deviation for additive noise and a coefficient of variation for
            multiplicative noise.
        sites: ``"sequence"`` has one sample site per layer, the noise ε of the whole sequence, and
            runs at the speed of torch's kernels; ``"timestep"`` has one per layer and step,
            the state z_t itself, as the paper writes it, and runs a Python loop. Both define
            the same joint. A :class:`MeanParameterized` noise has sites per timestep in
            either. Under ``"sequence"`` the deterministic ``z_{layer}`` is written and never read,
            so ``poutine.do`` on it changes nothing: intervene on ``noise_{layer}``, or on
            ``z_{layer}_{t}`` under ``"timestep"``.
            None has none: the noise is drawn by torch, also inside Pyro, for encoders, inference
            networks and baselines. Vectorised particles then share one draw.
        tied: draw ε, and the mask of ``dropout``, once per sequence instead of once per step. The
            masks then belong to the noise: they are drawn whenever it is, so also in an average
            over samples at test time. See ``TrainConfig.variational_dropout``.
        noise_to: where the noise goes. ``"both"``, as in the paper: the next step reads z, and
            the layer hands up z. ``"output"``: the layer hands up z, and the next step reads h,
            so that the layer's E[z_t] is its deterministic h_t, given its input.
            ``"recurrence"``: the next step reads z, and the layer hands up h.
            ``"weights"``: noise is on what the recurrent weights read, z_t ~ p(z_t | h_{t-1}, γ) in
            step t, and on nothing else; the state is h, also where a GRU carries it on.
        zoneout: the probability with which a unit of h and of c keeps its value of the step before,
            one for both or a pair, as (0.05, 0.5) (Krueger et al. 2016,
            https://arxiv.org/abs/1606.01305). It acts whenever ``dropout`` does; otherwise the
            expectation is taken. Noise comes after it. It runs a Python loop over steps.
        name: the prefix of its parameters' and sites' names in Pyro, where it is no attribute of a
            ``PyroModule``, which names it. Without one, a second RNN in a program is named
            ``noisy_lstm_1``, and the sites of an RNN's later calls end in ``__1``, ``__2``, ...

    Raises:
        ValueError: for ``proj_size``, a spread that is not positive, a number
            of noises or spreads other than the number of layers, or a noise that cannot have this
            cell's states as its means.
        TypeError: if ``noise`` or ``spread`` is of another kind.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Multiplicative
        >>> lstm = NoisyLSTM(3, 5, 2, noise=Multiplicative(dist.Normal(0.0, 1.0)), spread=0.5)
        >>> output, (h, c) = lstm(torch.randn(7, 2, 3))
        >>> output.shape, isinstance(lstm, torch.nn.LSTM)
        (torch.Size([7, 2, 5]), True)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
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
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
            device=device,
            dtype=dtype,
        )
        self._add_noise(LSTM, noise, spread, sites, tied, noise_to, zoneout, name)


class NoisyGRU(NoisyRecurrence, nn.GRU, PyroModule):
    """``torch.nn.GRU`` with a noisy hidden state.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, device, dtype: as in
            ``torch.nn.GRU``.
        noise, spread, sites, tied, noise_to, zoneout, name: as in :class:`NoisyLSTM`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive, Learned
        >>> gru = NoisyGRU(3, 5, noise=Additive(dist.Gumbel(0.0, 1.0)), spread=Learned(0.3))
        >>> gru.spread[0].item() > 0.1
        True
    """

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
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
        )
        self._add_noise(GRU, noise, spread, sites, tied, noise_to, zoneout, name)
