"""Noise-based regularisation of recurrent neural networks (NOISIN) as Pyro programs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `as` makes them public for type checkers
    from noisin_pyro.infer.annealed_elbo import AnnealedELBO as AnnealedELBO
    from noisin_pyro.infer.filtering_elbo import FilteringELBO as FilteringELBO
    from noisin_pyro.infer.forecast import forecast as forecast
    from noisin_pyro.infer.noisin_elbo import NoisinELBO as NoisinELBO
    from noisin_pyro.infer.prior_guide import PriorGuide as PriorGuide
    from noisin_pyro.infer.smoothing_guide import SmoothingGuide as SmoothingGuide
    from noisin_pyro.models.language import LanguageModel as LanguageModel
    from noisin_pyro.models.sequence import SequenceModel as SequenceModel
    from noisin_pyro.models.sequence import detach_state as detach_state
    from noisin_pyro.models.weight_priors import weight_priors as weight_priors
    from noisin_pyro.nn.convert import from_torch as from_torch
    from noisin_pyro.nn.convert import to_torch as to_torch
    from noisin_pyro.nn.emissions import BernoulliEmission as BernoulliEmission
    from noisin_pyro.nn.emissions import CategoricalEmission as CategoricalEmission
    from noisin_pyro.nn.emissions import NormalEmission as NormalEmission
    from noisin_pyro.nn.linear_rnns import NoisyMinGRU as NoisyMinGRU
    from noisin_pyro.nn.linear_rnns import NoisyMinLSTM as NoisyMinLSTM
    from noisin_pyro.nn.linear_rnns import NoisyRGLRU as NoisyRGLRU
    from noisin_pyro.nn.recurrent import NoisyRecurrent as NoisyRecurrent
    from noisin_pyro.nn.rnn import NoisyGRU as NoisyGRU
    from noisin_pyro.nn.rnn import NoisyLSTM as NoisyLSTM
    from noisin_pyro.nn.rnn import NoisyRNN as NoisyRNN
    from noisin_pyro.nn.weight_drop import weight_drop as weight_drop
    from noisin_pyro.noise.affine import Additive as Additive
    from noisin_pyro.noise.affine import Multiplicative as Multiplicative
    from noisin_pyro.noise.families import FAMILIES as FAMILIES
    from noisin_pyro.noise.families import family as family
    from noisin_pyro.noise.mean_parameterized import MeanParameterized as MeanParameterized
    from noisin_pyro.spread.learned import Learned as Learned
    from noisin_pyro.spread.trainable import spread_parameters as spread_parameters
    from noisin_pyro.text.batching import streams as streams
    from noisin_pyro.text.batching import windows as windows
    from noisin_pyro.text.corpora import Corpus as Corpus
    from noisin_pyro.text.corpora import Vocabulary as Vocabulary
    from noisin_pyro.text.corpora import load_corpus as load_corpus
    from noisin_pyro.text.evaluation import Evaluation as Evaluation
    from noisin_pyro.text.evaluation import evaluate as evaluate
    from noisin_pyro.text.generate import sample_text as sample_text

__version__ = "0.4.0"

_HOMES = {
    "infer.annealed_elbo": ("AnnealedELBO",),
    "infer.filtering_elbo": ("FilteringELBO",),
    "infer.noisin_elbo": ("NoisinELBO",),
    "infer.prior_guide": ("PriorGuide",),
    "infer.smoothing_guide": ("SmoothingGuide",),
    "infer.forecast": ("forecast",),
    "models.language": ("LanguageModel",),
    "models.sequence": ("SequenceModel", "detach_state"),
    "models.weight_priors": ("weight_priors",),
    "nn.emissions": ("BernoulliEmission", "CategoricalEmission", "NormalEmission"),
    "nn.convert": ("from_torch", "to_torch"),
    "nn.linear_rnns": ("NoisyMinGRU", "NoisyMinLSTM", "NoisyRGLRU"),
    "nn.recurrent": ("NoisyRecurrent",),
    "nn.rnn": ("NoisyGRU", "NoisyLSTM", "NoisyRNN"),
    "nn.weight_drop": ("weight_drop",),
    "noise.affine": ("Additive", "Multiplicative"),
    "noise.families": ("FAMILIES", "family"),
    "noise.mean_parameterized": ("MeanParameterized",),
    "spread.learned": ("Learned",),
    "spread.trainable": ("spread_parameters",),
    "text.batching": ("streams", "windows"),
    "text.corpora": ("Corpus", "Vocabulary", "load_corpus"),
    "text.evaluation": ("Evaluation", "evaluate"),
    "text.generate": ("sample_text",),
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
