"""YAML from strangers: what it may hold, and what it costs to refuse the rest."""

from __future__ import annotations

import math
import resource
import time
from pathlib import Path
from typing import Any

import pytest

from noisin_pyro.cli import main
from noisin_pyro.training.config import TrainConfig
from noisin_pyro.training.safe_yaml import load_yaml, parse_yaml

#: Each list holds the one before nine times: 9**9 elements, if aliases were followed.
BOMB = "\n".join(
    ["a0: &a0 [1]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BOMB, r"line 2: there must be no alias, got \*a0"),
        ("a: &a [*a]", "no alias"),
        ("[" * 100_000, "line 1: there must be at most 20 levels"),
        ("{a: " * 30, "at most 20 levels"),
        ("x" * 100_001, "at most 100,000 characters, got 100,001"),
        ("epochs: 1\nepochs: 2", "line 2: the key 'epochs' is repeated"),
        ("a: !!python/object/apply:os.system [x]", "no tag, got tag:yaml.org,2002:python/object"),
        ("? [1]\n: 2", r"a key must be text, got \[1\]"),
        ("true: 1", "a key must be text, got True"),
        ("a: 0x_", "a number or a character that cannot be read"),
        ("a: " + "9" * 5000, "a number or a character that cannot be read"),
        ('a: "\\ud800"', "a number or a character that cannot be read"),
        ('a: "\\Uffffffff"', "a number or a character that cannot be read"),
        ("a: \0", "printable text, got a control character"),
        ("--- a\n--- b", "line 2: but found another document"),
    ],
)
def test_what_yaml_may_not_hold(text: str, sentence: str) -> None:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=sentence):
        parse_yaml(text)
    assert time.monotonic() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_numbers_are_those_that_people_write() -> None:
    values = parse_yaml("{a: 1e-3, b: -.5, c: .inf, d: 3, e: 2026-01-01, f: '1'}")
    assert values == {"a": 1e-3, "b": -0.5, "c": math.inf, "d": 3, "e": "2026-01-01", "f": "1"}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    with pytest.raises(ValueError, match=r"c.yaml cannot be read \(No such file"):
        load_yaml(path)
    for data in (b"- 3", b"", b"3"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="c.yaml must hold options by their names"):
            load_yaml(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="c.yaml is no configuration"):
        load_yaml(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("noise: null", "noise must be text or class_path and init_args, got None"),
        ("noise: 3", "noise must be text or class_path and init_args, got 3"),
        ("noise: [1]", r"noise must be text or class_path and init_args, got \[1\]"),
        ("schedule: 3", "schedule must be text, got 3"),
        ("schedule: null", "schedule must be text, got None"),
        ("layers: null", "layers must be a whole number, got None"),
        ("layers: 2.0", "layers must be a whole number, got 2.0"),
        ("hidden_size: true", "hidden_size must be a whole number, got True"),
        ("spread: {a: 1}", "spread must be a number or a list of numbers, got {'a': 1}"),
        ("precision: 16", "unknown precision 16; the known ones are 32, bf16-mixed"),
        ("cell: [lstm]", r"unknown cell \['lstm'\]; the known ones are rnn_tanh"),
        ("feedback: 3", "unknown noise_to 3"),
        ("hiden_size: 3", "there is no option 'hiden_size'"),
        ("trust_code: true", "trust_code stands on the command line, never in a file"),
    ],
)
def test_a_configuration_of_other_types_is_one_sentence(
    text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"config.yaml is no configuration: {sentence}"):
        TrainConfig.load(path)
    if "feedback" not in text:  # which stands in old run folders alone
        assert main(["train", "--config", str(path), "--out", str(tmp_path / "run")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_precision_may_be_the_number_32(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "c.yaml").write_text("precision: 32\nlearning_rate: 1e-3")
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tmp_path / "c.yaml"), "--print_config"])
    assert "precision: '32'\n" in (printed := capsys.readouterr().out)
    assert "learning_rate: 0.001\n" in printed
