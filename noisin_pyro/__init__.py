"""Noise-based regularisation of recurrent neural networks (NOISIN) as Pyro programs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisin_pyro.annealing import AnnealedELBO
    from noisin_pyro.batching import streams, windows
    from noisin_pyro.corpora import Corpus, Vocabulary, load_corpus
    from noisin_pyro.emissions import BernoulliEmission, CategoricalEmission, NormalEmission
    from noisin_pyro.evaluation import Evaluation, evaluate
    from noisin_pyro.guide import PriorGuide
    from noisin_pyro.model import LanguageModel, SequenceModel, detach_state
    from noisin_pyro.noise import FAMILIES, Additive, MeanParameterized, Multiplicative, family
    from noisin_pyro.objective import NoisinELBO
    from noisin_pyro.rnn import NoisyGRU, NoisyLSTM, NoisyRNN, from_torch
    from noisin_pyro.smoothing import SmoothingGuide
    from noisin_pyro.spread import Learned

__version__ = "0.1.0"

_HOMES = {
    "annealing": ("AnnealedELBO",),
    "batching": ("streams", "windows"),
    "corpora": ("Corpus", "Vocabulary", "load_corpus"),
    "emissions": ("BernoulliEmission", "CategoricalEmission", "NormalEmission"),
    "evaluation": ("Evaluation", "evaluate"),
    "guide": ("PriorGuide",),
    "model": ("LanguageModel", "SequenceModel", "detach_state"),
    "noise": ("FAMILIES", "Additive", "MeanParameterized", "Multiplicative", "family"),
    "objective": ("NoisinELBO",),
    "rnn": ("NoisyGRU", "NoisyLSTM", "NoisyRNN", "from_torch"),
    "smoothing": ("SmoothingGuide",),
    "spread": ("Learned",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    # Names are imported when first used, so that `noisin --help` need not wait for torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
