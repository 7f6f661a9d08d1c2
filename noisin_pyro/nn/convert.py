"""From torch's modules to noisy ones and back, sharing parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from noisin_pyro.nn.recurrence import NoisyRecurrence
from noisin_pyro.nn.rnn import NoisyGRU, NoisyLSTM, NoisyRNN

__all__ = ["from_torch", "to_torch"]


def from_torch(module: nn.RNNBase, **noise: Any) -> NoisyRNN | NoisyLSTM | NoisyGRU:
    """A noisy RNN around an existing torch one; they share their parameters.

    Args:
        module: a ``torch.nn.RNN``, ``LSTM`` or ``GRU``.
        **noise: ``noise``, ``spread``, ``sites``, ``tied``, ``noise_to``, ``zoneout`` and
            ``name`` of :class:`NoisyLSTM`.

    Raises:
        TypeError: if ``module`` is none of the three.
        ValueError: as :class:`NoisyLSTM` does, or if a weight is computed from others, as under
            ``torch.nn.utils.parametrizations``.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive
        >>> lstm = torch.nn.LSTM(3, 5)
        >>> noisy = from_torch(lstm, noise=Additive(dist.Normal(0.0, 1.0)), spread=0.3)
        >>> noisy.weight_hh_l0 is lstm.weight_hh_l0
        True
    """
    kinds: tuple[tuple[type[nn.RNNBase], Any], ...] = (
        (nn.LSTM, NoisyLSTM),
        (nn.GRU, NoisyGRU),
        (nn.RNN, NoisyRNN),
    )
    kind = next((noisy for plain, noisy in kinds if isinstance(module, plain)), None)
    if kind is None:
        raise TypeError(f"from_torch wraps torch.nn.RNN, LSTM or GRU, got {type(module).__name__}")
    options = _options(module)
    if isinstance(module, nn.LSTM):
        options["proj_size"] = module.proj_size
    weight: Tensor = module.weight_hh_l0  # type: ignore[assignment]
    noisy = kind(
        module.input_size,
        module.hidden_size,
        **options,
        device="meta",  # no weights are drawn: torch's random state stays as it was
        dtype=weight.dtype,
        **noise,
    )
    _share(module, noisy)
    # moves a learned spread, and makes torch's list of weights anew
    return noisy.to(weight.device).train(module.training)  # type: ignore[no-any-return]


def to_torch(module: NoisyRNN | NoisyLSTM | NoisyGRU) -> nn.RNNBase:
    """The plain torch module that shares a noisy RNN's parameters: its mean path, in every mode.

    For what knows torch's modules only: dynamic quantisation, ONNX, TorchScript.

    Args:
        module: a noisy RNN whose nonlinearity torch has.

    Raises:
        TypeError: if ``module`` is no noisy RNN.
        ValueError: if torch has no such cell (sigmoid, identity, any with zoneout), or a weight is
            random or computed from others.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Additive
        >>> noisy = NoisyGRU(3, 5, noise=Additive(dist.Normal(0.0, 1.0)))
        >>> plain = to_torch(noisy)
        >>> type(plain).__name__, plain.weight_hh_l0 is noisy.weight_hh_l0
        ('GRU', True)
    """
    kinds: tuple[type[nn.RNNBase], ...] = (nn.LSTM, nn.GRU, nn.RNN)
    if not (isinstance(module, NoisyRecurrence) and isinstance(module, kinds)):
        raise TypeError(
            "to_torch takes a NoisyRNN, NoisyLSTM or NoisyGRU, which are torch's own with a noise, "
            f"got {type(module).__name__}"
        )
    if any(module.zoneout):
        raise ValueError(
            f"torch has no RNN with zoneout, whose mean path mixes old and new states, got zoneout="
            f"{module.zoneout}; build one without it"
        )
    options = _options(module)
    if options.get("nonlinearity") not in (None, "tanh", "relu"):
        raise ValueError(
            f"torch has no RNN with nonlinearity {options['nonlinearity']!r}; use NoisyRNN with "
            "noise=None, or export another cell"
        )
    kind: Any = next(kind for kind in kinds if isinstance(module, kind))
    weight: Tensor = module.weight_hh_l0
    plain: nn.RNNBase = kind(
        module.input_size, module.hidden_size, **options, device="meta", dtype=weight.dtype
    )
    _share(module, plain)
    return plain.to(weight.device).train(module.training)


def _options(module: nn.RNNBase) -> dict[str, Any]:
    """The constructor's arguments that torch's RNNs and ours have in common, but for the sizes."""
    names = ["num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    names += ["nonlinearity"] if isinstance(module, nn.RNN) else []
    return {name: getattr(module, name) for name in names}


def _share(source: nn.RNNBase, target: nn.RNNBase) -> None:
    """Gives a module the parameters of another."""
    for name in source._flat_weights_names:
        if name not in source._parameters:
            raise ValueError(
                f"the parameters of {type(source).__name__} cannot be shared, its {name} is "
                "random or computed from others; convert it first and change it afterwards"
            )
        target.register_parameter(name, source._parameters[name])
