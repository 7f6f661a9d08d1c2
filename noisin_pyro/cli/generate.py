"""``noisin generate``."""

from __future__ import annotations

from noisin_pyro.cli.output import say, warn

__all__ = ["generate"]


def generate(
    run: str,
    prompt: str = "",
    words: int = 60,
    temperature: float = 1.0,
    noise: bool = False,
    seed: int = 1,
    trust_code: bool = False,
) -> None:
    """Continue a prompt with the model of a run, or a saved one.

    Args:
        run: the folder of a finished run, or of a model saved by save_pretrained.
        prompt: the text to continue.
        words: number of tokens to draw: words, characters or bytes, whichever the model predicts.
        temperature: below 1 sharpens the predictions, above 1 flattens them.
        noise: draw the RNN's noise too; by default its mean path is run.
        seed: seed of the draws.
        trust_code: import and call any class that the run's noise names by class_path.

    Raises:
        ValueError: if there is no such run, an option does not fit, or the model knows no word of
            the prompt.
    """
    import torch

    from noisin_pyro.text.generate import sample_text
    from noisin_pyro.training.folder import load_run

    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}")
    if words < 1:
        raise ValueError(f"words must be at least 1, got {words}")
    _, vocabulary, model = load_run(run, trust_code)
    given = vocabulary.split(prompt)
    unknown = [word for word in given if word not in vocabulary]
    if given and len(unknown) == len(given):
        raise ValueError(
            f"the model knows no word of the prompt {prompt!r}; use words of {run}/vocabulary.txt"
        )
    if unknown:
        warn(f"became <unk>: {', '.join(unknown)}")
    if noise and not any((*model.rnn.noise, *model.rnn.zoneout, model.input_noise)):
        warn(f"--noise has no effect, since the model of {run} has no noise")
    generator = torch.Generator().manual_seed(seed)
    text = sample_text(
        model, prompt, words, temperature=temperature, sample=noise, generator=generator
    )
    say(text.strip("\n"))
