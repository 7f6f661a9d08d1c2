"""Emissions: LinearCategorical is torch's Categorical, and the others are what they say.

False alarms: two comparisons of frequencies, each at a level of 1e-7, with fixed seeds.
"""

from __future__ import annotations

import math
import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.nn import PyroSample
from scipy import stats
from torch import Tensor

from noisin_pyro import LanguageModel, NoisyRNN
from noisin_pyro.kernels import linear_softmax
from noisin_pyro.nn.emissions import (
    BernoulliEmission,
    CategoricalEmission,
    LinearCategorical,
    NormalEmission,
)

LEVEL = 1e-7
HIDDEN, CLASSES = 5, 7


def weights() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(30)
    kind: dict[str, Any] = {"generator": generator, "dtype": torch.float64}
    return torch.randn(CLASSES, HIDDEN, **kind), torch.randn(CLASSES, **kind)


def features(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(31)
    return torch.randn(*shape, HIDDEN, generator=generator, dtype=torch.float64)


def classes(*shape: int) -> Tensor:
    return torch.randint(CLASSES, shape, generator=torch.Generator().manual_seed(32))


def pair(*shape: int, bias: bool = True) -> tuple[LinearCategorical, Any]:
    z, (v, b) = features(*shape), weights()
    if not bias:
        return LinearCategorical(z, v), dist.Categorical(logits=z @ v.t())
    return LinearCategorical(z, v, b), dist.Categorical(logits=z @ v.t() + b)


SHAPES = [(), (3,), (4, 3), (2, 1, 4, 3)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@each_shape
@pytest.mark.parametrize("bias", [True, False])
def test_log_prob_is_categoricals(shape: tuple[int, ...], bias: bool) -> None:
    ours, theirs = pair(*shape, bias=bias)
    value = classes(*shape)
    torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))
    torch.testing.assert_close(ours.log_prob(value.double()), theirs.log_prob(value))


@each_shape
def test_probs_logits_and_entropy_are_categoricals(shape: tuple[int, ...]) -> None:
    ours, theirs = pair(*shape)
    torch.testing.assert_close(ours.probs, theirs.probs)
    torch.testing.assert_close(ours.logits.log_softmax(-1), theirs.logits)
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert ours.batch_shape == theirs.batch_shape and ours.event_shape == ()


@pytest.mark.parametrize(
    "value_shape", [(4, 3), (1, 3), (3,), (), (6, 4, 3), (6, 1, 1), (2, 6, 1, 1)]
)
def test_a_value_broadcasts_as_categoricals(value_shape: tuple[int, ...]) -> None:
    ours, theirs = pair(4, 3)
    value = classes(*value_shape)
    torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))


def test_one_observation_serves_all_particles() -> None:
    """z is (S, T, B, H), the observed words (T, B)."""
    ours, theirs = pair(6, 4, 3)
    value = classes(4, 3)
    assert ours.log_prob(value).shape == (6, 4, 3)
    torch.testing.assert_close(ours.log_prob(value), theirs.log_prob(value))


@pytest.mark.parametrize("value_shape", [(4, 3), (6, 4, 3)])
def test_gradients_are_categoricals(value_shape: tuple[int, ...]) -> None:
    leaves = [leaf.requires_grad_() for leaf in (features(4, 3), *weights())]
    z, v, b = leaves
    value, factor = classes(*value_shape), torch.rand(value_shape, dtype=torch.float64)
    ours = (factor * LinearCategorical(z, v, b).log_prob(value)).sum()
    theirs = (factor * dist.Categorical(logits=F.linear(z, v, b)).log_prob(value)).sum()
    got, wanted = torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves)
    torch.testing.assert_close(got, wanted)
    assert all(gradient.abs().sum() > 0.1 for gradient in wanted)


def test_large_logits_do_not_overflow() -> None:
    z, v = torch.full((1, 1), 1e4), torch.tensor([[1.0], [-1.0]])
    distribution = LinearCategorical(z, v)
    assert distribution.log_prob(torch.tensor([0])) == 0
    assert distribution.log_prob(torch.tensor([1])) == -2e4


def test_samples_have_the_stated_frequencies() -> None:
    """χ² at level 1e-7."""
    distribution, _ = pair(3)
    torch.manual_seed(33)
    draws = distribution.sample((20_000,))
    assert draws.shape == (20_000, 3) and draws.dtype == torch.int64
    for column, probs in zip(draws.unbind(1), distribution.probs):
        expected = probs * len(column)
        rare = expected < 5
        observed = torch.bincount(column, minlength=CLASSES).double()
        cells = torch.cat([observed[~rare], observed[rare].sum(0, keepdim=True)])
        wanted = torch.cat([expected[~rare], expected[rare].sum(0, keepdim=True)])
        keep = wanted > 0
        assert stats.chisquare(cells[keep], wanted[keep]).pvalue > LEVEL / 3


