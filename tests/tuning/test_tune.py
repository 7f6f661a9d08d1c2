"""``noisin tune`` at work: on tiny networks, killed, pruned, in several processes."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from noisin_pyro.cli import main
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.lease import Lease
from noisin_pyro.training.run import train
from noisin_pyro.tuning import space, study
from noisin_pyro.tuning.report import study_table
from noisin_pyro.tuning.trials import Trials
from noisin_pyro.tuning.tune import tune
from tests.cli import calls

DROPOUTS = {"dropout_words", "dropout_input", "dropout_layers", "dropout_output"}
ALL_BUT = {"noise", "injection", "noise_to", "spread", *DROPOUTS}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Markov chain of twelve words."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    draw, word, words = random.Random(0), 0, []
    for _ in range(1500):
        word = (3 * word + draw.randrange(2)) % 12
        words.append(f"w{word}" + ("\n" if draw.random() < 0.1 else ""))
    path.write_text(" ".join(words), encoding="utf-8")
    return path


def config(text: Path, out: Path, **options: Any) -> TrainConfig:
    sizes = {"hidden_size": 6, "embedding_size": 5, "epochs": 3, "batch_size": 5, "unroll": 20}
    common = {"cell": "rnn_tanh", "quiet": True, "device": "cpu", "learning_rate": 0.02}
    return TrainConfig(**{**sizes, **common, "corpus": str(text), "out": str(out), **options})


def numbers(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials, without what depends on the clock."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in record["trials"]]


def test_it_finds_the_better_of_two(text: Path, tmp_path: Path) -> None:
    """Each is what ``noisin train`` would have trained, and the better one can be evaluated."""
    base = config(text, tmp_path / "study", injection="multiplicative", spread=1.5)
    record = tune(base, ALL_BUT - {"noise_to"}, trials=5)
    by_choice = {row["options"]["noise_to"]: row for row in record["trials"]}
    assert len(by_choice) > 1
    for noise_to, row in by_choice.items():
        alone = config(text, tmp_path / noise_to, spread=1.5, noise_to=noise_to)
        history = train(alone)["models"]["noisin"]["history"]
        expected = [epoch["valid_perplexity"] for epoch in history]
        assert row["valid_perplexity"] == expected[: len(row["valid_perplexity"])]
    best = next(row for row in record["trials"] if row["number"] == record["best"]["number"])
    assert best["lowest"] == min(row["lowest"] for row in record["trials"])
    folder = study.trial_folder(tmp_path / "study", best["number"])
    assert main(["evaluate", str(folder), "--split", "valid"]) == 0
    kept = [path.parent for path in (tmp_path / "study").rglob("model.safetensors")]
    assert kept == [folder], "the weights of the others are gone"
    # It is a run of `noisin train` whose deterministic twin is still to be trained.
    assert main(["train", f"--config={folder}/config.yaml", "--resume=true"]) == 0
    whole = json.loads((folder / "record.json").read_text())
    history = whole["models"]["noisin"]["history"]
    assert [epoch["valid_perplexity"] for epoch in history] == best["valid_perplexity"]
    assert whole["models"]["deterministic"]["finished"]


@pytest.mark.parametrize("epochs", [3, 4])
def test_what_is_behind_the_median_is_pruned(
    epochs: int, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not in its first third: of three epochs the first one was none of it."""
    monkeypatch.setattr(space, "SPREADS", {"additive": (0.01, 30.0)})
    monkeypatch.setattr(study, "PRUNE_AFTER", 2)
    base = config(text, tmp_path / "study", injection="additive", epochs=epochs)
    rows = tune(base, ALL_BUT - {"spread"}, trials=8)["trials"]
    assert [row["number"] for row in rows] == list(range(8))
    assert {row["ended"] for row in rows} == {"finished", "pruned"}
    for row in rows:
        values = row["valid_perplexity"]
        before = [r for r in rows[: row["number"]] if r["ended"] == "finished"]
        behind = [
            epoch
            for epoch in range(epochs // 3 + 1, len(values) + 1)
            if len(before) >= 2
            and epoch < epochs
            and min(values[:epoch])
            > statistics.median(min(r["valid_perplexity"][:epoch]) for r in before)
        ]
        # The first epoch at which it is behind is its last.
        assert behind == ([len(values)] if row["ended"] == "pruned" else [])


def in_child(base: TrainConfig, trials: int, act: Callable[[int], None]) -> int:
    """Tunes in a forked process that calls ``act`` before each change of a file below ``out``."""
    child = os.fork()
    if child == 0:
        count, code = 0, 1

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            writes = event == "open" and str(arguments[1])[:1] in "wax"
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.link", "os.truncate")
            if (writes or changes) and str(base.out) in str(arguments[0]):
                count += 1
                act(count)

        try:
            torch.set_num_threads(1)
            sys.addaudithook(hook)
            tune(base, ALL_BUT - {"spread", "injection"}, trials)
            code = 0
        except BaseException:
            traceback.print_exc()  # nothing else would tell why the child failed
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("every", "trials"), [(60, 3), pytest.param(7, 8, marks=pytest.mark.slow)])
def test_killed_again_and_again_it_ends_as_if_it_had_not_been(
    text: Path, tmp_path: Path, every: int, trials: int
) -> None:
    """Each process is killed some file operations further on than the one before."""
    whole = config(text, tmp_path / "whole")
    assert in_child(whole, trials, lambda count: None) == 0
    killed, lives = config(text, tmp_path / "killed", resume=True, checkpoint_seconds=0.0), 1
    while in_child(killed, trials, kill_at(every * lives)) == -signal.SIGKILL:
        lives += 1
    assert lives > 2
    records = [json.loads((Path(c.out) / "study.json").read_text()) for c in (whole, killed)]
    assert numbers(records[0]) == numbers(records[1]) and len(records[0]["trials"]) == trials
    assert records[0]["best"] == records[1]["best"]
    left = {path.suffix for path in (tmp_path / "killed").rglob("*")}
    assert ".partial" not in left


