"""The command line: ``noisin train | evaluate | generate | corpus | reproduce``.

Each command imports what it needs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

__all__ = ["main"]


def train(config: Any) -> None:
    """Train a language model and its deterministic twin."""
    from noisin_pyro.training.record import render_table
    from noisin_pyro.training.run import train as run

    _say(f"{config.corpus}: {config.layers}-layer {config.cell}, {config.hidden_size} units")
    record = run(config)
    _say("\n" + render_table(record))
    files = (
        "record.json, metrics.csv, curves.png, config.yaml, vocabulary.txt, best.ckpt, last.ckpt"
    )
    _say(f"\nwrote {config.out}/: {files}, model.safetensors")
    if len(record["models"]) > 1:
        _say(f"      {config.out}/deterministic/: best.ckpt, last.ckpt, model.safetensors")


def evaluate(run: str, split: Literal["train", "valid", "test"] = "test", samples: int = 0) -> None:
    """Perplexity of a finished run.

    Args:
        run: the folder that ``noisin train`` wrote.
        split: the split to predict.
        samples: 0 for the mean path, or the number of noisy RNNs to average over.
    """
    import torch

    from noisin_pyro.text.corpora import load_corpus
    from noisin_pyro.text.evaluation import evaluate as measure
    from noisin_pyro.training.run import load_run

    config, vocabulary, model = load_run(run)
    corpus = load_corpus(config.corpus, config.data_dir)
    if corpus.vocabulary != vocabulary:
        raise ValueError(
            f"the corpus {config.corpus!r} here is not the one {run!r} was trained on, its "
            "vocabulary differs (pydoc differs between Python versions); train again, or evaluate "
            "where it was trained"
        )
    torch.manual_seed(config.seed)
    fit = measure(model, corpus.split(split), samples)
    how = f"averaged over {samples} samples" if samples else "mean path"
    _say(f"{split}, {how}: {fit.nats:.4f} nats/token, perplexity {fit.perplexity:.2f}, "
         f"{fit.tokens:,} tokens")  # fmt: skip


def generate(
    run: str, prompt: str = "", words: int = 60, temperature: float = 1.0, seed: int = 1
) -> None:
    """Continue a prompt with a finished run's model.

    Args:
        run: the folder that ``noisin train`` wrote.
        prompt: the words to continue, separated by spaces.
        words: how many words to draw.
        temperature: below 1 sharpens the predictions, above 1 flattens them.
        seed: of the draws.
    """
    from noisin_pyro.text.generate import continue_text
    from noisin_pyro.training.run import load_run

    _, vocabulary, model = load_run(run)
    given = prompt.split()
    unknown = [word for word in given if word not in vocabulary]
    if given and len(unknown) == len(given):
        raise ValueError(
            f"the model knows no word of the prompt {prompt!r}; use words of {run}/vocabulary.txt"
        )
    if unknown:
        print(f"noisin: became <unk>: {', '.join(unknown)}", file=sys.stderr)
    drawn = continue_text(model, vocabulary, given, words, temperature, seed)
    lines = " ".join([*given, *drawn]).split("<eos>")
    _say("\n".join(line.strip() for line in lines).strip())


def corpus(name: str, data_dir: str | None = None, min_count: int | None = None) -> None:
    """Show a corpus's statistics, as in the paper's Table 1.

    Args:
        name: a name (pydoc, hmm, ptb, wikitext-2) or the path of a text file or folder.
        data_dir: the folder with a published corpus's files; downloaded if omitted.
        min_count: rarer words of the training text become <unk>.
    """
    from noisin_pyro.text.corpora import load_corpus

    loaded = load_corpus(name, data_dir, min_count)
    figures = loaded.statistics()
    rows = [
        ("corpus", loaded.name),
        *((f"tokens, {split}", f"{figures[split]:,}") for split in ("train", "valid", "test")),
        ("vocabulary", f"{figures['vocabulary']:,}"),
        ("OoV rate", f"{100 * figures['oov_rate']:.1f} %"),
    ]
    if loaded.optimal_perplexity:
        rows.append(("best possible test perplexity", f"{loaded.optimal_perplexity:.2f}"))
    rows.append(("SHA-256", loaded.sha256))
    for title, value in rows:
        _say(f"{title:<32}{value:>14}" if len(value) <= 14 else f"{title:<32}{value}")


def reproduce(
    experiment: Literal["table1", "table2", "table3", "figure2", "spread", "samples"],
    rows: str = "",
    corpus: str | None = None,
    data_dir: str | None = None,
    seeds: int = 3,
    grid: int | None = None,
    epochs: int | None = None,
    precision: Literal["32", "bf16-mixed"] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    jobs: int = 1,
    results: str = "results/reproduce",
    work: str = "runs/reproduce",
    render: bool = False,
) -> None:
    """Run and render the paper's tables and figures.

    Args:
        experiment: table1, table2, table3, figure2, spread (γ by epoch) or samples (averaging).
        rows: some rows of it, separated by commas; all if omitted.
        corpus: another text than the paper's, such as pydoc.
        data_dir: the folder with the published corpora's files or folders; downloaded if omitted.
        seeds: seeds of the hyper-parameter with the lowest validation perplexity.
        grid: try only this many of each method's hyper-parameters.
        epochs: another limit than the recipes'.
        precision: another precision than 32.
        device: auto, cpu or cuda.
        jobs: trainings at a time.
        results: where records and what is rendered from them go.
        work: where checkpoints go until a run has its record.
        render: only render what the records hold.
    """
    from pathlib import Path

    from noisin_pyro.experiments.recipe import Options
    from noisin_pyro.experiments.reproduce import reproduce as run

    options = Options(corpus, data_dir, epochs, grid, seeds, device, precision)
    wanted = [row.strip() for row in rows.split(",") if row.strip()]
    try:
        text, failures = run(
            experiment,
            options,
            wanted,
            results=Path(results),
            work=Path(work),
            jobs=jobs,
            train=not render,
        )
    except KeyboardInterrupt:
        print("noisin: stopped, nothing is lost; the same command goes on", file=sys.stderr)
        raise
    _say(text)
    for failure in failures:
        print(f"noisin: {failure.run.name} failed: {failure.reason}", file=sys.stderr)
    if failures:
        raise SystemExit(1)


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "corpus": corpus,
    "reproduce": reproduce,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code, 2 for bad input and 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError, ImportError, FloatingPointError) as error:
        print(f"noisin: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"noisin: {error.filename or 'a file'} cannot be used ({error.strerror or error}); "
            "give another path",
            file=sys.stderr,
        )
        return 2


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        _say(_usage())
        return 0 if arguments else 2
    name = arguments[0]
    if name == "--version":
        from noisin_pyro import __version__

        _say(__version__)
        return 0
    if name not in COMMANDS:
        raise ValueError(f"unknown command {name!r}; the known ones are {', '.join(COMMANDS)}")
    try:
        from jsonargparse import ArgumentParser
    except ImportError:
        raise ImportError(
            'the command line needs the extra lm; run pip install "noisin-pyro[lm]"'
        ) from None
    from argparse import ArgumentError

    command = COMMANDS[name]
    parser = ArgumentParser(
        prog=f"noisin {name}",
        description=_summary(command),
        exit_on_error=False,
        default_env=False,
    )
    try:
        if name == "train":
            return _train(parser, arguments[1:])
        parser.add_function_arguments(command, as_positional=True)
        options = parser.parse_args(arguments[1:])
        command(**options.as_dict())
    except ArgumentError as error:
        raise ValueError(f"{_sentence(str(error.message))}; see noisin {name} --help") from None
    return 0


def _train(parser: Any, arguments: list[str]) -> int:
    from noisin_pyro.training.config import TrainConfig

    parser.add_argument("--config", action="config", help="a YAML file with any of the options")
    parser.add_class_arguments(TrainConfig)
    options = parser.parse_args(arguments).as_dict()
    options.pop("config", None)
    config = TrainConfig(**options)
    from noisin_pyro.training.loop import Interrupted  # after what can be refused without torch

    try:
        train(config)
    except Interrupted:
        print(
            f"noisin: stopped at the end of the step, nothing is lost; go on with "
            f"noisin train --config {options['out']}/config.yaml --resume true",
            file=sys.stderr,
        )
        return 130
    return 0


def _sentence(message: str) -> str:
    """What jsonargparse says of a wrong value, as value and rule."""
    found = re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL)
    if not found:
        return message
    key, text = found.groups()
    value = re.search(r".*(?:Got value|Given value): (.*)$", text, re.DOTALL)
    if not value:
        return f"{key}: {text}"
    choices = re.search(r"Literal\[(.*?)\]", text)
    if choices:
        known = choices[1].replace("'", "")
        return f"unknown {key} {value[1]!r}; the known ones are {known}"
    subtypes = re.search(r"Subtypes: \[(.*)\]\s+Errors", text)
    subtypes = subtypes or re.search(r"Expected an? (.*?)\.", text)
    names = re.sub(r"<class '(\w+)'>", r"\1", subtypes[1]) if subtypes else "?"
    kinds = " or ".join(sorted(names.split(", ")))
    return f"{key} must be {kinds}, got {value[1]}"


def _usage() -> str:
    rows = [f"  {name:<10}{_summary(command)}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: noisin COMMAND [options]", "", "Noise-based regularisation of RNNs.", "", *rows,
         "", "noisin COMMAND --help lists the options of a command."]
    )  # fmt: skip


def _summary(command: Callable[..., None]) -> str:
    return (command.__doc__ or "").strip().splitlines()[0]


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
