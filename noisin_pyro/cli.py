"""The command line: ``noisin train | tune | evaluate | generate | corpus | reproduce | ...``.

Each command imports what it needs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

__all__ = ["main"]

COLDEST = 1e-3  # the temperature at which the likeliest word is always drawn


def train(config: Any) -> None:
    """Train a language model and its deterministic twin."""
    from noisin_pyro.text.sources import check_source
    from noisin_pyro.training.hosts import is_first
    from noisin_pyro.training.interrupt import Interrupted
    from noisin_pyro.training.out import check_folder

    if config.nodes == 1:  # what is wrong is told before torch is imported, which takes seconds
        check_folder(config)
        check_source(config.corpus, config.data_dir)
    from noisin_pyro.training.report import render_table
    from noisin_pyro.training.run import train as run

    first = is_first(config)  # of the processes on several hosts one prints
    if first:
        _print(f"{config.corpus}: {config.layers}-layer {config.cell}, {config.hidden_size} units")
    try:
        record = run(config)
    except Interrupted:
        place = shlex.quote(f"{config.out}/config.yaml")
        _warn(f"stopped, nothing is lost; go on with noisin train --config {place} --resume true")
        raise
    if not first:
        return
    _print("\n" + render_table(record))
    files = (
        "record.json, metrics.csv, curves.png, config.yaml, vocabulary.txt, best.ckpt, last.ckpt"
    )
    _print(f"\nwrote {config.out}/: {files}, model.safetensors")
    if len(record["models"]) > 1:
        _print(f"      {config.out}/deterministic/: best.ckpt, last.ckpt, model.safetensors")


def tune(config: Any, fixed: set[str], trials: int, storage: str | None) -> None:
    """Search γ, the kind of noise and dropout on validation perplexity."""
    from noisin_pyro.text.sources import check_source
    from noisin_pyro.training.interrupt import Interrupted
    from noisin_pyro.tuning.study import check_folder, require_optuna, trial_folder

    require_optuna()  # what is wrong is told before torch is imported, which takes seconds
    check_folder(config)
    check_source(config.corpus, config.data_dir)
    from noisin_pyro.tuning.report import study_table
    from noisin_pyro.tuning.tune import tune as run

    try:
        record = run(config, fixed, trials, storage)
    except Interrupted:
        _warn("stopped, nothing is lost; the same command goes on with --resume true")
        raise
    _print(study_table(record))
    _print(f"\nwrote {config.out}/: study.json, tune.png, and a run folder for each trial")
    if (best := record["best"]) is None:
        _warn("no trial came to its end; see the table")
        return
    folder = trial_folder(config.out, best["number"])
    perplexities = best["mean_path"]
    _print(
        f"trial {best['number']} is the best: perplexity {perplexities['valid']:.2f} on the "
        f"validation split, {perplexities['test']:.2f} on the test split; see noisin evaluate "
        f"{shlex.quote(str(folder))}"
    )


# Not `evaluate`: to a function of that name jsonargparse would prefer noisin_pyro.evaluate, whose
# import brings torch.
def evaluate_run(
    run: str,
    split: Literal["train", "valid", "test"] = "test",
    samples: int = 0,
    antithetic: bool = False,
    readout: Literal["noisy", "mean"] = "noisy",
    weighting: Literal["equal", "filter"] = "equal",
    corpus: str | None = None,
    data_dir: str | None = None,
    trust_code: bool = False,
) -> None:
    """Perplexity of a finished run, or of a shared model.

    Args:
        run: the folder that ``noisin train`` or ``save_pretrained`` wrote.
        split: the split to predict.
        samples: 0 for the mean path, or the number of noisy RNNs to average over.
        antithetic: draw the noise in pairs of opposite sign.
        readout: what the softmax reads, the noisy state or its mean.
        weighting: equal, or filter for the weights of a particle filter.
        corpus: the text, with the same vocabulary; the run's own, where it lay, if omitted.
        data_dir: the folder with a published corpus's files; the run's own if omitted.
        trust_code: import and call any class that the run's noise names by class_path.
    """
    import torch

    from noisin_pyro.text.corpora import load_corpus
    from noisin_pyro.text.evaluation import evaluate
    from noisin_pyro.text.sources import NAMES, PREFIX
    from noisin_pyro.training.folder import load_run
    from noisin_pyro.training.memory import check_average
    from noisin_pyro.training.text import load_text

    config, vocabulary, model = load_run(run, trust_code)
    if corpus is not None:
        text = load_corpus(corpus, data_dir, tokens=vocabulary.tokens)
    elif config is None:
        raise ValueError(
            f"{run!r} does not say what it was trained on; name the text with --corpus"
        )
    else:
        corpus = config.corpus
        if not (corpus in NAMES or corpus.startswith(PREFIX) or os.path.exists(corpus)):
            raise ValueError(
                f"the run's text was {corpus!r}, which is not there; give --corpus the path where "
                "it is now"
            )
        text = load_text(config, data_dir)
    if text.vocabulary != vocabulary:
        raise ValueError(
            f"the corpus {corpus!r} here is not the one {run!r} was trained on, its "
            "vocabulary differs (pydoc differs between Python versions); train again, or evaluate "
            "where it was trained"
        )
    if samples:
        check_average(model, samples)
    torch.manual_seed(1 if config is None else config.seed)
    fit = evaluate(
        model,
        text.split(split),
        samples,
        antithetic=antithetic,
        readout=readout,
        weighting=weighting,
    )
    how = f"averaged over {samples} samples" if samples else "mean path"
    if fit.effective_samples is not None:
        how += f", {fit.effective_samples:.1f} of them effective"
    if vocabulary.tokens == "words":
        fitted = f"{fit.nats:.4f} nats/token, perplexity {fit.perplexity:.2f}"
    else:
        fitted = f"{fit.bits:.4f} bits/{vocabulary.tokens[:-1]}, perplexity {fit.perplexity:.2f}"
    _print(f"{split}, {how}: {fitted}, {fit.tokens:,} tokens")


def generate(
    run: str,
    prompt: str = "",
    words: int = 60,
    temperature: float = 1.0,
    noise: bool = False,
    seed: int = 1,
    trust_code: bool = False,
) -> None:
    """Continue a prompt with a finished run's model, or a shared one.

    Args:
        run: the folder that ``noisin train`` or ``save_pretrained`` wrote.
        prompt: the text to continue.
        words: how many words, or characters if the model predicts these, to draw.
        temperature: below 1 sharpens the predictions, above 1 flattens them.
        noise: draw from a noisy RNN instead of its mean path.
        seed: of the draws.
        trust_code: import and call any class that the run's noise names by class_path.
    """
    import torch

    from noisin_pyro.text.generate import sample_text
    from noisin_pyro.training.folder import load_run

    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}")
    if words < 1:
        raise ValueError(f"words must be at least 1, got {words}")
    if 0 < temperature < COLDEST:
        raise ValueError(f"temperature must be at least {COLDEST}, got {temperature}")
    _, vocabulary, model = load_run(run, trust_code)
    given = vocabulary.split(prompt)
    unknown = [word for word in given if word not in vocabulary]
    if given and len(unknown) == len(given):
        raise ValueError(
            f"the model knows no word of the prompt {prompt!r}; use words of {run}/vocabulary.txt"
        )
    if unknown:
        _warn(f"became <unk>: {', '.join(unknown)}")
    generator = torch.Generator().manual_seed(seed)
    text = sample_text(
        model, prompt, words, temperature=temperature, sample=noise, generator=generator
    )
    _print(text.strip("\n"))


def corpus(
    name: str,
    data_dir: str | None = None,
    min_count: int | None = None,
    tokens: Literal["auto", "words", "characters", "bytes"] = "auto",
) -> None:
    """Show a corpus's statistics, as in the paper's Table 1.

    Args:
        name: a name (pydoc, hmm, ptb, wikitext-2, wikitext-103, text8, enwik8), the path of a text
            file or folder, or hf:NAME for a data set of the Hugging Face Hub.
        data_dir: the folder with a published corpus's files; downloaded if omitted.
        min_count: rarer words of the training text become <unk>.
        tokens: words, characters or bytes; auto is what the corpus is usually read as.
    """
    from noisin_pyro.text.sources import check_source

    check_source(name, data_dir)
    from noisin_pyro.text.corpora import load_corpus

    loaded = load_corpus(name, data_dir, min_count, None if tokens == "auto" else tokens)
    statistics = loaded.statistics()
    rows = [
        ("corpus", loaded.name),
        ("tokens", loaded.vocabulary.tokens),
        *((f"tokens, {split}", f"{statistics[split]:,}") for split in ("train", "valid", "test")),
        ("vocabulary", f"{statistics['vocabulary']:,}"),
        ("OoV rate", f"{100 * statistics['oov_rate']:.1f} %"),
    ]
    if loaded.optimal_perplexity:
        rows.append(("best possible test perplexity", f"{loaded.optimal_perplexity:.2f}"))
    rows.append(("SHA-256", loaded.sha256))
    for title, value in rows:
        _print(f"{title:<32}{value:>14}")


def reproduce(
    experiment: Literal[
        "table1", "table2", "table3", "figure2", "spread", "samples", "regularisers", "linear"
    ],
    rows: str = "",
    jobs: int = 1,
    results: str = "results/reproduce",
    work: str = "runs/reproduce",
    render: bool = False,
    quiet: bool = False,
    cluster: Literal["local", "slurm"] | None = None,
    partition: str | None = None,
    hours: float = 24.0,
    cpus: int = 1,
    gpus: int = 0,
    **options: Any,
) -> None:
    """Run and render the paper's tables and figures.

    Args:
        experiment: table1, table2, table3, figure2, spread (γ by epoch), samples (averaging),
            regularisers (what else one would use) or linear (recurrences without a tanh).
        rows: some rows of it, separated by commas; all if omitted.
        jobs: trainings at a time.
        results: where records and what is rendered from them go.
        work: where checkpoints go until a run has its record.
        render: only render what the records hold.
        quiet: show no progress.
        cluster: send each training to Slurm as a job, or to submitit on this machine.
        partition: Slurm's partition.
        hours: the limit of a job, which is put in the queue again when it reaches it.
        cpus: cores of a job.
        gpus: GPUs of a job.
    """
    from pathlib import Path

    from noisin_pyro.experiments.cluster import Cluster
    from noisin_pyro.experiments.recipe import Options
    from noisin_pyro.text.sources import check_source

    chosen = Options(**options)
    if chosen.corpus is not None and not render:
        check_source(chosen.corpus)
    from noisin_pyro.experiments.reproduce import reproduce as run

    where = None
    if cluster is not None:
        where = Cluster(cluster, Path(work) / "cluster", partition, hours, cpus, gpus)
    try:
        text, failures = run(
            experiment,
            chosen,
            [row.strip() for row in rows.split(",") if row.strip()],
            results=Path(results),
            work=Path(work),
            jobs=jobs,
            cluster=where,
            train=not render,
            quiet=quiet,
        )
    except KeyboardInterrupt:
        _warn("stopped, nothing is lost; the same command goes on")
        raise
    _print(text)
    for failure in failures:
        _warn(f"{failure.run.name} failed: {failure.reason}")
    if failures:
        raise SystemExit(1)


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a script that completes commands and options in a shell.

    Args:
        shell: the shell. In bash, eval "$(noisin completion bash)" in .bashrc is enough.
    """
    try:
        import shtab  # noqa: F401  # what jsonargparse makes the script with
    except ImportError:
        raise ImportError(
            'completion needs shtab; run pip install "noisin-pyro[completion]"'
        ) from None
    _print(_parser("", {}, *COMMANDS).get_completion_script(f"shtab-{shell}"))


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "tune": tune,
    "evaluate": evaluate_run,
    "generate": generate,
    "corpus": corpus,
    "reproduce": reproduce,
    "completion": completion,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code, 2 for bad input and 128 + n after signal n."""
    try:
        from noisin_pyro.training.interrupt import Interrupted, interrupting

        with interrupting():
            return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as error:
        return error.exit_code if isinstance(error, Interrupted) else 130
    except (ValueError, TypeError, ImportError, FloatingPointError) as error:
        _warn(" ".join(str(error).split()))
    except (MemoryError, RuntimeError) as error:
        from noisin_pyro.training.memory import ran_out

        if not ran_out(error):
            raise
        _warn("memory ran out, what is on the disk stays; lower hidden_size, layers or batch_size")
    except BrokenPipeError:  # the reader of a pipe, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        name = error.filename or "the output"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _warn(f"{name} cannot be written, the disk is full; what was there stays, make room "
                  "and go on")  # fmt: skip
        else:
            reason = error.strerror or error
            _warn(f"{name} cannot be used ({reason}); give another path")
    return 2


def _run(arguments: list[str]) -> int:
    try:
        from argparse import ArgumentError

        import jsonargparse  # noqa: F401
    except ImportError:
        raise ImportError(
            'the command line needs the extra lm; run pip install "noisin-pyro[lm]"'
        ) from None
    name = arguments[0] if arguments else "--help"
    if not arguments:
        _parser(name, {}).print_help()
        return 2
    try:
        trains = name in ("train", "tune")
        given, arguments = _config_files(name, arguments) if trains else ({}, arguments)
        parser = _parser(name, given)
        options = parser.parse_args(arguments)[name].as_dict()
    except ArgumentError as error:
        text = _sentence(str(error.message))
        raise ValueError(
            text if name not in COMMANDS else f"{text}; see noisin {name} --help"
        ) from None
    if trains:
        from noisin_pyro.training.config import TrainConfig

        del options["config"]
        own = {key: options.pop(key) for key in ("trials", "storage") if key in options}
        if name == "tune":
            typed = parser.parse_args(arguments, defaults=False)[name].as_dict()
            own["fixed"] = given.keys() | typed.keys()
        options = {"config": TrainConfig(**options), **own}
    COMMANDS[name](**options)
    return 0


def _config_files(name: str, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The options in the files of ``--config``, and the arguments without them."""
    from argparse import ArgumentParser
    from pathlib import Path

    from noisin_pyro.training.config import check_file, is_run_folder
    from noisin_pyro.training.safe_yaml import load_yaml

    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    files, rest = parser.parse_known_args(arguments)
    given: dict[str, Any] = {}
    for path in map(Path, files.config):
        values = load_yaml(path)
        values.update({"precision": "32"} if values.get("precision") == 32 else {})
        try:
            check_file(values)
        except ValueError as error:
            raise ValueError(f"{path} is no configuration: {error}") from None
        if name == "train" and is_run_folder(path.parent) and path.name == "config.yaml":
            values["out"] = str(path.parent)  # also where the folder has been moved
        given.update(values)
    return given, rest


