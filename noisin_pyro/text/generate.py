"""Draws text from a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noisin_pyro.infer.contexts import draw_priors, given, has_priors, seeded_by
from noisin_pyro.infer.forecast import check_count, continue_sequences
from noisin_pyro.models.language import LanguageModel
from noisin_pyro.models.sequence import check_model
from noisin_pyro.modes import evaluating
from noisin_pyro.tokens import EOS, UNK
from noisin_pyro.vocabulary import Vocabulary

__all__ = ["sample_text", "sample_tokens"]


def sample_text(
    model: LanguageModel,
    prompt: str = "",
    length: int = 60,
    *,
    vocabulary: Vocabulary | None = None,
    temperature: float = 1.0,
    sample: bool = False,
    generator: torch.Generator | None = None,
) -> str:
    """Continues a text, each word (or character) given all before it.

    If γ or weights have priors, they are drawn from these once for the whole text.

    Args:
        model: the model; its training mode is left as it was.
        prompt: the text to continue. Unknown words are read as ``<unk>``, which is never drawn; an
            empty prompt starts a line.
        length: how many words or characters to draw.
        vocabulary: the model's vocabulary; ``model.vocabulary`` by default.
        temperature: τ in softmax(logits/τ).
        sample: True draws noise, from one noisy RNN for the whole text; False runs the mean path.
        generator: seeds the draws and leaves torch's random state as it was; by default the draws
            use that state.

    Returns:
        The prompt and its continuation.

    Raises:
        TypeError: if ``model`` is no :class:`SequenceModel`.
        ValueError: if ``length`` or ``temperature`` is not positive, ``temperature`` is infinite,
            or there is no vocabulary.

    Example:
        >>> from noisin_pyro import NoisyRNN, Vocabulary
        >>> vocabulary = Vocabulary.build("the cat saw the dog".split())
        >>> model = LanguageModel(len(vocabulary), NoisyRNN(4, 6))
        >>> model.vocabulary = vocabulary
        >>> text = sample_text(model, "the cat", 5, generator=torch.Generator().manual_seed(1))
        >>> text.startswith("the cat")
        True
    """
    check_model("sample_text", model)
    known = getattr(model, "vocabulary", None) if vocabulary is None else vocabulary
    if known is None:
        raise ValueError("the model has no vocabulary; give vocabulary=, as the corpus has it")
    read = known.split(prompt)
    x = known.encode(read or [EOS]).unsqueeze(1).to(model.rnn.like.device)
    options: dict[str, Any] = {"temperature": temperature, "sample": sample, "generator": generator}
    drawn = sample_tokens(model, x, length, exclude=[known.ids[UNK]], **options)
    return known.join([*read, *known.decode(drawn.flatten())])


def sample_tokens(
    model: LanguageModel,
    x: Tensor,
    steps: int,
    *,
    temperature: float = 1.0,
    sample: bool = False,
    exclude: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continues a batch of texts. Tokens are drawn on the CPU, whatever the model's device.

    Args:
        model, temperature, sample, generator: as in :func:`sample_text`.
        x: token ids of the texts, with shape (T, B), on the model's device.
        steps: N, how many tokens to draw.
        exclude: the ids that are never drawn.

    Returns:
        Ids with shape (N, B).

    Raises:
        ValueError: if ``steps`` or ``temperature`` is not positive, or ``temperature`` is infinite.

    Example:
        >>> from noisin_pyro import NoisyRNN
        >>> model = LanguageModel(10, NoisyRNN(4, 6))
        >>> sample_tokens(model, torch.zeros(3, 2, dtype=torch.long), 5).shape
        torch.Size([5, 2])
    """
    check_count("length", steps)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")

    def draw(emitted: Any) -> Tensor:
        logits = emitted.logits[-1].cpu().to(torch.float64, copy=True)
        logits[:, list(exclude)] = -torch.inf
        # At most 0, so that none overflows to +inf, however low the temperature.
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature
        probabilities = logits.softmax(-1).to(emitted.logits.dtype)
        return torch.multinomial(probabilities, 1).T.to(x.device)

    with (
        torch.no_grad(),
        evaluating(model),
        seeded_by(generator, x.device),
        given(draw_priors(model, x[:1]) if has_priors(model) else None),
    ):
        return continue_sequences(model, x, steps, None, draw=draw, sample=sample)
