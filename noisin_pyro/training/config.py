"""The configuration of a training run: one flat, frozen dataclass. It imports no torch."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args, get_type_hints

from noisin_pyro.atomic import replacing
from noisin_pyro.nn.registry import RNNS
from noisin_pyro.noise.class_path import check_class_path
from noisin_pyro.tokens import Tokens
from noisin_pyro.training.former_names import renamed
from noisin_pyro.training.option_types import as_plain, describe_type, fits
from noisin_pyro.training.safe_yaml import load_yaml
from noisin_pyro.training.schedule import Schedule

__all__ = [
    "DROPOUTS",
    "HINTS",
    "LOCK",
    "TrainConfig",
    "check_file",
    "check_types",
    "is_run_folder",
]

LOCK = ".lock"  # the lock file of a run folder
#: The names that ``--noise`` takes: none, and the families of the library.
NOISES = (
    *("none", "gaussian", "laplace", "logistic", "gumbel", "gamma", "beta", "bernoulli", "poisson"),
    *("exponential", "uniform", "chi2", "lognormal"),
)
#: Options that a resumed run may change. Of the corpus the text is compared, not the name.
FREE = frozenset(
    (
        *("corpus", "data_dir", "out", "resume", "tensorboard", "trust_code", "device"),
        *("epochs", "patience", "checkpoint_seconds", "quiet"),
    )
)
#: Options that a resumed run may change too, and whose change its record names.
CHANGEABLE = frozenset(("learning_rate", "clip_norm", "schedule"))
DROPOUTS = ("dropout_words", "dropout_input", "dropout_layers", "dropout_output")
#: The values of ``--cell``.
Cell: TypeAlias = Literal[tuple(RNNS)]  # type: ignore[valid-type]  # the choices of --cell


@dataclass(frozen=True)
class TrainConfig:
    """The options of a training run, which are those of ``noisin train``.

    Args:
        corpus: a name (pydoc, hmm, ptb, wikitext-2, wikitext-103, text8, enwik8), the path of a
            text file or folder, or hf:NAME for a data set of the Hugging Face Hub.
        data_dir: the folder with the files of ptb, wikitext-2, wikitext-103, text8 or enwik8, or
            one in which that lies under the corpus's name; they are downloaded if omitted.
        tokens: what a token is; auto is characters for text8, bytes for enwik8, and words for any
            other corpus.
        train_tokens: train on this many tokens from the start of the training split; 0 takes all.
            The vocabulary stays that of the whole split.
        cell: the recurrent cell.
        embedding_size: width of the word embedding.
        hidden_size: units per layer.
        layers: number of layers.
        noise: none, a family (gaussian, laplace, logistic, gumbel, gamma, beta, bernoulli, poisson,
            exponential, uniform, chi2, lognormal), the class path of a distribution, or a YAML
            mapping with class_path and init_args. With none, injection, spread and noise_to have
            no effect.
        injection: additive (z = h + γε) or multiplicative (z = h(1 + γε)).
        spread: γ, one number, or a list with one per layer such as [0.5, 0.4]; its initial value if
            learn_spread is true.
        learn_spread: learn γ by gradient on the objective.
        spread_floor: the lower bound of a learned γ; without learn_spread it has no effect.
        noise_to: what reads the noisy state: both the next step and the layer above (both), the
            layer above alone (output), the next step alone (recurrence), or the recurrent weights
            alone (weights). The layer above the last is the softmax.
        tied: draw the noise and dropout's masks once per window instead of once per step.
        variational_dropout: rate of variational dropout (Gal and Ghahramani 2016), which needs
            noise none: one mask per window on words, input, recurrent state, between the layers and
            before the softmax. In a GRU the recurrent mask is on the input of the recurrent
            weights; a linear recurrence has no recurrent mask.
        zoneout: probability that a unit of the state keeps its previous value (Krueger et al.
            2016); for an LSTM also a list of two, for h and for c.
        weight_drop: probability of dropping a recurrent weight, one mask per window (Merity et al.
            2017).
        dropout: rate of dropout on every connection that is not recurrent (Zaremba et al. 2014):
            the embedded input, between the layers, and before the softmax.
        dropout_words: rate of dropout of word types, one mask per window.
        dropout_input: rate of dropout on the embedded input.
        dropout_layers: rate of dropout between the layers.
        dropout_output: rate of dropout before the softmax.
        tied_weights: share the embedding's matrix with the softmax.
        optimizer: adam, sgd, or asgd, which is SGD evaluated with the average of its weights since
            the second epoch.
        learning_rate: the initial learning rate, for a loss in nats per token.
        schedule: of the learning rate: constant, halve-after:K (halved after each epoch from the
            Kth on), or divide-when-worse:D (divided by D when the validation loss does not fall).
        weight_decay: weight decay of all parameters but γ; decoupled from the gradient for adam
            (Loshchilov and Hutter 2019), added to it for sgd and asgd.
        clip_norm: largest global norm of the gradient; 0 does not clip.
        epochs: maximum number of passes over the training text.
        patience: stop after this many epochs without a new lowest validation loss; 0 never stops
            early.
        batch_size: number of contiguous streams read in parallel, over all devices together.
        unroll: steps of truncated backpropagation through time.
        seed: seed of the initial weights and of the noise.
        device: where to train; auto takes an accelerator if there is one.
        devices: number of processes per host; each trains on its share of the streams.
        nodes: number of hosts; with more than one, start noisin with torchrun or srun.
        precision: precision of training; evaluation is in single precision.
        out: the folder to write to.
        resume: continue what the folder out holds, or start if it holds nothing.
        checkpoint_seconds: seconds of training between two checkpoints within an epoch.
        tensorboard: write TensorBoard logs too.
        quiet: show no progress.
        trust_code: import and call any class that noise names by class_path. Accepted on the
            command line only, never in a file.

    Raises:
        ValueError: if an option is of another type or out of range, or two do not fit each other.
    """

    corpus: str = "pydoc"
    data_dir: str | None = None
    tokens: Literal["auto", "words", "characters", "bytes"] = "auto"
    train_tokens: int = 0
    cell: Cell = "lstm"
    embedding_size: int = 128
    hidden_size: int = 128
    layers: int = 1
    noise: str | dict[str, Any] = "gaussian"
    injection: Literal["additive", "multiplicative"] = "multiplicative"
    spread: float | list[float] = 1.0
    learn_spread: bool = False
    spread_floor: float = 0.1
    noise_to: Literal["both", "output", "recurrence", "weights"] = "both"
    tied: bool = False
    variational_dropout: float = 0.0
    zoneout: float | list[float] = 0.0
    weight_drop: float = 0.0
    dropout: float = 0.0
    dropout_words: float = 0.0
    dropout_input: float = 0.0
    dropout_layers: float = 0.0
    dropout_output: float = 0.0
    tied_weights: bool = False
    optimizer: Literal["adam", "sgd", "asgd"] = "adam"
    learning_rate: float = 0.004
    schedule: str = "constant"
    weight_decay: float = 0.0
    clip_norm: float = 5.0
    epochs: int = 15
    patience: int = 3
    batch_size: int = 20
    unroll: int = 35
    seed: int = 1
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    devices: int = 1
    nodes: int = 1
    precision: Literal["32", "bf16-mixed"] = "32"
    out: str = "runs/noisin"
    resume: bool = False
    checkpoint_seconds: float = 60.0
    tensorboard: bool = False
    quiet: bool = False
    trust_code: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):  # NumPy and torch scalars cannot be written to YAML or JSON
            object.__setattr__(self, field.name, as_plain(getattr(self, field.name)))
        check_types({field.name: getattr(self, field.name) for field in fields(self)})
        self._check_ranges()
        self._check_dropout()
        for name in ("corpus", "out"):
            text = getattr(self, name)
            if not text or not text.isprintable():
                raise ValueError(f"{name} must be a path of printable characters, got {text!r}")
        Schedule.parse(self.schedule)
        self._check_noise()
        if self.tied_weights and self.embedding_size != self.hidden_size:
            raise ValueError(
                f"tied_weights needs embedding_size equal to hidden_size, got "
                f"{self.embedding_size} and {self.hidden_size}; make them equal or untie"
            )

    def _check_ranges(self) -> None:
        """Refuses a number that is out of range."""
        for name in ("embedding_size", "hidden_size", "layers", "epochs", "batch_size", "unroll"):
            self._require(name, getattr(self, name) >= 1, "be at least 1")
            self._require(name, getattr(self, name) < 2**31, "be below 2**31")
        self._require("layers", self.layers <= 100, "be at most 100")
        for name in (*DROPOUTS, "dropout", "variational_dropout", "weight_drop"):
            self._require(name, 0 <= getattr(self, name) < 1, "lie in [0, 1)")
        rate = self.learning_rate
        self._require("learning_rate", math.isfinite(rate) and rate > 0, "be positive and finite")
        decay = self.weight_decay
        self._require("weight_decay", math.isfinite(decay) and decay >= 0, "be at least 0")
        self._require("train_tokens", self.train_tokens >= 0, "be at least 0, which takes all")
        self._require("clip_norm", self.clip_norm >= 0, "be at least 0, which does not clip")
        self._require("patience", self.patience >= 0, "be at least 0, which never stops early")
        self._require("devices", self.devices >= 1, "be at least 1")
        self._require("nodes", self.nodes >= 1, "be at least 1")
        count = self.devices * self.nodes
        self._require(
            "batch_size", self.batch_size % count == 0, f"be a multiple of {count} devices"
        )
        self._require("seed", 0 <= self.seed < 2**32, "lie in [0, 2**32)")
        self._require("spread_floor", self.spread_floor >= 0, "be at least 0")
        self._require("checkpoint_seconds", self.checkpoint_seconds >= 0, "be at least 0")

    def _check_dropout(self) -> None:
        """Refuses dropout, zoneout or weight drop that the model has no place for, or has twice."""
        places = (self.dropout_input, self.dropout_layers, self.dropout_output)
        self._require(
            "dropout",
            not (self.dropout and any(places)),
            "be 0 unless dropout_input, dropout_layers and dropout_output, whose places it takes, "
            "are 0",
        )
        self._require(
            "variational_dropout",
            not self.variational_dropout or self._no_other_noise(),
            "be 0 unless noise is none, learn_spread false, noise_to both, tied false and every "
            "other dropout 0, whose places it takes",
        )
        rates = self.zoneout if isinstance(self.zoneout, list) else [self.zoneout]
        parts = 2 if self.cell == "lstm" else 1
        if not (len(rates) in (1, parts) and all(0 <= rate < 1 for rate in rates)):
            two = ", or two of them, for h and c" if parts == 2 else ""
            raise ValueError(f"zoneout must be a probability in [0, 1){two}, got {self.zoneout}")
        if self.weight_drop and RNNS[self.cell].mask is None:
            raise ValueError(
                f"weight_drop needs a cell with recurrent weights, got {self.cell}; leave it out"
            )
        if self.dropout_layers and self.layers == 1:
            raise ValueError(
                f"dropout_layers lies between layers, of which there is 1, got "
                f"{self.dropout_layers}; use dropout_output, or more layers"
            )

    def _check_noise(self) -> None:
        """Refuses a noise or a spread that fits no model, without torch."""
        if isinstance(self.noise, dict) or "." in self.noise:
            named = self.noise if isinstance(self.noise, dict) else {"class_path": self.noise}
            check_class_path(named, self.trust_code)
        elif self.noise not in NOISES:
            raise ValueError(
                f"unknown noise {self.noise!r}; the known ones are {', '.join(NOISES)}"
            )
        elif self.noise == "none" and self.learn_spread and not self.variational_dropout:
            raise ValueError("learn_spread needs a noise whose spread it learns, got noise none")
        spreads = self.spread if isinstance(self.spread, list) else [self.spread]
        if isinstance(self.spread, list) and len(spreads) != self.layers:
            raise ValueError(
                f"spread needs one value or one for each of the {self.layers} layers, got "
                f"{len(spreads)}"
            )
        for spread in spreads:
            if not (math.isfinite(spread) and spread > 0):
                raise ValueError(
                    f"spread must be positive and finite, got {spread}; use noise none for a "
                    "deterministic RNN"
                )
            if self.learn_spread and spread <= self.spread_floor:
                raise ValueError(
                    f"the learned spread must start above its floor {self.spread_floor}, got "
                    f"{spread}; raise spread or lower spread_floor"
                )

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ValueError(f"{name} must {rule}, got {getattr(self, name)}")

    def _no_other_noise(self) -> bool:
        plain = (self.noise, self.learn_spread, self.noise_to, self.tied)
        dropouts = any(getattr(self, name) for name in (*DROPOUTS, "dropout"))
        return plain == ("none", False, "both", False) and not dropouts

    @property
    def read_as(self) -> Tokens | None:
        """The ``tokens`` of ``load_corpus``; None is the default of the corpus."""
        return None if self.tokens == "auto" else self.tokens

    @property
    def deterministic(self) -> bool:
        """Whether the run has neither noise nor variational dropout, which is noise too."""
        return self.noise == "none" and not self.variational_dropout

    def differences(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """The options that a resumed run may not change and that differ, as ``(self, other)``."""
        return self._differing(other, {field.name for field in fields(self)} - CHANGEABLE - FREE)

    def changes(self, other: TrainConfig) -> dict[str, tuple[Any, Any]]:
        """The options of training that ``other``, which resumes this run, changes."""
        return self._differing(other, CHANGEABLE)

    def _differing(self, other: TrainConfig, names: Set[str]) -> dict[str, tuple[Any, Any]]:
        pairs = {name: (getattr(self, name), getattr(other, name)) for name in sorted(names)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def to_dict(self, *omit: str) -> dict[str, Any]:
        """The options by name, without ``trust_code``, which no file may hold, and ``omit``."""
        leave_out = {"trust_code", *omit}
        return {name: value for name, value in asdict(self).items() if name not in leave_out}

    def save(self, path: Path) -> None:
        """Writes YAML that ``noisin train --config`` reads, without out, resume and quiet."""
        import yaml

        values = self.to_dict("out", "resume", "quiet")
        with replacing(path) as temporary:
            temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")

    @classmethod
    def from_dict(cls, values: dict[str, Any], trust_code: bool = False) -> TrainConfig:
        """The configuration in a record or a run folder, where options may have former names.

        Args:
            values: the options by name.
            trust_code: the option of that name, which ``values`` may not set.

        Raises:
            ValueError: if an option is unknown or does not fit, or ``values`` set ``trust_code``.

        Example:
            >>> TrainConfig.from_dict({"feedback": False}).noise_to
            'output'
        """
        values = renamed(values)
        check_file(values)
        return cls(**{**values, "trust_code": trust_code})

    @classmethod
    def load(cls, path: Path, trust_code: bool = False) -> TrainConfig:
        """Reads a file that :meth:`save` wrote; ``out`` becomes the folder of the file.

        Raises:
            ValueError: if the file is missing or no configuration.
        """
        values = {**load_yaml(path), "out": str(path.parent), "resume": False}
        try:
            return cls.from_dict(values, trust_code)
        except ValueError as error:
            raise ValueError(f"{path} is no configuration: {error}") from None


def is_run_folder(folder: Path) -> bool:
    """Whether ``noisin train`` has begun a run in a folder."""
    return (folder / LOCK).exists() or (folder / "vocabulary.txt").exists()


def check_file(values: dict[str, Any]) -> None:
    """Refuses options in a file that are unknown, of another type, or for the command line only.

    Raises:
        ValueError: if there is such an option; the sentence names it.
    """
    if values.get("trust_code", False) is not False:
        raise ValueError("trust_code stands on the command line, never in a file; leave it out")
    unknown = sorted(values.keys() - HINTS.keys())
    if unknown:
        raise ValueError(f"there is no option {unknown[0]!r}; see noisin train --help")
    check_types(values)


def check_types(values: dict[str, Any], hints: dict[str, Any] | None = None) -> None:
    """Refuses options of another type than the configuration's.

    Args:
        values: the options by their names.
        hints: the types by these names; those of :class:`TrainConfig` if omitted.

    Raises:
        ValueError: if there is one; the sentence names it.
    """
    for name, value in values.items():
        hint = (hints or HINTS)[name]
        known = get_args(hint)
        if fits(value, hint):
            continue
        if all(isinstance(choice, str) for choice in known) and known:
            raise ValueError(f"unknown {name} {value!r}; the known ones are {', '.join(known)}")
        raise ValueError(f"{name} must be {describe_type(hint)}, got {value!r}")


#: The type of each option.
HINTS = get_type_hints(TrainConfig)
