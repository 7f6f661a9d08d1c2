"""The command line: what it prints, and how it says no."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from noisin_pyro.cli import main
from noisin_pyro.cli.commands import COMMANDS
from noisin_pyro.cli.config_files import read_config_files
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.interrupt import Interrupted
from tests.cli.calls import refusal

TINY = [
    "--embedding_size", "8", "--hidden_size", "12", "--batch_size", "4", "--unroll", "9",
    "--epochs", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for split, lines in (("train", 60), ("valid", 12), ("test", 12)):
        (folder / f"{split}.txt").write_text("the cat sat on the mat\na dog ran\n" * lines)
    return folder


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--corpus", str(text), "--out", str(out), *TINY]) == 0
    return out


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_needs_no_torch(command: str) -> None:
    code = f"""
import atexit, sys
from noisin_pyro.cli import main
from noisin_pyro.cli.commands import COMMANDS
atexit.register(lambda: print(*sys.modules))
main([*"{command}".split(), "--help"])
"""
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert f"usage: noisin {command or 'COMMAND'}" in output
    assert not set(output.split()) & {"torch", "pyro", "numpy", "matplotlib", "optuna"}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_explains_its_options(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"noisin {command}" in capsys.readouterr().out


def test_train_prints_its_table(text: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    out = tmp_path / "run"
    assert main(["train", "--corpus", str(text), "--out", str(out), *TINY]) == 0
    printed = capfd.readouterr()
    for words in ("NOISIN", "deterministic", "test, mean path", "test, averaged (16 samples)",
                  "γ per layer", "tokens/s", "training time", "curves.png"):  # fmt: skip
        assert words in printed.out
    assert "nats/token" in printed.err and "γ 1.000" in printed.err and "tok/s" in printed.err
    here, without = printed.out.splitlines()[-2:]
    for folder, listed in ((out, here), (out / "deterministic", without)):
        names = {path.name for path in folder.iterdir() if path.is_file()}
        assert set(listed.partition(": ")[2].split(", ")) == names - {"previous.ckpt"}


def test_print_config_reproduces_a_run(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--corpus", str(text), "--spread", "0.7", "--cell", "gru", "--print_config"])
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    given = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (given["spread"], given["cell"], given["corpus"]) == (0.7, "gru", str(text))
    out = ["--out", str(tmp_path / "run"), *TINY]
    assert main(["train", "--config", str(tmp_path / "config.yaml"), *out]) == 0
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["spread"] == 0.7 and written["cell"] == "gru"


def test_a_configuration_with_a_former_name(tmp_path: Path) -> None:
    """As ``config.yaml`` of a run folder of version 0.1, which ``--config`` names."""
    path = tmp_path / "config.yaml"
    path.write_text("feedback: only\nspread: 0.7\n")
    assert read_config_files("train", ["--config", str(path), "--epochs", "2"]) == (
        {"noise_to": "recurrence", "spread": 0.7},
        ["--epochs", "2"],
    )


def test_a_quiet_training_in_half_precision_says_nothing_on_stderr(
    text: Path, tmp_path: Path
) -> None:
    """In a process of its own: Fabric's notes go to the stderr that it found when imported."""
    command = [sys.executable, "-m", "noisin_pyro", "train", "--corpus", str(text), *TINY]
    options = ["--out", str(tmp_path / "run"), "--precision=bf16-mixed", "--quiet=true"]
    done = subprocess.run(command + options, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_no_default_is_printed_from_files_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("epochs: 3\nhidden_size: 16\ncorpus: a b.txt\nspread: 1.0\n")
    (tmp_path / "b.yaml").write_text("hidden_size: 17\nlearn_spread: true\n")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    with pytest.raises(SystemExit):
        main(["train", *files, "--layers", "2", "--print_config=skip_default"])
    expected = {"epochs": 3, "hidden_size": 17, "corpus": "a b.txt", "learn_spread": True}
    assert yaml.safe_load(capsys.readouterr().out) == {**expected, "layers": 2}


def test_the_printed_options_of_a_study_are_a_file_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file was refused: trials and storage were no options in it."""
    given = ["--trials", "3", "--storage", "a.journal", "--layers", "2"]
    with pytest.raises(SystemExit):
        main(["tune", *given, "--print_config=skip_default"])
    printed = capsys.readouterr().out
    file = tmp_path / "a.yaml"
    file.write_text(printed)
    with pytest.raises(SystemExit):
        main(["tune", "--config", str(file), "--print_config=skip_default"])
    assert capsys.readouterr().out == printed
    assert yaml.safe_load(printed) == {"trials": 3, "storage": "a.journal", "layers": 2}
    assert main(["train", "--config", str(file)]) == 2
    assert "there is no option 'storage'" in capsys.readouterr().err
    file.write_text("trials: many\n")
    assert main(["tune", "--config", str(file)]) == 2
    assert "trials must be a whole number, got 'many'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize("where", ["config", "option", "run"])
def test_a_class_that_is_not_trusted_is_not_imported(
    command: str,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The import alone would run its module's code."""
    (tmp_path / "unasked.py").write_text("class Noise: ...")
    monkeypatch.syspath_prepend(tmp_path)
    noise = "{class_path: unasked.Noise, init_args: {scale: 1.0}}"
    file = tmp_path / "run" / "config.yaml"
    file.parent.mkdir()
    file.write_text(f"noise: {noise}\nout: {tmp_path}/new\n")
    given = {"config": ["--config", str(file)], "option": ["--noise", noise],
             "run": ["--config", str(file), "--resume", "true"]}[where]  # fmt: skip
    if where == "run":
        (file.parent / "vocabulary.txt").write_text("a\n")
    assert "noise class_path must lie in torch.distributions" in refusal(capsys, command, *given)
    assert "unasked" not in sys.modules


def test_a_distribution_by_class_path_in_yaml(text: Path, tmp_path: Path) -> None:
    noise = {"class_path": "pyro.distributions.StudentT", "init_args": {"df": 5.0}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"noise": noise, "corpus": str(text)}))
    out = ["--out", str(tmp_path / "run"), *TINY]
    assert main(["train", "--config", str(tmp_path / "c.yaml"), *out]) == 0


