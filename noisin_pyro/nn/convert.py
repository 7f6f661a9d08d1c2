"""Conversion between torch's RNNs and noisy ones, with shared parameters."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from noisin_pyro.nn.arguments import check_spread
from noisin_pyro.nn.recurrence import NoisyRecurrence
from noisin_pyro.nn.rnn import NoisyGRU, NoisyLSTM, NoisyRNN

__all__ = ["from_torch", "to_torch"]


def from_torch(module: nn.RNNBase, **noise: Any) -> NoisyRNN | NoisyLSTM | NoisyGRU:
    """A noisy RNN with the options and parameters of a torch RNN; both share the parameters.

    Args:
        module: a ``torch.nn.RNN``, ``LSTM`` or ``GRU``.
        **noise: ``noise``, ``spread``, ``sites``, ``tied``, ``noise_to``, ``zoneout`` and
            ``name`` of :class:`NoisyLSTM`.

    Returns:
        The noisy RNN, on the device and in the mode of ``module``.

    Raises:
        TypeError: if ``module`` is none of the three, or a subclass with a ``forward`` of its own.
        ValueError: as :class:`NoisyLSTM`, or if a weight is no parameter because it is computed
            from others, as under ``torch.nn.utils.parametrizations``.

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
    _check_forward(module)
    check_spread(noise)
    options = _options(module)
    if isinstance(module, nn.LSTM):
        options["proj_size"] = module.proj_size
    weight: Tensor = module.weight_hh_l0  # type: ignore[assignment]
    noisy = kind(
        module.input_size,
        module.hidden_size,
        **options,
        device="meta",  # draws no weights, so torch's random state is unchanged
        dtype=weight.dtype,
        **noise,
    )
    _share(module, noisy)
    # .to() moves a learned spread, and rebuilds torch's list of weights
    return noisy.to(weight.device).train(module.training)  # type: ignore[no-any-return]


def to_torch(module: NoisyRNN | NoisyLSTM | NoisyGRU) -> nn.RNNBase:
    """The torch RNN with the options and parameters of a noisy RNN; both share the parameters.

    It computes the mean path, in training and in evaluation mode. It is for tools that support
    torch's modules only: dynamic quantisation, ONNX, TorchScript.

    Args:
        module: a :class:`NoisyRNN` with nonlinearity tanh or relu, :class:`NoisyLSTM` or
            :class:`NoisyGRU`.

    Returns:
        The ``torch.nn.RNN``, ``LSTM`` or ``GRU``, on the device and in the mode of ``module``.

    Raises:
        TypeError: if ``module`` is none of the three, or a subclass with a ``forward`` of its own.
        ValueError: if torch has no such cell (sigmoid, identity, zoneout), or a weight has a prior
            or is computed from others.

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
    _check_forward(module)
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


def _check_forward(module: nn.RNNBase) -> None:
    """Raises TypeError if a subclass of the user computes something else."""
    known: list[Any] = [nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward, NoisyRecurrence.forward]
    if type(module).forward not in known:
        raise TypeError(
            f"{type(module).__name__} has a forward of its own, which would be lost; convert the "
            "RNN that it is built on, or subclass NoisyRNN, NoisyLSTM or NoisyGRU"
        )


def _options(module: nn.RNNBase) -> dict[str, Any]:
    """The constructor arguments that torch's RNNs and noisy RNNs share, without the sizes."""
    names = ["num_layers", "bias", "batch_first", "dropout", "bidirectional"]
    names += ["nonlinearity"] if isinstance(module, nn.RNN) else []
    return {name: getattr(module, name) for name in names}


def _share(source: nn.RNNBase, target: nn.RNNBase) -> None:
    """Registers the parameters of one module in another.

    Raises:
        ValueError: if a weight is no parameter.
    """
    for name in source._flat_weights_names:
        if name not in source._parameters:
            raise ValueError(
                f"the parameters of {type(source).__name__} cannot be shared, its {name} is "
                "random or computed from others; convert it first and change it afterwards"
            )
        target.register_parameter(name, source._parameters[name])