def kill_at(place: int) -> Callable[[int], None]:
    return lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == place else None


def test_no_setting_is_trained_twice(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The study ends when all have been tried, also if it is resumed after each trial."""
    sizes = ("--hidden_size=4", "--embedding_size=4", "--epochs=1", "--quiet=true")
    fixed = ("--spread=1", "--noise=gaussian", *(f"--{name}=0" for name in sorted(DROPOUTS)))
    asked = ["tune", f"--corpus={text}", *sizes, *fixed, "--resume=true"]
    assert main([*asked, f"--out={tmp_path}/a", "--trials=9"]) == 0
    assert "there are no other settings of injection, noise_to to try" in capsys.readouterr().out
    for trials in range(1, 10):
        assert main([*asked, f"--out={tmp_path}/b", f"--trials={trials}"]) == 0
    assert "no other settings" in capsys.readouterr().out
    records = [json.loads((tmp_path / name / "study.json").read_text()) for name in "ab"]
    assert numbers(records[0]) == numbers(records[1])
    settings = [tuple(row["options"].values()) for row in records[0]["trials"]]
    assert len(settings) == len(set(settings)) == 6
    numbered = [row["number"] for row in records[0]["trials"]]
    assert numbered != list(range(6)), "this seed draws none again, which tests nothing"
    assert not list(tmp_path.rglob("*.lock"))


def command(text: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    options = config(text, out).to_dict("quiet", "resume", "spread", "noise", "noise_to",
                                        "injection", "data_dir", *DROPOUTS)  # fmt: skip
    given = [f"--{name}={value}" for name, value in options.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "noisin_pyro", "tune", *given, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not holds():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_two_processes_share_a_study(text: Path, tmp_path: Path, kind: str) -> None:
    """One is asked to stop and exits with 128 + SIGTERM; a third takes its trial up."""
    out = tmp_path / "study"
    place = {"sqlite": f"sqlite:///{tmp_path}/a.db", "journal": f"{tmp_path}/a.journal"}[kind]
    options = (f"--storage={place}", "--trials=9", "--resume=true", "--epochs=4")
    first = command(text, out, *options)
    until((out / "trial-000" / "last.ckpt").exists, first)
    second = command(text, out, *options)
    until(lambda: len(list(out.glob("trial-*.lock"))) > 1, second)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=240)
    assert first.returncode == 143, err
    assert err.splitlines()[-1].startswith("noisin: stopped, nothing is lost")
    third = command(text, out, *options)
    printed = [process.communicate(timeout=240) for process in (second, third)]
    for (_, err), process in zip(printed, (second, third)):
        assert process.returncode == 0, err
    assert printed[0][0] == printed[1][0], "both tell the same table"
    record = json.loads((out / "study.json").read_text())
    assert [row["number"] for row in record["trials"]] == list(range(9))
    for row in record["trials"]:
        assert len(row["valid_perplexity"]) == 4 or row["ended"] == "pruned"
    assert not list(out.rglob("*.lock")) and study_table(record) in printed[0][0]
    assert (out / "tune.png").stat().st_size > 10_000


def test_a_trial_that_another_process_ends_meanwhile_is_not_taken(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is ended and its lease given back between a look at the trials and the taking."""
    base = config(text, tmp_path / "study")
    made = study.open_study(base, ("spread",), "text")
    trial = made.ask()
    lease = Lease(study.trial_folder(base.out, trial.number).with_suffix(".lock"))
    take = Lease.take
    ended: list[Any] = []

    def end_first(self: Lease) -> bool:
        if self.path == lease.path and not ended:
            ended.append(made.tell(trial, 1.0))
        return take(self)

    monkeypatch.setattr(Lease, "take", end_first)
    with Trials(made, base, ("spread",), limit=1).next() as taken:
        assert ended and taken is None
    assert not lease.path.exists()


def test_given_options_stay(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    base = [f"--corpus={text}", "--hidden_size=5", "--embedding_size=4", "--epochs=1"]
    (tmp_path / "c.yaml").write_text("noise: laplace\ndropout_words: 0.1\n")
    given = [
        f"--config={tmp_path}/c.yaml",
        "--spread",
        "0.4",
        "--quiet=true",
        "--batch_size=5",
        "--tensorboard=true",
    ]
    assert main(["tune", f"--out={out}", "--trials=3", *base, *given]) == 0
    record = json.loads((out / "study.json").read_text())
    assert record["searched"] == ["injection", "noise_to", "dropout_input", "dropout_output"]
    for number in range(3):
        run = TrainConfig.load(study.trial_folder(out, number) / "config.yaml")
        assert (run.noise, run.spread, run.dropout_words) == ("laplace", 0.4, 0.1)
        assert list(study.trial_folder(out, number).glob("tensorboard/events*")), "was ignored"


def test_a_trial_that_diverges_is_one_of_the_trials(text: Path, tmp_path: Path) -> None:
    base = config(
        text, tmp_path / "s", cell="rnn_relu", optimizer="sgd", learning_rate=1e30, clip_norm=0.0
    )
    record = tune(base, ALL_BUT - {"spread"}, trials=2)
    assert [row["ended"] for row in record["trials"]] == ["diverged"] * 2
    assert "became" in record["trials"][0]["diverged"] and record["best"] is None
    again = json.loads((tmp_path / "s" / "study.json").read_text())
    assert "inf" in study_table(again)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    options = ("--hidden_size=5", "--embedding_size=4", "--quiet=true")
    return calls.refusal(capsys, "tune", *options, *arguments)


def test_refusals(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, out = f"--corpus={text}", f"--out={tmp_path}/study"
    asked = (corpus, out, "--trials=1", "--epochs=1")
    assert main(["tune", "--hidden_size=5", "--embedding_size=4", "--quiet=true", *asked]) == 0
    capsys.readouterr()
    assert "already holds a study; go on with it or join it" in refusal(capsys, *asked)
    again = (*asked, "--resume=true")
    assert "searches noise, injection" in refusal(capsys, *again, "--spread=1")
    assert "has epochs 1, got 2" in refusal(capsys, *again, "--epochs=2")
    other = tmp_path / "other.txt"
    other.write_text(text.read_text() * 2)
    assert "is of another text" in refusal(capsys, *again, f"--corpus={other}")
    assert "trials must be at least 1, got 0" in refusal(capsys, *again, "--trials=0")
    assert "trains in one process, got devices for 5" in refusal(
        capsys, corpus, "--devices=5", f"--out={tmp_path}/new"
    )
    assert "holds a words.txt that is of no study" in refusal(
        capsys, corpus, f"--out={text.parent}"
    )
    assert "cannot be used" in refusal(
        capsys, corpus, f"--out={tmp_path}/a", "--storage=oracle9://x"
    )
    assert "cannot be used" in refusal(
        capsys, corpus, f"--out={tmp_path}/b", f"--storage=sqlite:///{tmp_path}/no/a.db"
    )
    (tmp_path / "no.journal").write_text("no journal\n" * 3)
    assert "cannot be used" in refusal(
        capsys, corpus, f"--out={tmp_path}/c", f"--storage={tmp_path}/no.journal"
    )
    assert not (tmp_path / "new").exists()


def test_a_storage_whose_study_has_another_folder(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (f"--corpus={text}", f"--storage=sqlite:///{tmp_path}/a.db", "--epochs=1")
    sizes = ("--hidden_size=5", "--embedding_size=4", "--trials=1", "--quiet=true")
    assert main(["tune", *sizes, *asked, f"--out={tmp_path}/here/study"]) == 0
    capsys.readouterr()
    assert "has a study 'study' whose trials are in another folder" in refusal(
        capsys, *asked, f"--out={tmp_path}/there/study"
    )


def test_without_optuna(text: Path, tmp_path: Path) -> None:
    script = f"""
import sys
sys.modules["optuna"] = None
from noisin_pyro.cli import main
sys.exit(main(["tune", "--corpus={text}", "--out={tmp_path}/study"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        'noisin: noisin tune needs the extra tune; run pip install "noisin-pyro[tune]"\n',
    )
    assert not (tmp_path / "study").exists()
