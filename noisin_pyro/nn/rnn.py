"""NoisyRNN, NoisyLSTM and NoisyGRU: torch's RNNs with noise on the hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pyro.nn import PyroModule
from torch import nn

from noisin_pyro.cells.elman import NONLINEARITIES
from noisin_pyro.cells.gru import GRU
from noisin_pyro.cells.lstm import LSTM
from noisin_pyro.layers.layer import NoiseTo
from noisin_pyro.nn.arguments import spread_with_noise
from noisin_pyro.nn.noisy_module import Sites
from noisin_pyro.nn.recurrence import NoisyRecurrence
from noisin_pyro.noise.base import Noise
from noisin_pyro.spread.conversion import SpreadLike

__all__ = ["NoisyGRU", "NoisyLSTM", "NoisyRNN"]


class _OfTorch(NoisyRecurrence):
    """What is common to the noisy versions of torch's RNNs."""

    def __getstate__(self) -> dict[str, Any]:
        """For ``deepcopy`` and ``pickle``, where torch's method takes the place of Pyro's.

        Pyro's removes the weak references that its param store adds to parameters, and torch's
        would draw each weight that has a prior.
        """
        for parameter in self.parameters():
            vars(parameter).pop("unconstrained", None)
        if self._pyro_samples.keys().isdisjoint(self._flat_weights_names):
            return super().__getstate__()  # type: ignore[no-any-return, no-untyped-call]
        unread = {"_flat_weights": [None] * len(self._flat_weights_names)}
        kept = {name: value for name, value in vars(self).items() if name != "_flat_weight_refs"}
        return {**kept, **unread}


class NoisyRNN(_OfTorch, nn.RNN, PyroModule):
    """``torch.nn.RNN`` with a noisy hidden state, and with two more nonlinearities.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, device, dtype: as in
            ``torch.nn.RNN``.
        nonlinearity: ``"tanh"``, ``"relu"``, ``"sigmoid"`` or ``"identity"``.
        bidirectional, noise, spread, sites, tied, noise_to, zoneout, name: as in
            :class:`NoisyLSTM`.

    Raises:
        ValueError: if ``nonlinearity`` is unknown, or as :class:`NoisyLSTM`.
        TypeError: as :class:`NoisyLSTM`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive
        >>> rnn = NoisyRNN(3, 5, nonlinearity="sigmoid", noise=Additive(dist.Normal(0.0, 1.0)))
        >>> output, h = rnn(torch.randn(7, 2, 3))
        >>> output.shape, h.shape
        (torch.Size([7, 2, 5]), torch.Size([1, 2, 5]))
    """

    @spread_with_noise
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


class NoisyLSTM(_OfTorch, nn.LSTM, PyroModule):
    """``torch.nn.LSTM`` with a noisy hidden state: z_t ~ p(z_t | h_t, γ), E[z_t | h_t] = h_t.

    It has the constructor arguments, the call and the parameters of ``torch.nn.LSTM`` and is an
    instance of it. ``train()`` draws noise, ``eval()`` runs the mean path z = h. The cell state c
    has no noise. Inside a Pyro program every draw is a sample site, named after the module:
    ``noise_{layer}`` and a deterministic ``z_{layer}``, or ``z_{layer}_{t}``. See
    :meth:`~noisin_pyro.nn.recurrence.NoisyRecurrence.forward` for the call.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, device, dtype: as in
            ``torch.nn.LSTM``.
        bidirectional: as in ``torch.nn.LSTM``. Each direction draws its own noise and has its own
            γ.
        proj_size: must be 0.
        noise: one noise for all layers, or a list with one for each; None for a layer without
            noise.
        spread: γ, one for all layers or a list with one for each: a number or a tensor (fixed, with
            shape () or (H,)), an ``nn.Parameter``, :class:`Learned` (a constrained ``pyro.param``
            named ``spread_l{layer}``), a Pyro distribution (a prior), or a ``PyroSample`` of a
            function from the RNN to one (a hierarchical prior). ``rnn.spread = ...`` changes it. It
            is a standard deviation for additive noise and a coefficient of variation for
            multiplicative noise.
        sites: ``"sequence"`` has one sample site per layer, the noise ε of the whole sequence, and
            uses fast kernels. ``"timestep"`` has one per layer and step, the state z_t, as in the
            paper, and runs a Python loop over steps. Both define the same joint distribution. A
            :class:`MeanParameterized` noise has sites per timestep in either case. Under
            ``"sequence"`` the site ``z_{layer}`` only records z, so ``poutine.do`` on it has no
            effect: intervene on ``noise_{layer}``, or on ``z_{layer}_{t}`` under ``"timestep"``.
            None has no sites: torch draws the noise, also inside Pyro, for encoders, inference
            networks and baselines. Vectorised particles then share one draw.
        tied: draw ε, and the mask of ``dropout``, once per sequence instead of once per step. The
            dropout masks then count as noise: they are drawn whenever noise is, also in averages
            over samples at test time. See ``TrainConfig.variational_dropout``.
        noise_to: where the noise goes. With ``"both"``, as in the paper, z is the layer's output
            and the state that the next step reads. With ``"output"`` z is the output and h the
            state, so that given the layer's input E[z_t] equals the deterministic h_t. With
            ``"recurrence"`` h is the output and z the state. With ``"weights"`` h is both, and only
            the operand of the recurrent weights is noisy: in step t they multiply
            z_t ~ p(z_t | h_{t-1}, γ), while the update gate of a GRU carries h_{t-1}.
        zoneout: the probability that a unit of h or c keeps its previous value, one number for both
            or a pair such as (0.05, 0.5) (Krueger et al. 2016, https://arxiv.org/abs/1606.01305).
            It acts whenever ``dropout`` does; otherwise its expectation is used. Noise is added
            after it. It runs a Python loop over steps.
        name: the prefix of the names of parameters and sites in Pyro, used unless the RNN is an
            attribute of a ``PyroModule``. Without a name, a second RNN in a program is called
            ``noisy_lstm_1``, and the sites of later calls of an RNN end in ``__1``, ``__2``, ...

    Raises:
        ValueError: if ``proj_size`` is not 0, a spread is not positive or is given without
            ``noise``, the number of noises or spreads is not the number of layers, a noise is
            undefined for some states of the cell, ``tied`` is combined with sites per timestep, or
            another option is invalid.
        TypeError: if ``noise`` or ``spread`` has another type.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Multiplicative
        >>> lstm = NoisyLSTM(3, 5, 2, noise=Multiplicative(dist.Normal(0.0, 1.0)), spread=0.5)
        >>> output, (h, c) = lstm(torch.randn(7, 2, 3))
        >>> output.shape, isinstance(lstm, torch.nn.LSTM)
        (torch.Size([7, 2, 5]), True)
    """

    @spread_with_noise
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


class NoisyGRU(_OfTorch, nn.GRU, PyroModule):
    """``torch.nn.GRU`` with a noisy hidden state.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, device, dtype: as in
            ``torch.nn.GRU``.
        bidirectional, noise, spread, sites, tied, noise_to, zoneout, name: as in
            :class:`NoisyLSTM`.

    Raises:
        ValueError, TypeError: as :class:`NoisyLSTM`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive, Learned
        >>> gru = NoisyGRU(3, 5, noise=Additive(dist.Gumbel(0.0, 1.0)), spread=Learned(0.3))
        >>> gru.spread[0].item() > 0.1
        True
    """

    @spread_with_noise
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
