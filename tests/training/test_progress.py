"""What is displayed of a training."""

from dataclasses import replace

import pytest

from noisin_pyro.experiments.progress import Display, Tally
from noisin_pyro.training.progress import ProgressBar, Status

STATUS = Status(
    label="noisin",
    epoch=2,
    epochs=3,
    step=0,
    steps=40,
    nats=None,
    valid_nats=None,
    spread=[0.5, None],
    tokens_per_second=1234.5,
)


def test_a_status_in_words() -> None:
    assert str(STATUS) == ""
    middle = replace(STATUS, step=20, nats=4.0)
    assert str(middle) == "ppl 54.6, loss 4 nats/token, γ 0.500 -, 1,234 tok/s"
    assert str(replace(middle, valid_nats=5.0)).startswith("ppl 54.6, valid 148.4, loss 4 ")
    assert "ppl e^1e+03," in str(replace(middle, nats=1000.0))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisin_pyro.training.progress.is_terminal", lambda: True)


@pytest.mark.parametrize("label", ["noisin", "deterministic"])
def test_one_bar_for_each_epoch(
    terminal: None,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    label: str,
) -> None:
    """Both perplexities, also on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    bar = ProgressBar()
    for epoch in (2, 3):
        start = replace(STATUS, label=label, epoch=epoch)
        bar(start)
        bar(replace(start, step=20, nats=4.0))
        bar(replace(start, step=40, nats=4.0, valid_nats=5.0))
    bar.close()  # nothing is left to close
    lines = capfd.readouterr().err.split("\n")
    ends = [line.rsplit("\r", 1)[-1] for line in lines if "ppl 54.6, valid 148.4" in line]
    assert [line.partition("%")[0] for line in ends] == [
        f"{label} epoch 2/3 100",
        f"{label} epoch 3/3 100",
    ]


def test_an_interrupted_bar_ends_its_line(
    terminal: None, capfd: pytest.CaptureFixture[str]
) -> None:
    bar = ProgressBar()
    bar(STATUS)
    bar.close()
    assert capfd.readouterr().err.endswith("\n")


def test_a_log_file_gets_a_plain_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    bar = ProgressBar()
    for _ in range(3 * 60):
        bar(replace(STATUS, step=20, nats=4.0))
        clock += 1.0
    bar.close()
    line = "noisin epoch 2/3 50 %, ppl 54.6, loss 4 nats/token, γ 0.500 -, 1,234 tok/s\n"
    assert capfd.readouterr().err == 3 * line


def test_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(quiet=True)
    bar(replace(STATUS, step=20, nats=4.0))
    show = Display("table2", jobs=1, quiet=True)
    show(Tally(0, 2), [], 0)
    assert capfd.readouterr().err == ""


def test_a_reproduction_tells_each_run_and_each_minute(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    show = Display("table2", jobs=1, quiet=False)
    for done in (0, 1, 2):
        for _ in range(90):
            show(Tally(done, 3, seconds=60.0, epochs=2.0) if done else Tally(0, 3), [], 1)
            clock += 1.0
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        f"table2 {done}/3 runs" for done in (0, 0, 1, 1, 2, 2)
    ]
    assert lines[-1] == "table2 2/3 runs, about 1 min left; 1 in another process"
