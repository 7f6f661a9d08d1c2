"""LanguageModel: a SequenceModel of words, with an embedding and a softmax."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisin_pyro.models.arguments import check_rate
from noisin_pyro.models.pretrained import load_folder, save_folder
from noisin_pyro.models.sequence import SequenceModel
from noisin_pyro.nn.emissions import CategoricalEmission
from noisin_pyro.nn.recurrence import NoisyRecurrence
from noisin_pyro.vocabulary import Vocabulary

__all__ = ["LanguageModel"]

Model = TypeVar("Model", bound="LanguageModel")


class LanguageModel(SequenceModel):
    """A :class:`SequenceModel` of words: embedding, noisy RNN, softmax.

    The embedding and the softmax matrix are initialised with U(−0.1, 0.1), as in Zaremba et al.
    (2014, https://arxiv.org/abs/1409.2329). torch's default for an embedding, N(0, 1), learns more
    slowly: after one epoch of a tanh RNN on Penn Treebank it reached a perplexity of 207, and
    U(−0.1, 0.1) reached 198.

    Args:
        vocab_size: K, the number of words.
        rnn: the noisy RNN. Its input size is the width of the embedding.
        tied_weights: whether embedding and softmax share their matrix, which requires input size =
            hidden size.
        dropout_words: the probability of dropping a word from a sequence, which sets its embedding
            to zero wherever it occurs in the sequence (Gal and Ghahramani 2016, section 4.2,
            https://arxiv.org/abs/1512.05287).
        **options: ``input_noise``, ``input_spread``, ``dropout_input``, ``dropout_output`` and
            ``name`` of :class:`SequenceModel`.

    Attributes:
        vocabulary: the :class:`Vocabulary`, or None. :meth:`from_pretrained` sets it, and a user
            may.

    Raises:
        ValueError: if ``vocab_size`` is not positive, ``tied_weights`` is True and the sizes
            differ, a probability lies outside [0, 1), or as :class:`SequenceModel`.
        TypeError: as :class:`SequenceModel`.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> from noisin_pyro import Multiplicative, NoisyLSTM
        >>> rnn = NoisyLSTM(16, 16, noise=Multiplicative(dist.Normal(0.0, 1.0)), spread=0.5)
        >>> model = LanguageModel(100, rnn, tied_weights=True)
        >>> words, (h, c) = model.predict(torch.randint(100, (7, 2)))
        >>> words.logits.shape
        torch.Size([7, 2, 100])
    """

    def __init__(
        self,
        vocab_size: int,
        rnn: NoisyRecurrence,
        *,
        tied_weights: bool = False,
        dropout_words: float = 0.0,
        **options: Any,
    ) -> None:
        if vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
        if tied_weights and rnn.input_size != rnn.hidden_size:
            raise ValueError(
                "tied_weights needs the embedding to be as wide as the hidden state, got "
                f"{rnn.input_size} and {rnn.hidden_size}; make them equal or untie"
            )
        super().__init__(
            nn.Embedding(vocab_size, rnn.input_size),
            rnn,
            CategoricalEmission(rnn.hidden_size, vocab_size),
            **options,
        )
        check_rate("dropout_words", dropout_words)
        self.dropout_words = dropout_words
        if tied_weights:
            self.emission.weight = self.embedding.weight
        for weight in (self.embedding.weight, self.emission.weight):
            nn.init.uniform_(weight, -0.1, 0.1)
        nn.init.zeros_(self.emission.bias)
        self.tied_weights = tied_weights
        self.vocabulary: Vocabulary | None = None

    def dropout_before_sites(self) -> dict[str, float]:
        return {"dropout_words": self.dropout_words, **super().dropout_before_sites()}

    def _embedded(self, x: Tensor, dropping: bool) -> Tensor:
        if x.dtype not in (torch.long, torch.int):  # the dtypes of torch's embedding
            raise ValueError(f"x must hold the numbers of words, as torch.long, got {x.dtype}")
        try:
            embedded: Tensor = self.embedding(x)
        except IndexError:  # raised on a CPU; a GPU aborts the process instead
            raise IndexError(
                f"x must hold numbers from 0 to {self.vocab_size - 1}, got {int(x.min())} to "
                f"{int(x.max())}; encode the text with the model's own vocabulary"
            ) from None
        if not (dropping and self.dropout_words):
            return embedded
        kept = F.dropout(embedded.new_ones(x.shape[1], self.vocab_size), self.dropout_words)
        return embedded * kept.gather(1, x.t()).t().unsqueeze(-1)

    @property
    def vocab_size(self) -> int:
        """K, the number of words."""
        return int(self.embedding.num_embeddings)

    def save_pretrained(self, folder: str | Path, vocabulary: Vocabulary | None = None) -> None:
        """Writes ``config.json``, ``model.safetensors`` and, with a vocabulary, ``vocabulary.txt``.

        The folder contains data alone, no pickle and no code. ``noisin train`` writes and ``noisin
        generate`` reads such folders.

        Args:
            folder: the folder, which is created if it does not exist. Files of these names in it
                are replaced.
            vocabulary: the words; by default ``self.vocabulary``.

        Raises:
            ValueError: if a part of the model cannot be saved as data: the cell of a
                :class:`NoisyRecurrent`, the function of a :class:`MeanParameterized`, a base whose
                arguments are not numbers, a prior on a weight; or if the vocabulary has another
                size than the model.
            ImportError: if safetensors is not installed.
            OSError: if a file cannot be written.

        Example:
            >>> import tempfile
            >>> from noisin_pyro import NoisyGRU, Vocabulary, family
            >>> vocabulary = Vocabulary.build("the cat saw the dog".split())
            >>> rnn = NoisyGRU(8, 8, noise=family("laplace"), spread=0.3)
            >>> folder = tempfile.mkdtemp()
            >>> LanguageModel(len(vocabulary), rnn).save_pretrained(folder, vocabulary)
            >>> model = LanguageModel.from_pretrained(folder)
            >>> model.rnn.noise[0].base, model.vocabulary
            (Laplace(loc: 0.0, scale: 1.0), Vocabulary(6 words))
        """
        save_folder(self, Path(folder), self.vocabulary if vocabulary is None else vocabulary)

    @classmethod
    def from_pretrained(
        cls: type[Model], folder: str | Path, *, name: str = "", trust_code: bool = False
    ) -> Model:
        """Reads a model that :meth:`save_pretrained` wrote.

        The folder may come from a stranger, since nothing in it is executed. torch's random state
        is unchanged.

        Args:
            folder: the folder.
            name: as in :class:`SequenceModel`.
            trust_code: import and call the class of any noise, not only classes of torch, Pyro and
                this package. Use it only if you trust the folder.

        Returns:
            The model, in evaluation mode on the CPU.

        Raises:
            ValueError: if a file is missing, damaged, or inconsistent with the others, or if the
                weights do not fit the memory.
            ImportError: if safetensors is not installed.
            OSError: if a file cannot be read.
        """
        return load_folder(cls, Path(folder), name, trust_code)