def test_sampling_is_categoricals_under_the_same_seed() -> None:
    ours, theirs = pair(4, 3)
    torch.manual_seed(34)
    mine = ours.sample((2,))
    torch.manual_seed(34)
    assert torch.equal(mine, theirs.sample((2,)))


def test_expand() -> None:
    ours, theirs = pair(4, 3)
    wide = ours.expand([2, 4, 3])
    assert type(wide) is LinearCategorical and wide.batch_shape == (2, 4, 3)
    value = classes(2, 4, 3)
    torch.testing.assert_close(wide.log_prob(value), theirs.expand([2, 4, 3]).log_prob(value))
    assert wide.sample().shape == (2, 4, 3)


def test_enumerate_support() -> None:
    ours, theirs = pair(4, 3)
    assert ours.has_enumerate_support
    for expand in (True, False):
        mine, other = (
            distribution.enumerate_support(expand=expand) for distribution in (ours, theirs)
        )
        assert torch.equal(mine, other)
        torch.testing.assert_close(ours.log_prob(mine), theirs.log_prob(other))
    total = ours.log_prob(ours.enumerate_support(expand=False)).logsumexp(0)
    torch.testing.assert_close(total, torch.zeros_like(total))


def test_as_an_event_and_under_a_mask() -> None:
    ours, theirs = pair(4, 3)
    value = classes(4, 3)
    for reshape in (
        lambda distribution: distribution.to_event(1),
        lambda distribution: distribution.to_event(2),
        lambda distribution: distribution.mask(torch.tensor([True, False, True])),
    ):
        mine, other = reshape(ours), reshape(theirs)
        assert (mine.batch_shape, mine.event_shape) == (other.batch_shape, other.event_shape)
        torch.testing.assert_close(mine.log_prob(value), other.log_prob(value))


@pytest.mark.parametrize("wrong", [-1, CLASSES, -100])
def test_a_class_that_is_none_is_refused(wrong: int) -> None:
    """−100 too, which ``cross_entropy`` would by itself take for padding and score 0."""
    v, b = weights()
    value = torch.tensor([0, wrong])
    with pytest.raises(ValueError, match="within the support"):
        LinearCategorical(features(2), v, b, validate_args=True).log_prob(value)
    with pytest.raises((IndexError, RuntimeError), match="Target|target|bounds"):
        LinearCategorical(features(2), v, b, validate_args=False).log_prob(value)


def test_a_fraction_is_no_class() -> None:
    distribution, _ = pair(2)
    with pytest.raises(ValueError, match="within the support"):
        distribution.log_prob(torch.tensor([0.5, 1.0]))


def test_a_value_of_another_shape_is_refused() -> None:
    distribution, _ = pair(4, 3)
    with pytest.raises(ValueError, match="not broadcastable|must match the size"):
        distribution.log_prob(classes(4, 2))


def test_weights_of_another_shape_are_refused() -> None:
    v, b = weights()
    message = "the weight must have shape (K, 4), one matrix for all particles, got (7, 5)"
    with pytest.raises(ValueError, match=re.escape(message)):
        LinearCategorical(features(3)[:, :4], v, b)
    with pytest.raises(
        ValueError, match=re.escape("(K, 5), one matrix for all particles, got (2,")
    ):
        LinearCategorical(features(3), v.expand(2, 1, 1, CLASSES, HIDDEN), b)
    message = "the bias must have shape (7,), one number for each class, got (6,)"
    with pytest.raises(ValueError, match=re.escape(message)):
        LinearCategorical(features(3), v, b[:6])


def test_inference_by_enumeration_sees_a_categorical() -> None:
    """TraceEnum_ELBO sums the class out, exactly, whichever of the two the model names."""
    losses = []
    for distribution in pair(3):

        def model(distribution: Any = distribution) -> None:
            with pyro.plate("batch", 3):
                word = pyro.sample("word", distribution, infer={"enumerate": "parallel"})
                pyro.sample("y", dist.Normal(word.double(), 1.0), obs=torch.ones(3).double())

        elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
        losses.append(elbo.loss(model, lambda: None))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


# ---------------------------------------------------------------- the modules


@pytest.mark.parametrize("bias", [True, False])
def test_categorical_emission_is_a_linear_layer_and_a_softmax(bias: bool) -> None:
    emission = CategoricalEmission(HIDDEN, CLASSES, bias).double()
    assert isinstance(emission, torch.nn.Linear)
    assert set(emission.state_dict()) == ({"weight", "bias"} if bias else {"weight"})
    z, value = features(6, 4, 3), classes(4, 3)
    expected = dist.Categorical(logits=F.linear(z, emission.weight, emission.bias))
    distribution = emission(z)
    assert distribution.batch_shape == (6, 4, 3)
    torch.testing.assert_close(distribution.log_prob(value), expected.log_prob(value))