def _parser(name: str, given: dict[str, Any], *more: str) -> Any:
    """The parser of all commands, with the options of one: reading those of all takes a second.

    Args:
        name: the command whose options it has.
        given: values that stand for the defaults of these options.
        more: further commands whose options it has.
    """
    from jsonargparse import ArgumentParser, set_loader

    from noisin_pyro import __version__
    from noisin_pyro.training.safe_yaml import parse_yaml

    set_loader("safe_yaml", parse_yaml, exceptions=(ValueError,))

    parser = ArgumentParser(
        prog="noisin",
        description="Noise-based regularisation of RNNs.",
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subcommands(dest="command", metavar="COMMAND", title="commands")
    for known, command in COMMANDS.items():
        summary = (command.__doc__ or "").strip().splitlines()[0]
        sub = ArgumentParser(
            description=summary, exit_on_error=False, default_env=False, parser_mode="safe_yaml"
        )
        if known == name or known in more:
            _add_options(sub, known)
        if known == name:
            if name == "tune":
                sub.set_defaults({"out": "runs/tune"})
            sub.set_defaults(given)
        commands.add_subcommand(known, sub, help=summary)
        sub.prog = f"noisin {known}"
    return parser


def _add_options(parser: Any, name: str) -> None:
    if name in ("train", "tune"):
        from noisin_pyro.training.config import TrainConfig

        parser.add_argument("--config", action="config", help="a YAML file with any of the options")
        if name == "tune":
            parser.add_argument("--trials", type=int, default=20, help="trials in all")
            where = "a journal file or a database's URL that several machines share"
            parser.add_argument("--storage", type=str | None, default=None, help=where)
        parser.add_class_arguments(TrainConfig)
        return
    parser.add_function_arguments(COMMANDS[name], as_positional=True)


def _sentence(message: str) -> str:
    """The value and the rule in what jsonargparse says of a wrong argument."""
    command = re.match(r"argument COMMAND: invalid choice: ('.*?') \(choose from (.*)\)", message)
    if command:
        known = command[2].replace("'", "")
        return f"unknown command {command[1]}; the known ones are {known}"
    match = re.match(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL)
    if not match:
        message = message.removeprefix("argument ")
        return re.sub(r"(arguments are required: )\w+\.", r"\1", message)
    key, text = match.groups()
    value = re.search(r".*(?:Got value|Given value): (.*)$", text, re.DOTALL)
    if not value:
        return f"{key}: {text}"
    choices = re.search(r"Literal\[(.*?)\]", text)
    if choices:
        known = choices[1].replace("'", "")
        return f"unknown {key} {value[1]!r}; the known ones are {known}"
    from noisin_pyro.training.config import HINTS, describe_type

    if key in HINTS:
        return f"{key} must be {describe_type(HINTS[key])}, got {value[1]}"
    subtypes = re.search(r"Subtypes: \[(.*)\]\s+Errors", text)
    subtypes = subtypes or re.search(r"Expected an? (.*?)\.", text)
    names = re.sub(r"<class '(\w+)'>", r"\1", subtypes[1]) if subtypes else "?"
    words = {"int": "a whole number", "float": "a number", "bool": "true or false"}
    kinds = " or ".join(words.get(name, name) for name in sorted(names.split(", ")))
    return f"{key} must be {kinds}, got {value[1]}"


def _print(text: str) -> None:
    from noisin_pyro.training.printable import printable

    encoding = sys.stdout.encoding or "utf-8"  # one that has no γ shows a question mark
    print(printable(text).encode(encoding, "replace").decode(encoding), flush=True)


def _warn(text: str) -> None:
    from noisin_pyro.training.printable import printable

    print(f"noisin: {printable(text)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
