"""What a stranger's sizes, texts and machines do to the command line: one sentence, exit code 2."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch

from noisin_pyro import Additive, LanguageModel, NoisyRNN, weight_priors
from noisin_pyro.atomic import describe_failure
from noisin_pyro.cli import main
from noisin_pyro.experiments.markdown import markdown_table
from noisin_pyro.experiments.recipe import Options, recipes
from noisin_pyro.experiments.store import planned
from noisin_pyro.nn.registry import RNNS
from noisin_pyro.training import fit, memory
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.loop import Trainer
from noisin_pyro.training.memory import check_average, check_memory
from noisin_pyro.training.printable import escape_markdown, printable
from tests.cli import calls

TINY = ["--embedding_size=4", "--hidden_size=5", "--epochs=1", "--noise=none", "--batch_size=4"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text one of whose words would clear the terminal and give it another title."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text("the cat \x1b[2J\x1b]0;title\x07 sat γ\na dog ran\n" * 100)
    return path


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", f"--corpus={text}", f"--out={out}", *TINY]) == 0
    return out


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence of a command that is refused within ten seconds."""
    began = time.monotonic()
    sentence = calls.refusal(capsys, *arguments)
    assert time.monotonic() - began < 10
    return sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--layers=100000"], "layers must be at most 100, got 100000"),
        ([f"--hidden_size={2**62}"], f"hidden_size must be below 2**31, got {2**62}"),
        ([f"--layers={10**30}"], "layers must be below 2**31"),
        ([f"--embedding_size={10**30}"], "embedding_size must be below 2**31"),
        (["--hidden_size=2000000000"], "need about 64,000,0"),
        (["--embedding_size=2000000000"], "GB of memory, but there are"),
        (["--unroll=2000000000"], "GB of memory, but there are"),
    ],
)
def test_sizes_are_refused_before_anything_is_allocated(
    text: Path,
    tmp_path: Path,
    options: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("noisin_pyro.training.fit.build_model", lambda *_: pytest.fail("built"))
    out = tmp_path / "run"
    base = ["train", f"--corpus={text}", f"--out={out}", "--cell=rnn_tanh", "--optimizer=adam"]
    assert sentence in refusal(capsys, *base, *options)
    assert not out.exists()


@pytest.mark.parametrize("cell", RNNS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_estimate_is_that_of_the_model(
    cell: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the weights, within a few per cent of what torch allocates."""
    from noisin_pyro.training.build import build_model

    config = TrainConfig(
        cell=cell, hidden_size=300, embedding_size=300, layers=2, batch_size=1, unroll=1,
        tied_weights=tied, optimizer="adam",
    )  # fmt: skip
    weights = sum(value.nbytes for value in build_model(config, 1000).parameters())
    for training, copies in ((True, 4), (False, 1)):
        monkeypatch.setattr(memory, "available_memory", lambda n=copies: int(0.98 * weights * n))
        with pytest.raises(ValueError, match="hidden_size 300, layers 2 and embedding_size"):
            check_memory(config, 1000, training)
        monkeypatch.setattr(memory, "available_memory", lambda n=copies: int(1.02 * weights * n))
        check_memory(config, 1000, training)


def test_what_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear recurrence has no matrix between its units; a filter takes one step at a time."""
    monkeypatch.setattr(memory, "available_memory", lambda: 400_000_000)
    check_memory(TrainConfig(cell="mingru", hidden_size=16384, embedding_size=64), 100)
    with pytest.raises(ValueError, match="hidden_size 16384"):
        check_memory(TrainConfig(cell="gru", hidden_size=16384, embedding_size=64), 100)
    model = LanguageModel(10, NoisyRNN(4, 100, noise=Additive(dist.Normal(0.0, 1.0))))
    with pytest.raises(ValueError, match="1000 samples, hidden_size 100, layers 1"):
        check_average(model, 1000)
    check_average(model, 1000, filtered=True)
    check_average(model, 500)
    weight_priors(model, 1.0)
    check_average(model, 1000)


def test_samples(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "10000000 samples, hidden_size 5" in refusal(
        capsys, "evaluate", str(run), "--samples=10000000"
    )


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9")],
)
def test_memory_that_runs_out_all_the_same(
    run: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def raise_it(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "fit", raise_it)
    asked = ["train", "--config", f"{run}/config.yaml", "--resume=true"]
    assert main(asked) == 2
    assert capsys.readouterr().err.endswith("lower hidden_size, layers or batch_size\n")


def test_words_do_not_reach_the_terminal_as_commands(
    run: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["generate", str(run), "--words=200", "--prompt", "cat \x1b[2J\x1b]0;title\x07"]) == 0
    )
    assert main(["corpus", str(text)]) == 0
    printed = capsys.readouterr()
    assert "[2J" in printed.out and not set(printed.out + printed.err) & set("\x1b\x07")
    assert "\x1b" not in refusal(capsys, "evaluate", "\x1b[31mred")


def test_what_is_printed_is_printable() -> None:
    assert printable("a\nb\x00\x1b[1m\x9b1m\u202ec") == "a\nb[1m1mc"
    shown = escape_markdown("a|b\n`c` <script> [x](y)\x1b")
    assert shown == r"a\|b \`c\` &lt;script> \[x\](y)"
    assert markdown_table(["x"], [[shown]]).count("\n") == 2


def test_an_ascii_terminal_shows_what_it_can(run: Path) -> None:
    command = [sys.executable, "-m", "noisin_pyro", "train", f"--config={run}/config.yaml"]
    done = subprocess.run(
        [*command, "--resume=true"],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "OMP_NUM_THREADS": "1",
             "PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"? per layer" in done.stdout


def in_latin(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "noisin_pyro", *arguments],
        capture_output=True,
        env={"PYTHONIOENCODING": "latin-1", "PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )


def test_help_in_an_encoding_without_greek() -> None:
    """The descriptions have a γ; the help ended in the error of the codec."""
    done = in_latin("--help")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Search ?" in done.stdout


def test_a_printed_configuration_has_no_other_name() -> None:
    """A question mark in the place of a letter would be another file."""
    done = in_latin("train", "--corpus=γ.txt", "--print_config")
    assert done.returncode == 2 and b"codec can't encode character" in done.stderr
    assert b"?.txt" not in done.stdout


@pytest.mark.parametrize("corpus", ["texts/x/..", "texts/../..", "/", "texts/./x"])
def test_records_stay_below_the_results(corpus: str, tmp_path: Path) -> None:
    options = Options(corpus=corpus)
    for run in planned(recipes("table2", options)[0], options, tmp_path / "results"):
        assert run.path.resolve().is_relative_to(tmp_path / "results")
        assert ".." not in run.place.parts and len(run.place.parts) == 4


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_a_device_that_is_not_there(
    device: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if getattr(torch, device).is_available():
        pytest.skip(f"there is a device {device}")
    asked = ["train", f"--corpus={text}", f"--out={tmp_path / 'run'}", f"--device={device}", *TINY]
    assert f"device {device} needs one that torch can see, got none; use --device cpu" in refusal(
        capsys, *asked
    )
    assert not (tmp_path / "run").exists()


def test_a_device_that_is_there_is_handed_to_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(fit, "Fabric", lambda **options: given.update(options))
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    fit.make_fabric(TrainConfig(device="mps"))
    assert given["accelerator"] == "mps"
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    with pytest.raises(ValueError, match="device xpu needs a lightning-fabric that knows it"):
        fit.make_fabric(TrainConfig(device="xpu"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("generate RUN --seed=99999999999999999999", "seed must lie in [0, 2**32), got 9999"),
        ("generate RUN --words=x", "words must be a whole number, got x"),
        ("generate RUN --temperature=nan", "temperature must be a number, got nan"),
        ("evaluate", "the following arguments are required: run"),
        ("train --out=", "out must be a path of printable characters, got ''"),
        ("train --corpus=", "corpus must be a path of printable characters, got ''"),
        ("train --epochs", "--epochs: expected one argument"),
        ("train my.txt", "unrecognized arguments: my.txt; give it as --corpus my.txt; see noisin"),
        ("tune pydoc --foo 1", "unrecognized arguments: pydoc --foo 1; give it as --corpus pydoc;"),
        ("evaluate RUN hf:mine", "unrecognized arguments: hf:mine; give it as --corpus hf:mine;"),
        ("evaluate RUN valid", "unrecognized arguments: valid; give it as --split valid; see"),
        ("reproduce table2 .", "unrecognized arguments: .; give it as --corpus .; see noisin rep"),
        ("reproduce table2 table3", "unrecognized arguments: table3; see noisin reproduce"),
        ("generate RUN the cat", "unrecognized arguments: the cat; give it as --prompt 'the cat'"),
        ("train c.yaml", "unrecognized arguments: c.yaml; give it as --config c.yaml; see noisin"),
        ("train epochs=3", "unrecognized arguments: epochs=3; give it as --epochs=3; see noisin"),
        ("train --spread 0.5 0.4", "arguments: 0.4; give several values as a list, such as --spr"),
        ("corpus pydoc my.txt", "unrecognized arguments: my.txt; see noisin corpus --help"),
        ("train --resume=maybe", "resume must be true or false, got maybe"),
        ("train --config", "--config: expected one argument"),
        ("generate RUN --noise=maybe", "noise must be true or false, got maybe"),
        ("corpus pydoc --min_count=x", "min_count must be a whole number, got x"),
    ],
)
def test_sentences(
    run: Path, arguments: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run) if word == "RUN" else word for word in arguments.split()]
    assert sentence in refusal(capsys, *words)


def in_bash(command: str) -> tuple[str, str]:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    return done.stdout, done.stderr


def test_a_reader_that_has_enough_is_no_error(run: Path) -> None:
    command = f"{sys.executable} -m noisin_pyro generate {run} --words 9"
    assert in_bash(f"{command} | true; echo ${{PIPESTATUS[0]}}") == ("0\n", "")
    assert in_bash(f"{command} --prompt zzz 2>&1 | true; echo ${{PIPESTATUS[0]}}") == ("2\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["--version", "train --help", "tune --print_config"])
def test_a_full_disk_is_told(arguments: str, unbuffered: str) -> None:
    """argparse ignores it: the exit code was 0, or 120 when Python wrote its buffers at the end."""
    noisin = f"PYTHONUNBUFFERED={unbuffered} {sys.executable} -m noisin_pyro"
    told = in_bash(f"{noisin} {arguments} 2>&1 >/dev/full; echo $?")
    assert told == (f"noisin: {describe_failure(OSError(errno.ENOSPC, ''))}\n2\n", "")


def test_a_training_whose_progress_nobody_reads(text: Path, tmp_path: Path) -> None:
    """It ended after its first line with exit code 0, as if it were done."""
    out = tmp_path / "run"
    train = f"{sys.executable} -m noisin_pyro train --corpus {text} {' '.join(TINY)} --out {out}"
    assert in_bash(f"{train} 2>&1 | true; echo ${{PIPESTATUS[0]}}") == ("141\n", "")
    # Standard output has no progress, and the results are in the folder.
    again = f"{train} --resume true --quiet true | true; echo ${{PIPESTATUS[0]}}"
    assert in_bash(again) == ("0\n", "")
    assert (out / "model.safetensors").exists()


def test_without_standard_streams(text: Path, tmp_path: Path) -> None:
    """As a daemon has it. Nothing is printed into a file that has taken the number of one."""
    noisin, closed = f"{sys.executable} -m noisin_pyro", "<&- >&- 2>&-"
    train = f"{noisin} train --corpus {text} {' '.join(TINY)} --out {tmp_path}/run"
    for command, code in ((train, "0"), (f"{noisin} corpus nowhere", "2")):
        assert in_bash(f"({command} {closed}); echo $?") == (f"{code}\n", "")