def test_a_prior_on_the_weight_is_drawn() -> None:
    emission = CategoricalEmission(HIDDEN, CLASSES)
    prior: Any = PyroSample(dist.Normal(0.0, 1.0).expand([CLASSES, HIDDEN]).to_event(2))
    emission.weight = prior
    z = torch.randn(4, 3, HIDDEN)
    trace = pyro.poutine.trace(emission).get_trace(z)
    assert trace.nodes["weight"]["type"] == "sample"
    expected = F.linear(z, trace.nodes["weight"]["value"], emission.bias)
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"].logits, expected)


def test_normal_emission() -> None:
    emission = NormalEmission(HIDDEN, 2, scale=0.5).double()
    z = features(6, 4, 3)
    distribution = emission(z)
    assert (distribution.batch_shape, distribution.event_shape) == ((6, 4, 3), (2,))
    torch.testing.assert_close(distribution.mean, F.linear(z, emission.weight, emission.bias))
    torch.testing.assert_close(
        distribution.stddev, torch.full_like(distribution.mean, 0.5)
    )  # not the variance
    y = features(4, 3)[..., :2]
    per_variable = -0.5 * ((y - distribution.mean) / 0.5) ** 2 - math.log(
        0.5 * math.sqrt(2 * math.pi)
    )
    torch.testing.assert_close(distribution.log_prob(y), per_variable.sum(-1))
    distribution.log_prob(y).sum().backward()
    assert emission.log_scale.grad is not None and (emission.log_scale.grad != 0).all()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_normal_emission_needs_a_positive_scale(scale: float) -> None:
    message = f"scale must be a positive, finite standard deviation, got {scale}"
    with pytest.raises(ValueError, match=message):
        NormalEmission(HIDDEN, 1, scale)


def test_bernoulli_emission() -> None:
    emission = BernoulliEmission(HIDDEN, 8).double()
    z = features(6, 4, 3)
    distribution = emission(z)
    assert (distribution.batch_shape, distribution.event_shape) == ((6, 4, 3), (8,))
    logits = F.linear(z, emission.weight, emission.bias)
    notes = (torch.rand(4, 3, 8, generator=torch.Generator().manual_seed(35)) < 0.3).double()
    expected = notes * F.logsigmoid(logits) + (1 - notes) * F.logsigmoid(-logits)
    torch.testing.assert_close(distribution.log_prob(notes), expected.sum(-1))
    torch.testing.assert_close(distribution.mean, logits.sigmoid())


@pytest.mark.parametrize(
    "emission",
    [CategoricalEmission(HIDDEN, CLASSES), NormalEmission(HIDDEN, 2), BernoulliEmission(HIDDEN, 8)],
    ids=lambda emission: type(emission).__name__,
)
def test_every_parameter_of_an_emission_has_a_gradient(emission: Any) -> None:
    z = torch.randn(4, 3, HIDDEN, requires_grad=True)
    distribution = emission(z)
    torch.manual_seed(36)
    distribution.log_prob(distribution.sample()).sum().backward()
    leaves = [z, *emission.parameters()]
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)
    emission.zero_grad()


def test_outside_pyro_frozen_weights_stay_frozen() -> None:
    """Pyro thaws a parameter that it reads as a statement; a plain loop issues none."""
    model = LanguageModel(7, NoisyRNN(3, 4)).requires_grad_(False)
    tokens = torch.randint(7, (5, 2))
    model(tokens[:-1], tokens[1:])
    model.emission(torch.zeros(1, 1, 4))
    NormalEmission(4, 2).requires_grad_(False)(torch.zeros(1, 1, 4))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "rows, at_once, parts", [(1, 1000, 1), (1000, 1000, 1), (2500, 1000, 3), (3, 0, 3)]
)
def test_without_gradients_the_logits_come_in_parts(
    rows: int, at_once: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last part may be shorter, and a row that is too long on its own is a part."""
    lengths = []
    one_part = linear_softmax._log_prob_and_softmax

    def watched(z: torch.Tensor, *others: Any) -> Any:
        lengths.append(len(z))
        return one_part(z, *others)

    monkeypatch.setattr(linear_softmax, "_log_prob_and_softmax", watched)
    monkeypatch.setattr(linear_softmax, "_UNTRAINED", max(1, at_once * CLASSES))
    z, weight = torch.randn(rows, HIDDEN), torch.randn(CLASSES, HIDDEN)
    distribution, value = LinearCategorical(z, weight), torch.randint(CLASSES, (rows,))
    with torch.no_grad():
        found = distribution.log_prob(value)
    assert len(lengths) == parts and sum(lengths) == rows
    whole = distribution.categorical().log_prob(value)
    torch.testing.assert_close(found, whole)
