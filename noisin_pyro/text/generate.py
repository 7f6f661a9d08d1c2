"""Drawing text from a language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from noisin_pyro.models.language import LanguageModel
from noisin_pyro.text.corpora import Vocabulary
from noisin_pyro.text.evaluation import evaluating

__all__ = ["continue_text"]


def continue_text(
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Sequence[str],
    words: int,
    temperature: float = 1.0,
    seed: int = 1,
) -> list[str]:
    """Draws words one at a time along the mean path, each given all before it.

    Args:
        model: the model, with ``len(vocabulary)`` classes; its training mode is left as it was.
        vocabulary: its words; unknown ones are read as ``<unk>``, which is never drawn.
        prompt: the words to continue; an empty prompt starts a line.
        words: how many to draw.
        temperature: τ in softmax(logits/τ).
        seed: of a random generator of its own.

    Raises:
        ValueError: if ``words`` or ``temperature`` is not positive.

    Example:
        >>> from noisin_pyro import NoisyRNN
        >>> from noisin_pyro.text.corpora import Vocabulary
        >>> vocabulary = Vocabulary.build(["a", "b"])
        >>> model = LanguageModel(len(vocabulary), NoisyRNN(4, 6))
        >>> len(continue_text(model, vocabulary, ["a"], 5))
        5
    """
    if words < 1:
        raise ValueError(f"words must be at least 1, got {words}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    generator = torch.Generator().manual_seed(seed)
    unknown = vocabulary.encode(["<unk>"]).item()
    x = vocabulary.encode(list(prompt) or ["<eos>"]).unsqueeze(1)
    device = next(model.parameters()).device
    drawn: list[str] = []
    state = None
    with torch.no_grad(), evaluating(model):
        for _ in range(words):
            emitted, state = model.predict(x.to(device), state, sample=False)
            logits = emitted.logits[-1, 0].cpu() / temperature
            logits[unknown] = -torch.inf
            x = torch.multinomial(logits.softmax(-1), 1, generator=generator).view(1, 1)
            drawn += vocabulary.decode(x.flatten())
    return drawn
