"""Bad input: one sentence that names the value, the rule and the way on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.nn import PyroSample
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from noisin_pyro import (
    Additive,
    CategoricalEmission,
    LanguageModel,
    Learned,
    MeanParameterized,
    Multiplicative,
    NoisinELBO,
    NoisyGRU,
    NoisyLSTM,
    NoisyRecurrent,
    NoisyRNN,
    PriorGuide,
    SequenceModel,
    from_torch,
)
from noisin_pyro.nn.registry import RNNS, build_rnn
from tests.helpers import gamma_noise

NORMAL = dist.Normal(0.0, 1.0)
NOISE = Additive(NORMAL)
GAMMA = gamma_noise()
D, H, T, B = 3, 5, 4, 2


def lstm(**options: Any) -> NoisyLSTM:
    return NoisyLSTM(D, H, 2, **{"noise": NOISE, **options})


def model(**options: Any) -> LanguageModel:
    return LanguageModel(7, NoisyLSTM(D, H, noise=NOISE), **options)


def tokens(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long)


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.zeros(n, D) for n in (3, 5)], layout=torch.jagged)


def state(cell: Any, dtype: torch.dtype) -> Any:
    h = torch.zeros(1, B, H, dtype=dtype)
    return (h, h) if cell is NoisyLSTM else h


X = torch.zeros(T, B, D)
CONSTRUCTORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # the arguments of torch's modules
    (
        lambda: SequenceModel(nn.Identity(), lstm(bidirectional=True), lambda z: NORMAL),
        ValueError,
        "bidirectional=True.*SequenceModel.*forward in time; use it as an encoder",
    ),
    (lambda: lstm(proj_size=2), ValueError, "proj_size=2.*hidden state.*linear layer after"),
    (lambda: NoisyRNN(D, H, 1, "softmax"), ValueError, "'softmax'; the known ones are tanh, relu"),  # type: ignore[arg-type]
    # noises
    (lambda: lstm(noise=NORMAL), TypeError, r"got Normal\(.*wrap a distribution as Additive"),
    (lambda: lstm(noise="gaussian"), TypeError, r"got 'gaussian'; .*family\('gaussian', 'ad"),
    (lambda: lstm(noise=Additive), TypeError, r"got <class.*Additive'>; give, say, Additive\("),
    (lambda: lstm(noise=[NOISE]), ValueError, "noise needs one value or one for each of the 2"),
    (lambda: lstm(noise=GAMMA), ValueError, "Gamma.*range.*lstm transition.*or Additive"),
    (
        lambda: NoisyRNN(D, H, noise=GAMMA),
        ValueError,
        r"Gamma.*\(-1, 1\) of the tanh transition; choose a family whose support",
    ),
    (
        lambda: NoisyRNN(D, H, nonlinearity="relu", noise=GAMMA),
        ValueError,
        r"mean 0.*range \[0, inf\) of the relu transition",
    ),
    (
        lambda: NoisyRNN(
            D, H, nonlinearity="sigmoid", noise=MeanParameterized(lambda m, s: dist.Gamma(m, s))
        ),
        ValueError,
        "must have the state as its mean.*rescale",
    ),
    (lambda: Additive(dist.Cauchy(0.0, 1.0)), ValueError, "finite, positive variance, got Cauchy"),
    (lambda: Additive(dist.Normal(torch.zeros(2), 1.0)), ValueError, r"univariate.*\(2,\)"),
    # spreads
    *(
        (
            lambda s=s: lstm(spread=s),
            ValueError,
            f"spread must be positive and finite, got {s}.*noise=None",
        )
        for s in (0.0, -0.3, math.nan, math.inf)
    ),
    (
        lambda: lstm(spread=[0.1] * 3),
        ValueError,
        "spread needs one value or one for each of the 2 layers, got 3",
    ),
    (lambda: lstm(spread="0.5"), TypeError, "spread must be a number.*got '0.5'"),
    (lambda: lstm(spread=dist.LogNormal(0.0, 1.0).expand([4])), ValueError, r"\b4\b"),
    (lambda: lstm(spread=NORMAL), ValueError, "(?i)positive|above zero"),
    (lambda: Learned(0.1, lower=0.1), ValueError, "above its floor 0.1, got 0.1; raise init"),
    (lambda: Learned(0.5, per="weight"), ValueError, "'weight'"),  # type: ignore[arg-type]
    # sites
    (
        lambda: lstm(sites="step"),
        ValueError,
        "sites must be 'sequence', 'timestep' or None, got 'st",
    ),
    (lambda: lstm(tied=True, sites="timestep"), ValueError, "tied=True.*needs sites='sequence'"),
    (
        lambda: NoisyRNN(D, H, nonlinearity="sigmoid", noise=GAMMA, tied=True),
        ValueError,
        "tied=True.*Additive or Multiplicative",
    ),
    *(
        (build, ValueError, "^spread=0.3 needs a noise; give noise=Multiplicative.*or noise=None")
        for build in (
            lambda: from_torch(nn.LSTM(D, H), spread=0.3),
            lambda: NoisyRecurrent(nn.LSTMCell(D, H), spread=0.3),
            *(lambda name=name: build_rnn(name, D, H, 1, spread=0.3) for name in RNNS),
        )
    ),
    (lambda: model(input_spread=0.3), ValueError, "input_spread=0.3 needs a noise; give input_n"),
    (lambda: from_torch(nn.LSTM(D, H), noise=None, spread=[0.1, 0.2]), ValueError, "got 2"),
    (
        lambda: setattr(NoisyLSTM(D, H), "spread", 0.3),
        AttributeError,
        "this NoisyLSTM lacks, got 0.3; build it with a noise",
    ),
    (lambda: from_torch(nn.Linear(1, 1)), TypeError, "RNN, LSTM or GRU, got Linear"),  # type: ignore[arg-type]
    *(
        (
            lambda change=change: from_torch(change(nn.LSTM(D, H), "weight_hh_l0"), noise=NOISE),
            ValueError,
            "LSTM cannot be shared, its weight_hh_l0 is random or computed",
        )
        for change in (nn.utils.parametrizations.weight_norm, nn.utils.spectral_norm)
    ),
    # models and objectives
    (
        lambda: SequenceModel(nn.Identity(), nn.LSTM(D, H), CategoricalEmission(H, 7)),  # type: ignore[arg-type]
        TypeError,
        "rnn must be a NoisyRNN.*got LSTM; wrap torch's with from_torch",
    ),
    (
        lambda: LanguageModel(7, NoisyGRU(D, H, batch_first=True)),
        ValueError,
        "time-major.*batch_first=False",
    ),
    (lambda: model(tied_weights=True), ValueError, "got 3 and 5; make them equal or untie"),
    (lambda: model(dropout_input=1.0), ValueError, r"dropout_input must lie in \[0, 1\), got 1.0"),
    (lambda: model(dropout_output=-0.1), ValueError, r"dropout_output must lie in .*got -0.1"),
    (lambda: model(input_noise=NORMAL), TypeError, "Additive or Multiplicative, got Normal"),
    (lambda: model(input_noise=NOISE, input_spread=0.0), ValueError, "spread must be positive"),
    (lambda: PriorGuide(nn.LSTM(D, H)), TypeError, "needs a SequenceModel, got LSTM"),  # type: ignore[arg-type]
    (lambda: NoisinELBO(0), ValueError, "num_particles must be at least 1, got 0"),
    (lambda: NoisinELBO()(model(), PriorGuide(model())), TypeError, "very model.*Trace_ELBO"),
]
CALLS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    # inputs and states of an RNN
    (lambda: lstm()(torch.zeros(D)), ValueError, r"shape \(T, B, I\) or \(T, I\), got \(3,\)"),
    (lambda: lstm()(X.unsqueeze(0)), ValueError, r"shape \(T, B, I\) or \(T, I\), got \(1, 4"),
    (lambda: lstm()([1.0]), ValueError, "got list"),
    (lambda: lstm()(nested()), ValueError, r"nested one of 2 seq.*pad_sequence.*lengths=\[len"),
    (lambda: lstm()(X.to_sparse()), ValueError, r"dense, got torch.sparse_coo.*\.to_dense\(\)"),
    (lambda: model()(nested()), ValueError, "nested one of 2 sequences"),
    (lambda: model()([[1, 2]]), ValueError, r"shape \(T, B\) or \(T, B, ...\), got list"),
    (
        lambda: lstm()(torch.zeros(T, B, 9)),
        ValueError,
        r"3 features in its last dimension, got torch.float32 with 9",
    ),
    (lambda: lstm()(tokens(T, B, D)), ValueError, "floating-point.*got torch.int64"),
    (lambda: lstm()(X.double()), ValueError, "weights, torch.float32, got torch.float64; convert"),
    (lambda: lstm()(X[:0]), ValueError, "at least one time step, got 0"),
    (lambda: lstm()(X, torch.zeros(2, B, H)), TypeError, r"is a pair \(h, c\), got Tensor"),
    (
        lambda: NoisyGRU(D, H)(X, (torch.zeros(1, B, H),) * 2),
        TypeError,
        "one tensor h, got tuple",
    ),
    (
        lambda: lstm()(X, (torch.zeros(1, B, H),) * 2),
        ValueError,
        r"shape \(2, 2, 5\), got \(1, 2, 5\)",
    ),
    (
        lambda: lstm()(X, (torch.zeros(3, 2, B, H),) * 2),
        ValueError,
        r"shape \(2, 2, 5\), got \(3, 2, 2, 5\)",
    ),
    (
        lambda: lstm()(X, (torch.zeros(2, B, H), None)),
        TypeError,
        r"is a pair \(h, c\), got tuple of Tensor, NoneType; give None",
    ),
    (lambda: NoisyGRU(D, H)(X, 0.0), TypeError, "is one tensor h, got float; give None"),
    (lambda: NoisyGRU(D, H)(X[:, 0], 0.0), TypeError, "is one tensor h, got float; give None"),
    (
        lambda: NoisyGRU(D, H)(X[:, 0], torch.zeros(1, 1, H)),
        ValueError,
        r"state must have shape \(1, 5\), got \(1, 1, 5\)",
    ),
    *(
        (
            lambda cell=cell, noise=noise: cell(D, H, noise=noise)(X, state(cell, torch.float64)),
            ValueError,
            "state must have the dtype of the input, torch.float32, got torch.float64; convert",
        )
        for cell in (NoisyRNN, NoisyLSTM, NoisyGRU)
        for noise in (None, NOISE, Multiplicative(NORMAL))
    ),
    # lengths
    *(
        (lambda n=n: lstm()(X, lengths=torch.tensor(n)), ValueError, re.escape(message))
        for n, message in (
            ([0, 4], "between 1 and the input's 4 steps, got [0, 4]; drop empty sequences"),
            ([5, 4], "between 1 and the input's 4 steps, got [5, 4]"),
            ([4], "shape (2,), one for each sequence, got torch.int64 with shape (1,)"),
            ([4.0, 4.0], "got torch.float32"),
            ([True, True], "got torch.bool"),
        )
    ),
    (lambda: lstm()(X, lengths=[4.0, 4]), ValueError, r"be integers with .*got \[4.0, 4\]"),
    (
        lambda: lstm()(pack_padded_sequence(X, torch.tensor([4, 2])), lengths=torch.tensor([4, 2])),
        ValueError,
        "knows its lengths; leave out",
    ),
    (
        lambda: model()(tokens(T, B), tokens(T, B), lengths=torch.tensor([5, 4])),
        ValueError,
        "between 1 and the input's 4 steps",
    ),
    # noise already drawn
    *(
        (
            lambda given=given: lstm()(X, epsilon=given),
            ValueError,
            r"epsilon must .* each of the 2 layers, .* shape \(4, 2, 5\), or None .*, got "
            + re.escape(got),
        )
        for given, got in (
            ([], "[]; take it from draw_noise"),
            ([torch.zeros(T, B, H)], "[(4, 2, 5)]"),
            ([torch.zeros(T, B, H), None], "[(4, 2, 5), None]"),
            ([torch.zeros(H)] * 2, "[(5,), (5,)]"),
            ([torch.zeros(T + 1, B, H)] * 2, "[(5, 2, 5)"),
            ([torch.zeros(T, B, 1)] * 2, "[(4, 2, 1)"),
        )
    ),
    (
        lambda: lstm(sites="timestep")(X, epsilon=[torch.zeros(T, B, H)] * 2),
        ValueError,
        "None where there is no noise or a site per timestep",
    ),
    (
        lambda: lstm()(X, epsilon=[torch.zeros(T, B, H), torch.zeros(T, B, H).double()]),
        ValueError,
        "epsilon must have the dtype of the weights, torch.float32, got torch.float64; convert it",
    ),
    # noise after the RNN is built
    *(
        (
            lambda later=later: setattr(lstm(), "noise", later),
            AttributeError,
            "noise of a NoisyLSTM cannot be changed, got .*; build another with the same weights",
        )
        for later in (None, NOISE)
    ),
    # inputs of a model
    (lambda: model()(tokens(T)), ValueError, r"\(T, B\) or \(T, B, ...\), got \(4,\)"),
    (
        lambda: model()(tokens(T, B), tokens(B)),
        ValueError,
        r"y must have shape \(4, 2\), got \(2,\)",
    ),
    (lambda: model()(tokens(T, B), tokens(T, 1)), ValueError, r"shape \(4, 2\), got \(4, 1\)"),
    (lambda: model()(tokens(T, B), tokens(T, B, 1)), ValueError, r"got \(4, 2, 1\)"),
]


@pytest.mark.parametrize(("call", "kind", "message"), CONSTRUCTORS + CALLS)
def test_refusal(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as raised:
        call()
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_particles_do_not_fit_into_a_packed_sequence() -> None:
    packed = pack_padded_sequence(X, torch.tensor([4, 2]))
    refused = pytest.raises(ValueError, match="PackedSequence has no room.*3, 4, 2, 5.*lengths=")
    with pyro.plate("particles", 3, dim=-3), poutine.trace(), refused:
        lstm()(packed)
    with poutine.trace():
        lstm()(packed)


def test_what_is_not_refused() -> None:
    """Neighbours of the above that are fine."""
    lstm()(X, epsilon=[torch.zeros(T, 1, H), torch.zeros(1, B, H)])
    parametrizations = nn.utils.parametrizations
    parametrizations.weight_norm(from_torch(nn.LSTM(D, H), noise=NOISE), "weight_hh_l0")(X)
    lstm()(X, lengths=torch.tensor([1, 4]))  # not sorted
    lstm()(X, lengths=torch.tensor([4, 1], dtype=torch.int32))
    lstm(noise=[NOISE, None], spread=[0.3, 0.1])
    lstm(noise=None, spread=0.3)  # as in a comparison over several noises
    from_torch(nn.LSTM(D, H), noise=None, spread=0.3)
    model(input_noise=None, input_spread=0.3)
    lstm(noise=[None, Multiplicative(dist.Bernoulli(0.5))], tied=True)
    NoisyRNN(D, H, nonlinearity="sigmoid", noise=GAMMA)(X)
    lstm()(X[:1])
    lstm()(X, [torch.zeros(2, B, H)] * 2)
    model()(tokens(T, B), tokens(T, B))


def test_noise_to_and_the_dropout_of_words() -> None:
    with pytest.raises(
        ValueError, match="noise_to must be 'both', 'output', 'recurrence' or 'weights', got 'm"
    ):
        NoisyRNN(3, 4, noise_to="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dropout_words must lie in \[0, 1\), got 1"):
        LanguageModel(5, NoisyRNN(3, 4), dropout_words=1)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0"])
def test_a_prior_of_one_number_for_a_whole_weight(name: str) -> None:
    rnn = NoisyGRU(D, H, noise=NOISE)
    setattr(rnn, name, PyroSample(NORMAL))
    with pytest.raises(ValueError, match=r"must be a matrix, got one with shape \(\); .*expand"):
        rnn(torch.randn(T, B, D))
