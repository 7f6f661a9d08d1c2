"""A language model as a folder of data: config.json, model.safetensors and vocabulary.txt.

The folder may come from a stranger. Nothing in it is executed, and the memory that loading
allocates is bounded by the size of the file of weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from noisin_pyro.atomic import replacing
from noisin_pyro.memory import available_memory
from noisin_pyro.models.description import Description, describe
from noisin_pyro.spread.base import FLOOR
from noisin_pyro.vocabulary import Vocabulary

if TYPE_CHECKING:
    from noisin_pyro.models.language import LanguageModel

__all__ = [
    "CONFIG",
    "FILES",
    "VOCABULARY",
    "WEIGHTS",
    "load_folder",
    "load_weights",
    "save_folder",
    "save_weights",
]

CONFIG, WEIGHTS, VOCABULARY = "config.json", "model.safetensors", "vocabulary.txt"
FILES = (CONFIG, WEIGHTS, VOCABULARY)
MOST_BYTES = 1_000_000  # greatest size of config.json

Model = TypeVar("Model", bound="LanguageModel")


def save_folder(model: LanguageModel, folder: Path, vocabulary: Vocabulary | None) -> None:
    """Writes a model; see :meth:`LanguageModel.save_pretrained`."""
    if vocabulary is not None and len(vocabulary) != model.vocab_size:
        raise ValueError(
            f"the vocabulary has {len(vocabulary)} words and the model {model.vocab_size}; give "
            "the one it was trained with"
        )
    values = describe(model)
    if vocabulary is not None:
        values["tokens"] = vocabulary.tokens
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    weights = weights_of(model)
    _check_whole(
        _wanted(Description(json.loads(text), trust_code=True), type(model), weights), weights
    )
    _safetensors()
    folder.mkdir(parents=True, exist_ok=True)
    if vocabulary is not None:
        vocabulary.save(folder / VOCABULARY)
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(text, encoding="utf-8")
    save_weights(model, folder)


def save_weights(model: LanguageModel, folder: Path) -> None:
    """Writes ``model.safetensors`` alone into a folder that exists.

    Raises:
        ImportError: if safetensors is not installed.
        OSError: if the file cannot be written; one that was there stays.
    """
    with replacing(folder / WEIGHTS) as temporary:
        # Not save_file, which makes a file that only its owner can read.
        temporary.write_bytes(_safetensors().torch.save(weights_of(model)))


def load_weights(model: LanguageModel, folder: Path) -> None:
    """Reads a file of :func:`save_weights` into a model of the same sizes.

    Raises:
        ImportError: if safetensors is not installed.
        ValueError: if the file does not hold the weights of such a model.
    """
    path = folder / WEIGHTS
    with _one_sentence(f"{path} does not hold the weights of this model"):
        weights = _safetensors().torch.load_file(path)
        model.load_state_dict(_with_tied(weights, model.tied_weights))


def load_folder(kind: type[Model], folder: Path, name: str, trust_code: bool) -> Model:
    """Reads a model; see :meth:`LanguageModel.from_pretrained`."""
    for needed in (CONFIG, WEIGHTS):
        if not (folder / needed).is_file():
            raise ValueError(
                f"{folder} is not the folder of a model, its {needed} is missing; give the folder "
                "that save_pretrained or noisin train wrote"
            )
    path = folder / CONFIG
    other = f"{folder / WEIGHTS} does not hold the weights of this model"
    with _one_sentence(f"{path} describes no model"):
        description = Description(_read_json(path), trust_code)
    with _one_sentence(other):
        weights = _read_weights(folder / WEIGHTS, description)
    with _one_sentence(f"{path} describes no model that can be built"):
        wanted = _wanted(description, kind, weights)
    with _one_sentence(other):
        _check_whole(wanted, weights)
        # The initial weights are replaced below, so their draws must not change the random state.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            model = description.build(kind, weights, name)
        model.load_state_dict(_with_tied(weights, description.tied_weights))
    if (folder / VOCABULARY).is_file():
        model.vocabulary = Vocabulary.load(folder / VOCABULARY, description.tokens)
        if len(model.vocabulary) != model.vocab_size:
            raise ValueError(
                f"{folder / VOCABULARY} has {len(model.vocabulary)} words and the model "
                f"{model.vocab_size}; bring back the one it was saved with"
            )
    return model.eval()


@contextmanager
def _one_sentence(about: str) -> Iterator[None]:
    """Turns any exception into a ValueError of one sentence that begins with ``about``.

    ImportError and OSError pass unchanged.
    """
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:  # json, safetensors and torch have exceptions of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{about}: {reason}") from None


def _read_json(path: Path) -> Any:
    """The content of a JSON file of at most ``MOST_BYTES``, without repeated entries or NaN."""
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES:,} bytes")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            raise ValueError("an entry is repeated")
        return values

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    return json.loads(data.decode(), object_pairs_hook=once, parse_constant=refuse)


def _read_weights(path: Path, description: Description) -> dict[str, Tensor]:
    """The tensors of a file, whose shapes are compared with the description before they are read.

    Raises:
        ValueError: if they differ, or the file and the model together exceed the memory.
    """
    size, memory = path.stat().st_size, available_memory()
    if 2 * size > memory:
        raise ValueError(
            f"it needs about {2 * size / 1e9:,.1f} GB of memory, but there are {memory / 1e9:,.1f}"
        )
    with _safetensors().safe_open(path, framework="pt") as file:
        names = list(file.keys())
        description.check_sizes({n: tuple(file.get_slice(n).get_shape()) for n in names})
        return {name: file.get_tensor(name) for name in names}


def _wanted(
    description: Description, kind: type[LanguageModel], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of the described model as tensors on the meta device, which need no memory.

    Raises:
        ValueError, TypeError: if the model cannot be built.
    """
    description.check_sizes({name: tuple(value.shape) for name, value in weights.items()})
    with torch.device("meta"):
        return weights_of(description.build(kind, weights))


def _check_whole(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Compares the weights of a file with those of a model.

    Args:
        wanted: the model's weights by their names.
        weights: the file's weights by their names.

    Raises:
        ValueError: if a weight is missing or unknown, has another shape, or is not floating-point.
    """
    for name in sorted(wanted.keys() | weights.keys()):
        shapes = [tuple(part[name].shape) if name in part else None for part in (wanted, weights)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{name} must have shape {shapes[0]}, got {shapes[1]}")
        if not weights[name].is_floating_point():
            raise ValueError(f"{name} must be floating-point, got {weights[name].dtype}")


def weights_of(model: LanguageModel) -> dict[str, Tensor]:
    """All weights by their names; a tied matrix occurs only as ``embedding.weight``.

    The floor of a learned γ stands in the description of the model, and so does a number as γ of
    the input noise, which files of 0.4.0 do not hold.
    """
    weights = {
        name: value.contiguous()
        for name, value in model.state_dict().items()
        if not (name.startswith(("rnn.spread_l", "input_spread")) and name.endswith(FLOOR))
    }
    if "input_spread" in model._numbers:
        del weights["input_spread"]
    if model.tied_weights:
        del weights["emission.weight"]
    return weights


def _with_tied(weights: dict[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """The inverse of :func:`weights_of`: the weights with both names of a tied matrix."""
    return {**weights, "emission.weight": weights["embedding.weight"]} if tied else weights


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            'the folder of a model needs safetensors; run pip install "noisin-pyro[lm]"'
        ) from error
    return safetensors
