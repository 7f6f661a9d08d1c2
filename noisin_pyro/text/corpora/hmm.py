"""A synthetic language from a hidden Markov model, whose lowest possible perplexity is known."""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor

from noisin_pyro.text.corpora.corpus import Corpus, Texts
from noisin_pyro.text.perplexity import perplexity
from noisin_pyro.tokens import EOS, Tokens
from noisin_pyro.vocabulary import Vocabulary

__all__ = ["HiddenMarkovLanguage", "hmm"]


@dataclass(frozen=True, eq=False)
class HiddenMarkovLanguage:
    """Sentences of a hidden Markov model, with one state and one symbol per token.

    State 0 ends a sentence and emits symbol 0, ``<eos>``; the chain starts from it.

    Attributes:
        transition: rows p(s_t | s_{t-1}), float64, with shape (S, S).
        emission: rows p(x_t | s_t), float64, with shape (S, V).

    Example:
        >>> language = HiddenMarkovLanguage(
        ...     transition=torch.tensor([[0.0, 1.0], [0.25, 0.75]], dtype=torch.float64),
        ...     emission=torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64),
        ... )
        >>> language.log_prob(torch.tensor([1, 1, 0])).exp()  # 1 * 0.75 * 0.25
        tensor(0.1875, dtype=torch.float64)
        >>> round(language.perplexity(torch.tensor([1, 1, 0])), 4)  # 0.1875 ** (-1 / 2)
        2.3094
    """

    transition: Tensor
    emission: Tensor

    @classmethod
    def draw(cls, states: int, words: int, generator: torch.Generator) -> HiddenMarkovLanguage:
        """Draws a language that rewards memory.

        Each state but 0 has a random ranking of all words and emits them by Zipf's law,
        p ~ rank^-1.2. A sentence ends with probability 0.05 per token; if it goes on, the state
        stays with probability 0.8 and favours a few successors otherwise, so that only several
        words together reveal it.

        Args:
            states: S, the end of a sentence included.
            words: V - 1, the symbols other than ``<eos>``.
            generator: source of all randomness.
        """
        inner = states - 1
        successor = torch.rand(inner, inner, generator=generator, dtype=torch.float64) ** 4
        successor.fill_diagonal_(0)
        successor /= successor.sum(-1, keepdim=True)
        transition = torch.zeros(states, states, dtype=torch.float64)
        transition[0, 1:] = 1 / inner
        transition[1:, 0] = 0.05
        transition[1:, 1:] = 0.95 * (0.2 * successor + 0.8 * torch.eye(inner, dtype=torch.float64))

        zipf = torch.arange(1, words + 1, dtype=torch.float64) ** -1.2
        zipf /= zipf.sum()
        emission = torch.zeros(states, words + 1, dtype=torch.float64)
        emission[0, 0] = 1
        for state in range(1, states):
            emission[state, 1 + torch.randperm(words, generator=generator)] = zipf
        return cls(transition, emission)

    def sample(self, length: int, generator: torch.Generator) -> Tensor:
        """Draws symbols, starting with a new sentence.

        Returns:
            Symbols, int64, with shape (length,).
        """
        # Inverse transform sampling; a row whose sum rounding leaves below 1 gives its last entry.
        to_state, to_symbol = torch.rand(2, length, generator=generator, dtype=torch.float64)
        rows = self.transition.cumsum(-1).tolist()
        path, state, last = [], 0, len(rows) - 1
        for uniform in to_state.tolist():
            state = min(bisect(rows[state], uniform), last)
            path.append(state)

        states, symbols = torch.tensor(path), torch.empty(length, dtype=torch.int64)
        for state, row in enumerate(self.emission.cumsum(-1)):
            here = states == state
            symbols[here] = torch.searchsorted(row, to_symbol[here], right=True)
        return symbols.clamp_(max=self.emission.shape[-1] - 1)

    def log_prob(self, symbols: Tensor) -> Tensor:
        """Sums over all state paths by the forward algorithm, in float64 and logarithms.

        Args:
            symbols: symbols with shape (N,), the first of which starts a sentence.

        Returns:
            log p(x_1, ..., x_N), a scalar.
        """
        start = torch.full(self.transition.shape[:1], -math.inf, dtype=torch.float64)
        start[0] = 0.0
        observation = dist.Categorical(logits=self.emission.log())
        forward = dist.DiscreteHMM(start, self.transition.log(), observation)
        log_prob: Tensor = forward.log_prob(symbols)
        return log_prob

    def perplexity(self, symbols: Tensor) -> float:
        """Bayes-optimal perplexity: predicts each symbol but the first from all before it.

        An evaluation in one stream asks the same of a model. In several streams a model also has
        no past at the start of each.

        Args:
            symbols: symbols with shape (N,), N at least 2, the first of which starts a sentence.
        """
        log_prob = self.log_prob(symbols) - self.log_prob(symbols[:1])
        return perplexity(-log_prob.item() / (len(symbols) - 1))

    def over(self, vocabulary: Vocabulary, words: list[str]) -> HiddenMarkovLanguage:
        """The same language with token ids for symbols; symbols of one id are merged.

        Args:
            vocabulary: the vocabulary, whose size is V'.
            words: how each of the V symbols is spelt.

        Returns:
            A language whose emission has shape (S, V').
        """
        merged = torch.zeros(len(self.emission), len(vocabulary), dtype=torch.float64)
        merged.index_add_(1, vocabulary.encode(words), self.emission)
        return replace(self, emission=merged)


def hmm(min_count: int = 1, tokens: Tokens | None = None) -> Corpus:
    """Builds the synthetic corpus: 12 states, 500 words, 60,000 + 8,000 + 8,000 tokens.

    On its test split word frequencies give a perplexity of about 200, pairs of words 150, and the
    whole past 104, the optimum. ``Corpus.optimal_perplexity`` is the exact optimum on the tokens of
    the test split, also if ``min_count`` merges words.

    Args:
        min_count: words that occur fewer times in the training text become ``<unk>``.
        tokens: what a token is; a word by default. For other tokens the optimum is not known.

    Raises:
        ValueError: if ``min_count`` is below 1.
    """
    generator = torch.Generator().manual_seed(0)
    language = HiddenMarkovLanguage.draw(states=12, words=500, generator=generator)
    words = [EOS, *(f"w{word:03}" for word in range(500))]

    def text(length: int) -> str:
        spelt = " ".join(words[symbol] for symbol in language.sample(length, generator).tolist())
        return "\n".join(sentence.strip() for sentence in spelt.split(EOS)[:-1]) + "\n"

    texts = Texts(train=text(60_000), valid=text(8_000), test=text(8_000))
    corpus = Corpus.from_texts("hmm", texts, min_count, tokens or "words")
    if corpus.vocabulary.tokens != "words":
        return corpus
    optimum = language.over(corpus.vocabulary, words).perplexity(corpus.test)
    return replace(corpus, optimal_perplexity=optimum)
