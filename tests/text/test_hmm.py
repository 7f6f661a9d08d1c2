"""The synthetic language: its optimum against enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from noisin_pyro.text.corpora import Corpus, Vocabulary, load_corpus
from noisin_pyro.text.corpora.corpus import Texts
from noisin_pyro.text.corpora.hmm import HiddenMarkovLanguage


def enumerate_paths(language: HiddenMarkovLanguage, symbols: list[int]) -> float:
    """p(symbols), summed over every path of hidden states."""
    total = 0.0
    for path in itertools.product(range(len(language.transition)), repeat=len(symbols)):
        probability, previous = 1.0, 0
        for state, symbol in zip(path, symbols, strict=True):
            probability *= language.transition[previous, state].item()
            probability *= language.emission[state, symbol].item()
            previous = state
        total += probability
    return total


def tiny_language(seed: int) -> HiddenMarkovLanguage:
    generator = torch.Generator().manual_seed(seed)
    return HiddenMarkovLanguage.draw(states=4, words=3, generator=generator)


@given(st.integers(0, 99), st.lists(st.integers(0, 3), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_forward_algorithm_equals_enumeration(seed: int, symbols: list[int]) -> None:
    language = tiny_language(seed)
    exact = enumerate_paths(language, symbols)
    assert math.isclose(language.log_prob(torch.tensor(symbols)).exp().item(), exact, rel_tol=1e-12)


def test_forward_algorithm_is_normalised_and_stays_so_over_a_long_text() -> None:
    language = tiny_language(0)
    texts = torch.tensor(list(itertools.product(range(4), repeat=3)))
    total = sum(language.log_prob(text).exp().item() for text in texts)
    assert math.isclose(total, 1, rel_tol=1e-12)

    symbols = language.sample(5_000, torch.Generator().manual_seed(1))
    belief, log_prob = torch.eye(4, dtype=torch.float64)[0], 0.0
    for symbol in symbols.tolist():  # the same sum, in scaled space, one step at a time
        belief = belief @ language.transition * language.emission[:, symbol]
        log_prob += belief.sum().log().item()
        belief /= belief.sum()
    assert math.isclose(language.log_prob(symbols).item(), log_prob, rel_tol=1e-11)


def test_optimal_perplexity_predicts_each_token_but_the_first() -> None:
    language, symbols = tiny_language(3), [1, 2, 2, 0, 3]
    conditional = enumerate_paths(language, symbols) / enumerate_paths(language, symbols[:1])
    assert math.isclose(language.perplexity(torch.tensor(symbols)), conditional ** (-1 / 4))


def test_sample_follows_the_language() -> None:
    language = tiny_language(5)
    symbols = language.sample(40_000, torch.Generator().manual_seed(0))
    pairs = torch.bincount(4 * symbols[:-1] + symbols[1:], minlength=16) / (len(symbols) - 1)
    stationary = torch.linalg.matrix_power(language.transition, 200)[0]
    joint = stationary[:, None] * language.transition
    expected = language.emission.T @ joint @ language.emission
    # The standard error of a frequency is at most 0.0025 for independent pairs; sticky states
    # carry about 5 tokens each.
    assert (pairs.reshape(4, 4) - expected).abs().max() < 0.015


def test_merged_words_have_the_probability_of_their_sum() -> None:
    language, vocabulary = tiny_language(2), Vocabulary(("<unk>", "b", "<eos>"))
    merged = language.over(vocabulary, ["<eos>", "a", "b", "c"])
    read = {0: (1, 3), 1: (2,), 2: (0,)}  # id: the symbols that are spelt so
    text = [0, 1, 0, 2]
    exact = sum(
        enumerate_paths(language, list(symbols))
        for symbols in itertools.product(*(read[token] for token in text))
    )
    assert math.isclose(merged.log_prob(torch.tensor(text)).exp().item(), exact, rel_tol=1e-12)


@pytest.fixture(scope="module")
def hmm() -> Corpus:
    return load_corpus("hmm")


def test_hmm_rewards_memory(hmm: Corpus) -> None:
    size = len(hmm.vocabulary)
    context, target = hmm.test[:-1], hmm.test[1:]
    unigram = (torch.bincount(hmm.train, minlength=size) + 0.5).double()
    unigram /= unigram.sum()
    pairs = torch.bincount(size * hmm.train[:-1] + hmm.train[1:], minlength=size**2)
    pairs = pairs.reshape(size, size) + 500 * unigram  # shrunk, by what is best on the test
    bigram = pairs / pairs.sum(-1, keepdim=True)
    by_frequency = math.exp(-unigram[target].log().mean())
    by_pair = math.exp(-bigram[context, target].log().mean())
    assert hmm.optimal_perplexity is not None
    assert 80 < hmm.optimal_perplexity < 0.75 * by_pair < 0.6 * by_frequency < 150


def test_hmm_is_the_same_everywhere_and_touches_no_global_generator(hmm: Corpus) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        state = torch.get_rng_state()
        again = load_corpus("hmm")
        assert torch.equal(torch.get_rng_state(), state)
    assert again.sha256 == hmm.sha256
    assert again.optimal_perplexity == hmm.optimal_perplexity
    assert [round(len(hmm.split(split)), -3) for split in Texts._fields] == [60_000, 8_000, 8_000]


def test_hmm_optimum_is_that_of_the_test_split(hmm: Corpus) -> None:
    generator = torch.Generator().manual_seed(0)
    language = HiddenMarkovLanguage.draw(states=12, words=500, generator=generator)
    words = ["<eos>", *(f"w{number:03}" for number in range(500))]
    read = language.over(hmm.vocabulary, words)
    assert read.perplexity(hmm.test) == hmm.optimal_perplexity != read.perplexity(hmm.valid)


def test_hmm_optimum_is_exact_where_rare_words_are_merged(hmm: Corpus) -> None:
    coarse = load_corpus("hmm", min_count=50)
    assert coarse.oov_rate > 0.1 and len(coarse.vocabulary) < len(hmm.vocabulary)
    assert coarse.optimal_perplexity is not None and hmm.optimal_perplexity is not None
    assert 10 < coarse.optimal_perplexity < 0.9 * hmm.optimal_perplexity