def test_options_as_other_programs_spell_them(
    text: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    spelled = [one.replace("_", "-") if one.startswith("--") else one for one in TINY]
    arguments = ["train", "--corpus", str(text), f"--out={tmp_path / 'run-one'}", *spelled]
    assert main([*arguments, "--resume", "--quiet"]) == 0
    assert TrainConfig.load(tmp_path / "run-one" / "config.yaml").hidden_size == 12
    assert not capfd.readouterr().err
    assert main([*arguments, "--quiet", "--resume"]) == 0  # finished, so this changes nothing


def test_evaluate_agrees_with_the_record(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    record = json.loads((run / "record.json").read_text())
    final = record["models"]["noisin"]["final"]
    assert main(["evaluate", str(run), "--split", "valid"]) == 0
    assert f"perplexity {final['mean_path']['valid']:.2f}" in capsys.readouterr().out
    assert main(["evaluate", str(run), "--samples", "4"]) == 0
    assert "test, averaged over 4 samples" in capsys.readouterr().out


def test_generate(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["generate", str(run), "--prompt", "the zebra", "--words", "30", "--seed", "3"]
    assert main(asked) == 0
    first = capsys.readouterr()
    assert first.out.split()[:2] == ["the", "zebra"]
    assert first.err == "noisin: became <unk>: zebra\n"
    assert set(first.out.split()) <= {
        "the", "zebra", "cat", "sat", "on", "mat", "a", "dog", "ran"
    }  # fmt: skip
    main(asked)
    assert capsys.readouterr().out == first.out


@pytest.mark.parametrize("model", [".", "deterministic"])
def test_generate_says_where_there_is_no_noise(
    run: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    assert main(["generate", str(run / model), "--words", "3", "--noise"]) == 0
    said = f"noisin: --noise has no effect, since the model of {run / model} has no noise\n"
    assert capsys.readouterr().err == ("" if model == "." else said)


def test_corpus_prints_the_row_of_table_1(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", str(text)]) == 0
    rows = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert rows["tokens, train"] == "660" and rows["vocabulary"] == "10"


def test_refusals(run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    capsys.readouterr()
    asked = ["train", "--corpus", str(text), "--out", str(tmp_path / "new")]
    assert "unknown command 'tarin'; the known ones" in refusal(capsys, "tarin")
    assert "unknown cell 'rnn_cosine'; the known ones are rnn_tanh, rnn_relu" in refusal(
        capsys, *asked, "--cell", "rnn_cosine"
    )
    assert "hidden_size must be a whole number, got x" in refusal(
        capsys, *asked, "--hidden_size", "x"
    )
    assert "unknown noise 'brown'" in refusal(capsys, *asked, "--noise", "brown")
    assert "spread must be positive" in refusal(capsys, *asked, "--spread", "-1")
    assert "spread must be positive" in refusal(capsys, *asked, "--spread", ".nan")
    assert "spread must be a number or a list of numbers, got nan" in refusal(
        capsys, *asked, "--spread", "nan"
    )
    assert "seed must lie in [0, 2**32), got 9999" in refusal(capsys, *asked, "--seed", "9" * 20)
    assert "hidden_size 3000000, layers 1 and embedding_size 128 need about" in refusal(
        capsys, *asked, "--hidden_size", "3000000"
    )
    assert "patiense" in refusal(capsys, *asked, "--patiense", "3")
    assert "already holds a run" in refusal(capsys, "train", "--corpus", str(text), "--out",
                                            str(run))  # fmt: skip
    assert "is not a finished run" in refusal(capsys, "evaluate", str(text))
    file = str(run / "config.yaml")
    assert "is no folder; give the folder that" in refusal(capsys, "evaluate", file)
    assert "split" in refusal(capsys, "evaluate", str(run), "--split", "dev")
    assert "samples must be 0" in refusal(capsys, "evaluate", str(run), "--samples", "-1")
    assert "knows no word of the prompt 'xyzzy'" in refusal(
        capsys, "generate", str(run), "--prompt", "xyzzy"
    )
    assert "temperature must be positive" in refusal(
        capsys, "generate", str(run), "--temperature", "0"
    )
    assert "is not a folder; give the folder that holds ptb.train.txt" in refusal(
        capsys, "corpus", "ptb", "--data_dir", str(tmp_path / "nowhere")
    )
    assert "does not exist" in refusal(capsys, "corpus", str(tmp_path / "nowhere"))
    assert not (tmp_path / "new").exists()


def test_a_run_without_its_weights_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.yaml", "vocabulary.txt"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    assert "model.safetensors is missing" in refusal(capsys, "evaluate", str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    assert "does not hold the weights of this model" in refusal(capsys, "generate", str(tmp_path))


def test_evaluate_in_pairs_and_by_a_filter(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*options: str) -> str:
        capsys.readouterr()
        assert main(["evaluate", str(run), *options]) == 0
        return capsys.readouterr().out

    plain = printed("--samples", "2")
    assert printed("--samples", "2", "--antithetic", "true") != plain
    assert printed("--samples", "2", "--readout", "mean") != plain
    assert "averaged over 2 samples, " in printed("--samples", "2", "--weighting", "filter")
    assert main(["evaluate", str(run), "--samples", "3", "--antithetic", "true"]) == 2
    assert "even" in capsys.readouterr().err


def test_a_moved_run_is_evaluated_on_a_text_that_is_given(
    run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved, elsewhere = tmp_path / "run", tmp_path / "text"
    shutil.copytree(run, moved)
    shutil.copytree(text, elsewhere)
    config = (moved / "config.yaml").read_text().replace(f"corpus: {text}", "corpus: gone/text")
    assert "gone/text" in config
    (moved / "config.yaml").write_text(config)
    said = refusal(capsys, "evaluate", str(moved))
    assert "the run's text was 'gone/text', which is not there; give --corpus the path" in said
    assert main(["evaluate", str(run)]) == 0
    own = capsys.readouterr().out
    assert main(["evaluate", str(moved), "--corpus", str(elsewhere)]) == 0
    assert capsys.readouterr().out == own
    # Another test text is fine, another vocabulary is not.
    (elsewhere / "test.txt").write_text("the dog sat on the zebra\n" * 9)
    assert main(["evaluate", str(moved), "--corpus", str(elsewhere)]) == 0
    assert capsys.readouterr().out != own
    (elsewhere / "train.txt").write_text("the zebra sat\n" * 9)
    said = refusal(capsys, "evaluate", str(moved), "--corpus", str(elsewhere))
    assert "its vocabulary differs" in said
    said = refusal(capsys, "evaluate", str(moved), "--corpus", "ptb", "--data_dir", str(elsewhere))
    assert "has SHA-256" in said
    said = refusal(capsys, "evaluate", str(run), "--data_dir", str(elsewhere))
    assert "data_dir is for published corpora" in said


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_completion_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for words in ("hidden_size", "samples", "temperature", "min_count", "seeds"):
        assert words in script


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    if not (bash := shutil.which("bash")):
        pytest.skip("needs bash")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    for typed, completed in (
        ("ge", "generate"),
        ("train --hidd", "--hidden_size"),
        ("train --cell minl", "minlstm"),
        ("evaluate --split v", "valid"),
    ):
        words = f"COMP_WORDS=(noisin {typed}); COMP_CWORD={len(typed.split())}"
        command = f"source ./script; {words}; $(complete -p noisin | grep -o '_shtab[^ ]*') noisin"
        command += f" {typed.split()[-1]}; echo ${{COMPREPLY[@]}}"
        done = subprocess.run([bash, "-c", command], capture_output=True, text=True, cwd=tmp_path)
        assert completed in done.stdout.split(), (typed, done)


def test_what_is_wrong_is_told_before_torch_is_imported(text: Path, tmp_path: Path) -> None:
    """Its import takes seconds. One process tries them all, since none may import it."""
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "record.json").write_text("mine")
    (tmp_path / "binary.txt").write_bytes(b"a\0b")
    train, out = ["train", "--corpus", str(text)], ["--out", str(tmp_path / "new")]
    wrong = {
        "unknown noise 'brown'": [*train, *out, "--noise", "brown"],
        "noise class_path must lie in": [*train, *out, "--noise", "os.system"],
        "spread must be positive": [*train, *out, "--spread", "-1"],
        "spread needs one value": [*train, *out, "--spread", "[1.0, 2.0]"],
        "which does not exist": ["train", "--corpus", "nowhere", *out],
        "is binary": ["train", "--corpus", str(tmp_path / "binary.txt"), *out],
        "lacks train.txt": ["train", "--corpus", str(taken), *out],
        "data_dir is for published": [*train, *out, "--data_dir", str(text)],
        "holds a record.json that is of no run": [*train, "--out", str(taken)],
        "cannot be written (Not a directory)": [*train, "--out", str(taken / "record.json" / "x")],
        "'nowhere', which does not exist": ["corpus", "nowhere"],
        "'nothing', which does not exist": ["reproduce", "table2", "--corpus", "nothing"],
    }
    code = f"""
import sys
from noisin_pyro.cli import main
from noisin_pyro.cli.commands import COMMANDS
for arguments in {list(wrong.values())}:
    assert main(arguments) == 2
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "pyro", "numpy", "matplotlib"}
    told = done.stderr.splitlines()
    assert len(told) == len(wrong)
    for line, sentence in zip(told, wrong):
        assert sentence in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("trust", [False, True])
def test_the_advice_after_ctrl_c_can_be_followed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trust: bool,
) -> None:
    """It names a file that is there, and the option that no file may hold."""

    def stopped(config: Any) -> None:
        raise Interrupted

    monkeypatch.setattr("noisin_pyro.training.run.train", stopped)
    command = ["train", "--corpus=hmm", f"--out={tmp_path / 'run'}", f"--trust_code={trust}"]
    assert main(command) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("start it again")
    (tmp_path / "run").mkdir()
    TrainConfig(corpus="hmm").save(tmp_path / "run" / "config.yaml")
    assert main([*command, "--resume=true"]) == 130
    option = " --trust_code true" if trust else ""
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"--resume true{option}")
