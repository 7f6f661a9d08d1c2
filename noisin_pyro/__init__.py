"""Noise-based regularisation of recurrent neural networks (NOISIN) as Pyro programs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noisin_pyro.infer.annealed_elbo import AnnealedELBO
    from noisin_pyro.infer.noisin_elbo import NoisinELBO
    from noisin_pyro.infer.prior_guide import PriorGuide
    from noisin_pyro.infer.smoothing_guide import SmoothingGuide
    from noisin_pyro.models.language import LanguageModel
    from noisin_pyro.models.sequence import SequenceModel, detach_state
    from noisin_pyro.nn.emissions import BernoulliEmission, CategoricalEmission, NormalEmission
    from noisin_pyro.nn.linear_rnns import NoisyMinGRU, NoisyMinLSTM, NoisyRGLRU
    from noisin_pyro.nn.recurrent import NoisyRecurrent
    from noisin_pyro.nn.rnn import NoisyGRU, NoisyLSTM, NoisyRNN, from_torch, to_torch
    from noisin_pyro.noise.affine import Additive, Multiplicative
    from noisin_pyro.noise.families import FAMILIES, family
    from noisin_pyro.noise.mean_parameterized import MeanParameterized
    from noisin_pyro.noise.spread import Learned, spread_parameters
    from noisin_pyro.text.batching import streams, windows
    from noisin_pyro.text.corpora import Corpus, Vocabulary, load_corpus
    from noisin_pyro.text.evaluation import Evaluation, evaluate

__version__ = "0.1.0"

_HOMES = {
    "infer.annealed_elbo": ("AnnealedELBO",),
    "infer.noisin_elbo": ("NoisinELBO",),
    "infer.prior_guide": ("PriorGuide",),
    "infer.smoothing_guide": ("SmoothingGuide",),
    "models.language": ("LanguageModel",),
    "models.sequence": ("SequenceModel", "detach_state"),
    "nn.emissions": ("BernoulliEmission", "CategoricalEmission", "NormalEmission"),
    "nn.linear_rnns": ("NoisyMinGRU", "NoisyMinLSTM", "NoisyRGLRU"),
    "nn.recurrent": ("NoisyRecurrent",),
    "nn.rnn": ("NoisyGRU", "NoisyLSTM", "NoisyRNN", "from_torch", "to_torch"),
    "noise.affine": ("Additive", "Multiplicative"),
    "noise.families": ("FAMILIES", "family"),
    "noise.mean_parameterized": ("MeanParameterized",),
    "noise.spread": ("Learned", "spread_parameters"),
    "text.batching": ("streams", "windows"),
    "text.corpora": ("Corpus", "Vocabulary", "load_corpus"),
    "text.evaluation": ("Evaluation", "evaluate"),
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
